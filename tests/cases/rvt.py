"""Rows of `rvt`."""

import types

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import tokens


def oblong_rvt(make):
    """Non-square images and patches: another patch projection, and rotations for an oblong grid."""
    import torch
    from einops.layers.torch import Rearrange
    from torch import nn

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        module = make(image_size=max(image_size), patch_size=1, channels=channels, dim=dim, **kwargs)
        ph, pw = patch_size
        rows, columns = image_size[0] // ph, image_size[1] // pw
        module.to_patch_embedding[0] = Rearrange("b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=ph, pw=pw)
        module.to_patch_embedding[1] = nn.Linear(ph * pw * channels, dim)
        transformer, forward = module.transformer, module.transformer.forward
        transformer.forward = lambda x, fmap_dims: forward(x, fmap_dims=dict(h=rows, w=columns))

        def rotations(self, x):
            grid = torch.cartesian_prod(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns))
            angles = torch.cat([axis[:, None] * self.scales * torch.pi for axis in grid.unbind(1)], dim=1)
            angles = angles.repeat_interleave(2, dim=1)[None]
            return angles.sin(), angles.cos()

        transformer.pos_emb.forward = types.MethodType(rotations, transformer.pos_emb)
        return module

    return repaired


RVT = ("rvt", "rvt:RvT")
PLAIN = IMAGE | BLOCKS
TOKENS = PLAIN | OBLONG | dict(num_classes=0, dim_head=10)
# Logits depend only on the class token, so the queries of patches in the last layer have no effect.
UNUSED = ("attn_1/to_q/depthwise/kernel", "attn_1/to_q/pointwise/kernel")
BARE = PLAIN | dict(use_rotary=False, use_ds_conv=False, use_glu=False)

CASES = [
    Case(*RVT, INPUT, 13389, PLAIN, maps=2, unused=UNUSED),
    Case(*RVT, INPUT, 13389, PLAIN | dict(use_rotary=False), "no-rotation", maps=2, unused=UNUSED),
    Case(*RVT, INPUT, 10189, BARE, "no-convolution-or-gate", maps=2),
    Case(*RVT, OBLONG_INPUT, 14908, TOKENS, "oblong-tokens", maps=2, repairs=(oblong_rvt, tokens)),
]

PUBLISHED = {}  # there is no paper
EXEMPT = {
    "large_images": "computes positions for any image",
    "dropout_count": "upstream ignores emb_dropout",
}


def draw(rng):
    image, shape = draw_image(rng)
    flags = {name: rng.random() < 0.7 for name in ("use_rotary", "use_ds_conv", "use_glu")}
    yield Case(*RVT, shape, 0, image | draw_blocks(rng) | dict(dim_head=rng.choice((4, 7, 16))) | flags)
