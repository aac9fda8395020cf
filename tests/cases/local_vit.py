"""Rows of `local_vit`."""

import types

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import oblong_patches, tokens


def runs(make):
    """The LayerNorm reads channels-last; the grid may have different numbers of rows and columns."""
    from torch import nn

    class ChannelsLastNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    def repaired(*, image_size, patch_size, dim, **kwargs):
        module = make(image_size=image_size, patch_size=patch_size, dim=dim, **kwargs)
        rows = image_size[0] // patch_size[0] if isinstance(image_size, tuple) else image_size // patch_size
        for _, feed_forward in module.transformer.layers:
            block = feed_forward.fn.fn
            block.net[0] = ChannelsLastNorm(dim)
            block.forward = types.MethodType(_forward_of(rows), block)
        return module

    return repaired


def _forward_of(rows: int):
    def forward(self, x):
        grid = x.transpose(1, 2).unflatten(2, (rows, -1))
        return self.net(grid).flatten(2).transpose(1, 2)

    return forward


LOCAL = ("local_vit", "local_vit:LocalViT")
PLAIN = IMAGE | BLOCKS
ONE_HEAD = PLAIN | dict(heads=1, dim_head=24, channels=1)
TOKENS = PLAIN | OBLONG | dict(num_classes=0)

# The last feed-forward changes only patches, which the head does not read.
_CONVS = [f"{layer}/{leaf}" for layer in ("expand", "depthwise", "pointwise", "project") for leaf in ("kernel", "bias")]
LAST = tuple(f"transformer/ff_1/{name}" for name in ("norm/scale", "norm/bias", *_CONVS))

CASES = [
    Case(*LOCAL, INPUT, 14821, PLAIN, maps=2, unused=LAST, repairs=(runs,)),
    Case(*LOCAL, (2, 16, 16, 1), 13989, ONE_HEAD, "one-head", maps=2, unused=LAST, repairs=(runs,)),
    Case(*LOCAL, OBLONG_INPUT, 13512, TOKENS, "oblong-tokens", maps=2, repairs=(oblong_patches, runs, tokens)),
]

# Our own counts; the paper's T and S have 5.9 and 22.4 million, without an mlp_dim by mlp_dim convolution per block.
PUBLISHED = {"local_vit/t": (12_891_688, 0.0), "local_vit/s": (50_553_448, 0.0)}


def draw(rng):
    image, shape = draw_image(rng)
    yield Case(*LOCAL, shape, 0, image | draw_blocks(rng), repairs=(runs,))
