"""Rows of `regionvit`."""

from tests.cases.case import Case
from tests.cases.repairs import sized


def any_channels(make):
    """Any number of `channels`: upstream's first local convolution always takes three."""
    from torch import nn

    def repaired(*, channels, **kwargs):
        module = make(channels=channels, **kwargs)
        if isinstance(module.local_encoder, nn.Conv2d):
            module.local_encoder = nn.Conv2d(channels, module.local_encoder.out_channels, 8, 4, 3)
        else:
            module.local_encoder[0] = nn.Conv2d(channels, module.local_encoder[0].out_channels, 3, 2, 1)
        return module

    return repaired


def region_map(make):
    """`num_classes=0`: without the head, the model returns the last map of regions, channels-last."""
    from einops.layers.torch import Rearrange

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.to_logits = Rearrange("b d h w -> b h w d")
        return module

    return repaired


REGION = ("regionvit", "regionvit:RegionViT")
PLAIN = dict(num_classes=5, dim=(8, 12, 16, 20), depth=(1, 0, 1, 2), window_size=2)
THREE = PLAIN | dict(tokenize_local_3_conv=True, use_peg=True, channels=2)
MAP = PLAIN | dict(dim=8, depth=(0, 1, 0, 2), window_size=4, local_patch_size=2, channels=1, num_classes=0)
MAP |= dict(image_size=(16, 32))


def unread(*stages):
    """Position biases of stages whose windows are single tokens, where they have no effect."""
    return tuple(f"stage_{i}/local_rel_pos_bias/embedding" for i in stages)


CASES = [
    Case(*REGION, (2, 16, 16, 3), 51265, PLAIN, maps=8, unused=unread(1)),
    Case(
        *REGION,
        (2, 16, 16, 2),
        51041,
        THREE,
        "three-convolutions-peg",
        maps=8,
        repairs=(any_channels,),
        unused=unread(1),
    ),
    Case(
        *REGION,
        (2, 16, 32, 1),
        17640,
        MAP,
        "oblong-map",
        maps=6,
        repairs=(any_channels, region_map, sized),
        unused=unread(0, 2),
    ),
]

# Our own counts, equal to upstream's. Table 1 of the paper: 13.8, 30.6, 41.2 and 72.7 million, with more heads.
PUBLISHED = {
    "regionvit/ti": (12_749_176, 0),
    "regionvit/s": (26_820_344, 0),
    "regionvit/m": (35_100_920, 0),
    "regionvit/b": (60_210_296, 0),
}

EXEMPT = {
    "bad_sizes": "has no one patch size",
    "large_images": "takes larger images",
    "unfilled_images": "has messages of its own",
    "dropout_count": "one attention acts twice in a block",
}


def draw(rng):
    window, regions = rng.choice(((2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (3, 8)))
    side, channels = 4 * window * regions, rng.randint(1, 3)
    kwargs = dict(dim=tuple(4 * rng.randint(2, 6) for _ in range(4)), depth=(*(rng.randint(0, 1) for _ in range(3)), 2))
    flags = dict(tokenize_local_3_conv=rng.random() < 0.5, use_peg=rng.random() < 0.5, num_classes=rng.randint(2, 12))
    kwargs |= flags | dict(window_size=window, channels=channels)
    yield Case(*REGION, (2, side, side, channels), 0, kwargs, repairs=(any_channels,))
