"""Rows of `mobile_vit`."""

from tests.cases.case import Case
from tests.cases.repairs import feature_map


def image_channels(make):
    """`channels` of the image beside `widths`: the first convolution is replaced."""
    from torch import nn

    def repaired(*, widths, channels, **kwargs):
        module = make(channels=widths, **kwargs)
        module.conv1[0] = nn.Conv2d(channels, widths[0], 3, 2, 1, bias=False)
        return module

    return repaired


def padded(make):
    """`kernel_size` other than 3: with padding that keeps the size of a map."""

    def repaired(**kwargs):
        module, side = make(**kwargs), kwargs["kernel_size"]
        for conv in (conv for _, block in module.trunk for conv in (block.conv1[0], block.conv4[0])):
            conv.padding = (side // 2, side // 2)
        return module

    return repaired


MOBILE = ("mobile_vit", "mobile_vit:MobileViT")
WIDTHS = (4, 4, 6, 6, 8, 8, 7, 7, 5, 5, 9)
PLAIN = dict(image_size=(32, 32), dims=(8, 6, 10), channels=WIDTHS, num_classes=5, patch_size=(1, 1), depths=(1, 1, 1))
UNEVEN = PLAIN | dict(image_size=(64, 192), channels=1, widths=WIDTHS, expansion=1, patch_size=(2, 3), depths=(2, 1, 1))

CASES = [
    Case(*MOBILE, (2, 32, 32, 3), 13302, PLAIN, maps=3),
    Case(*MOBILE, (1, 64, 192, 1), 11128, UNEVEN, "one-channel", maps=4, repairs=(image_channels,)),
    Case(*MOBILE, (2, 32, 32, 3), 19926, PLAIN | dict(kernel_size=5), "kernel", maps=3, repairs=(padded,)),
    Case(*MOBILE, (2, 32, 64, 3), 13194, PLAIN | dict(num_classes=0), "map", maps=3, repairs=(feature_map,)),
]

EXEMPT = dict.fromkeys(("bad_sizes", "large_images", "unfilled_images"), "its patches are of maps, not of the image")
# Counts of the paper, in millions; here attention is narrower and feed-forwards are wider.
PUBLISHED = {"mobile_vit/xxs": (1.3e6, 0.03), "mobile_vit/xs": (2.3e6, 0.04), "mobile_vit/s": (5.6e6, 0.01)}


def draw(rng):
    stem, first, *pairs = (rng.randint(3, 9) for _ in range(6))
    widths = (stem, first, *(width for width in pairs for _ in range(2)), rng.randint(3, 12))
    patch = (rng.randint(1, 2), rng.randint(1, 2))
    image = dict(image_size=(32 * patch[0], 32 * patch[1]), patch_size=patch, num_classes=rng.randint(2, 12))
    dims, depths = (tuple(rng.randint(low, high) for _ in range(3)) for low, high in ((4, 12), (1, 2)))
    sizes = dict(dims=dims, depths=depths, channels=widths, expansion=rng.choice((1, 2, 3)))
    yield Case(*MOBILE, (2, *image["image_size"], 3), 0, image | sizes)
