"""Rows of `xcit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import set_positions, tokens


def oblong_xcit(make):
    """Non-square images and patches: another patch projection, which keeps the grid, with matching positions."""
    from einops.layers.torch import Rearrange
    from torch import nn

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        module = make(image_size=8, patch_size=4, dim=dim, **kwargs)
        (height, width), (ph, pw) = image_size, patch_size
        module.to_patch_embedding[0] = Rearrange("b c (h ph) (w pw) -> b h w (ph pw c)", ph=ph, pw=pw)
        module.to_patch_embedding[1] = nn.LayerNorm(ph * pw * channels)
        module.to_patch_embedding[2] = nn.Linear(ph * pw * channels, dim)
        set_positions(module, (height // ph) * (width // pw), before=4)
        return module

    return repaired


XCIT = ("xcit", "xcit:XCiT")
PLAIN = IMAGE | BLOCKS | dict(cls_depth=1)
WIDE = PLAIN | dict(cls_depth=2, depth=1, local_patch_kernel_size=5)
TOKENS = PLAIN | OBLONG | dict(num_classes=0)

CASES = [
    Case(*XCIT, INPUT, 16523, PLAIN, maps=3),
    Case(*XCIT, (2, 8, 12, 3), 16688, WIDE, "smaller-wide-kernel", maps=3),
    Case(*XCIT, OBLONG_INPUT, 15214, TOKENS, "oblong-tokens", maps=3, repairs=(oblong_xcit, tokens)),
]

# Tables of the paper, in whole millions; there convolutions embed the patches and positions are computed.
_MILLIONS = {"n12": 3, "t12": 7, "t24": 12, "s12": 26, "s24": 48, "m24": 84, "l24": 189}
PUBLISHED = {f"xcit/{size}_p{p}": (1e6 * count, 0.05) for size, count in _MILLIONS.items() for p in (16, 8)}


def draw(rng):
    image, (batch, height, width, _) = draw_image(rng)
    del image["channels"]  # upstream accepts only three
    layers = dict(cls_depth=rng.randint(1, 3), local_patch_kernel_size=rng.choice((1, 3, 5)))
    yield Case(*XCIT, (batch, height, width, 3), 0, image | draw_blocks(rng) | layers)
