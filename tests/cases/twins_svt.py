"""Rows of `twins_svt`."""

import math

from tests.cases.case import Case
from tests.cases.repairs import sized


def any_channels(make):
    """Any number of `channels`: the first patch embedding is replaced."""
    from vit_pytorch import twins_svt

    def repaired(*, channels, **kwargs):
        module = make(**kwargs)
        embed = module.layers[0][0]
        sizes = dict(dim=channels, dim_out=embed.dim_out, patch_size=embed.patch_size)
        module.layers[0][0] = twins_svt.PatchEmbedding(**sizes)
        return module

    return repaired


def feature_map(make):
    """`num_classes=0`: without pooling and head, the model returns the last feature map, channels-last."""
    from einops.layers.torch import Rearrange

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.layers = module.layers[:4].append(Rearrange("b d h w -> b h w d"))
        return module

    return repaired


def stages(**values):
    """Arguments of all stages, given by their names without the prefix of the stage."""
    return {f"s{i + 1}_{name}": value for name, four in values.items() for i, value in enumerate(four)}


TWINS = ("twins_svt", "twins_svt:TwinsSVT")
PLAIN = dict(num_classes=5) | stages(
    emb_dim=(8, 12, 8, 16),
    patch_size=(2, 2, 2, 1),
    local_patch_size=(2, 2, 2, 7),
    global_k=(2, 2, 1, 1),
    depth=(1, 0, 0, 1),
)
OBLONG = dict(image_size=(12, 24), channels=1, num_classes=0, peg_kernel_size=5) | stages(
    emb_dim=(8, 12, 8, 16),
    patch_size=(2, 1, 3, 1),
    local_patch_size=(2, 3, 2, 7),
    global_k=(5, 2, 2, 1),
    depth=(0, 1, 0, 0),
)

# Attention in the oblong row is nearly uniform: upstream's own float32 gradients of queries are 2e-5 from float64. In
# the plain row, on a CPU without AVX-512, upstream's gradient of a norm's bias is 9.8e-6 from float64, and ours 7.7e-6.
CASES = [
    Case(*TWINS, (2, 16, 16, 3), 311369, PLAIN, maps=10, tolerance=2e-5),
    Case(
        *TWINS,
        (2, 12, 24, 1),
        503836,
        OBLONG,
        "oblong-map",
        maps=9,
        faint=("to_q",),
        repairs=(feature_map, any_channels, sized),
    ),
]

# Our own counts, equal to upstream's. Table 2 of the paper: 24.0, 56.0 and 99.2 million, with narrower attention.
PUBLISHED = {"twins_svt/s": (35_480_072, 0), "twins_svt/b": (72_084_712, 0), "twins_svt/l": (110_759_880, 0)}

EXEMPT = {
    "bad_sizes": "has no one patch size",
    "large_images": "takes larger images",
    "unfilled_images": "has messages of its own",
}


def draw(rng):
    choose = lambda *choices: tuple(rng.choice(choices) for _ in range(4))
    patches, windows = rng.sample((1, 1, 2, rng.choice((2, 3))), 4), (*choose(1, 2, 3)[:3], 7)
    # The size that patches and windows need.
    side = math.lcm(*(math.prod(patches[: i + 1]) * (windows[i] if i < 3 else 1) for i in range(4)))
    grids = [side // math.prod(patches[: i + 1]) for i in range(4)]
    kwargs = stages(
        emb_dim=choose(8, 12, 20),
        patch_size=patches,
        local_patch_size=windows,
        global_k=tuple(rng.randint(max(1, grid // 8), min(grid, 7)) for grid in grids),
        depth=choose(0, 1),
    )
    peg = dict(peg_kernel_size=rng.choice((1, 3, 5)), num_classes=rng.randint(2, 12))
    yield Case(*TWINS, (2, side, side, 3), 0, kwargs | peg)
