"""Rows of `vit_for_small_dataset`."""

import types

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import set_positions, tokens


def oblong(make):
    """Non-square patches: another projection, with matching positions."""
    from einops.layers.torch import Rearrange
    from torch import nn

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        module = make(image_size=8, patch_size=4, channels=channels, dim=dim, **kwargs)
        (height, width), (ph, pw) = image_size, patch_size
        module.to_patch_embedding.to_patch_tokens = nn.Sequential(
            Rearrange("b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=ph, pw=pw),
            nn.LayerNorm(5 * channels * ph * pw),
            nn.Linear(5 * channels * ph * pw, dim),
        )
        set_positions(module, (height // ph) * (width // pw), before=4)
        return module

    return repaired


def diagonal(make):
    """The paper's shifts: copies cut from the corners of the image, padded by half a patch of zeros."""

    def repaired(*, diagonal_shifts, patch_size, **kwargs):
        module = make(patch_size=patch_size, **kwargs)
        if diagonal_shifts:
            sides = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
            embedding = module.to_patch_embedding
            embedding.forward = types.MethodType(_cut_from(*(side // 2 for side in sides)), embedding)
        return module

    return repaired


def _cut_from(up: int, left: int):
    import torch
    from torch.nn import functional

    def forward(self, x):
        height, width = x.shape[2:]
        wide = functional.pad(x, (left, left, up, up))
        corners = [(0, 0), (0, 2 * left), (2 * up, 0), (2 * up, 2 * left)]
        copies = [wide[:, :, top : top + height, side : side + width] for top, side in corners]
        return self.to_patch_tokens(torch.cat([x, *copies], dim=1))

    return forward


SMALL = ("vit_for_small_dataset", "vit_for_small_dataset:ViT")
PLAIN = IMAGE | BLOCKS
DIAGONAL = PLAIN | dict(pool="mean", heads=1, dim_head=24, diagonal_shifts=True)
TOKENS = PLAIN | OBLONG | dict(num_classes=0, diagonal_shifts=True)

CASES = [
    Case(*SMALL, INPUT, 15687, PLAIN, maps=2),
    Case(*SMALL, INPUT, 15687, DIAGONAL, "diagonal-mean-one-head", maps=2, repairs=(diagonal,)),
    Case(*SMALL, OBLONG_INPUT, 10218, TOKENS, "oblong-tokens", maps=2, repairs=(oblong, diagonal, tokens)),
]


def _published(count: int) -> tuple[int, float]:
    """Count of the authors' code with 200 classes, plus 800 classes, minus a temperature for each of 12 heads."""
    return count + 800 * 193 - 9 * 11, 0.0


PUBLISHED = {
    "vit_for_small_dataset/cifar": _published(2_766_548),
    "vit_for_small_dataset/tiny_imagenet": _published(2_906_228),  # paper: 2.9 million
}


def draw(rng):
    image, shape = draw_image(rng)
    flags = dict(pool=rng.choice(("cls", "mean")), diagonal_shifts=rng.random() < 0.5)
    yield Case(*SMALL, shape, 0, image | draw_blocks(rng) | flags, repairs=(diagonal,))
