"""Rows of `vit_5`."""

import types

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image


def oblong_rotations(make):
    """Rotations for an oblong grid of patches, as upstream's for a square one."""
    import torch

    def repaired(*, image_size, patch_size, **kwargs):
        module = make(image_size=image_size, patch_size=patch_size, **kwargs)
        rows, columns = (side // patch for side, patch in zip(image_size, patch_size, strict=True))
        rotary = module.rotary_emb

        def forward(self, x):
            grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
            patches = torch.cat([axis[:, None] * self.patch_inv_freq for axis in grid.unbind(1)], dim=1)
            registers = torch.arange(self.num_registers)[:, None] * self.reg_inv_freq
            angles = torch.cat([registers, patches]).repeat_interleave(2, dim=1)[None, None]
            return angles.sin(), angles.cos()

        rotary.forward = types.MethodType(forward, rotary)
        return module

    return repaired


VIT_5 = ("vit_5", "vit_5:ViT")
PLAIN = IMAGE | BLOCKS
TOKENS = PLAIN | OBLONG | dict(num_classes=0, num_registers=3)
BARE = PLAIN | dict(num_registers=0, heads=1, dim_head=24)

CASES = [
    Case(*VIT_5, INPUT, 10797, PLAIN, maps=2),
    Case(*VIT_5, INPUT, 9469, BARE, "no-registers", maps=2),
    Case(*VIT_5, OBLONG_INPUT, 9568, TOKENS, "oblong-tokens", maps=2, repairs=(oblong_rotations,)),
]

# From the authors' repository, in millions; it has no count of the largest model.
PUBLISHED = {"vit_5/small": (22e6, 0.01), "vit_5/base": (87e6, 0.01), "vit_5/large": (304e6, 0.01)}


def draw(rng):
    image, shape = draw_image(rng)
    kwargs = image | draw_blocks(rng) | dict(dim_head=4 * rng.randint(1, 5), num_registers=rng.randint(0, 5))
    yield Case(*VIT_5, shape, 0, kwargs)
