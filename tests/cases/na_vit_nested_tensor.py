"""Rows of `na_vit_nested_tensor`: their input is a list of images."""

import importlib
import warnings

from tests.cases.case import Case, draw_blocks
from tests.cases.na_vit import EXEMPT, OBLONG, PLAIN, SIZES, draw_images, features

__all__ = ["EXEMPT"]


def gradients_in(file: str):
    """A repair of `file`: gradients before the nested tensor, which `nested_tensor` stops."""

    def repair(make):
        import torch

        def repaired(**kwargs):
            module = make(**kwargs)
            forward = module.forward

            def quiet(images):
                with warnings.catch_warnings(action="ignore"):  # torch warns that nested tensors are a prototype
                    return forward(images)

            module.forward = quiet
            return module

        importlib.import_module(f"vit_pytorch.{file}").nested_tensor = torch.nested.as_nested_tensor
        return repaired

    return repair


gradients = gradients_in("na_vit_nested_tensor")
NESTED = ("na_vit_nested_tensor", "na_vit_nested_tensor:NaViT")
NO_NORM = PLAIN | dict(depth=1, qk_rmsnorm=False, token_dropout_prob=0.5)

CASES = [
    Case(*NESTED, SIZES, 12752, PLAIN, maps=3, repairs=(gradients,)),
    Case(*NESTED, ((4, 4, 3), (16, 8, 3)), 8384, NO_NORM, "no-qk-norm", maps=2, repairs=(gradients,)),
    Case(*NESTED, ((8, 12, 1), (4, 16, 1)), 11728, OBLONG, "oblong-features", maps=3, repairs=(gradients, features)),
]

# Our own counts, as the paper gives none.
_SIZES = {"b32": 90_509_696, "b16": 88_746_368, "l16": 308_207_232}
PUBLISHED = {f"na_vit_nested_tensor/{size}": (count, 0) for size, count in _SIZES.items()}


def draw(rng):
    image, shapes = draw_images(rng)
    flags = dict(qk_rmsnorm=rng.random() < 0.5)
    yield Case(*NESTED, shapes, 0, image | draw_blocks(rng) | flags, repairs=(gradients,))
