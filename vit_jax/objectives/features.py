"""Features from the output of any encoder: one vector for an image, or one for each region.

Encoders return vectors (b, d), tokens (b, n, d), or feature maps (b, h, w, d) with any number of axes. Of several
outputs the first one is used. The first token is the class token if the encoder has `pool="cls"`. An encoder with other
tokens before the patches has their number as `tokens_before`.
"""

import math
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import patch_grid


def pooled(encoder: nn.Module, outputs: Any) -> Float[Array, "b d"]:
    """Return one vector for each image: the class token, or the mean of the patches or the feature map."""
    x = _first(outputs)
    if x.ndim == 3:
        return x[:, 0] if getattr(encoder, "pool", "mean") == "cls" else x[:, _before(encoder) :].mean(axis=1)
    return x.mean(axis=tuple(range(1, x.ndim - 1)))


def regions(encoder: nn.Module, outputs: Any) -> Float[Array, "b n d"]:
    """Return a vector for each pixel of the feature map, or each token but those before the patches.

    Raises:
        ValueError: for an encoder that returns one vector for an image.
    """
    x = _first(outputs)
    if x.ndim == 2:
        raise ValueError(f"encoder={type(encoder).__name__}: expected one that returns tokens or a map, not a vector")
    if x.ndim == 3:
        return x[:, _before(encoder) :]
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def patch_map(encoder: nn.Module, outputs: Any, image_size: tuple[int, int]) -> Float[Array, "b h w d"]:
    """Return the feature map of images of this (height, width), which tokens form without those before the patches.

    Raises:
        ValueError: for outputs that are no map, because patches were pooled, merged or left out.
    """
    x = _first(outputs)
    if x.ndim == 4:
        return x
    grid = None
    if x.ndim == 3:
        of_size = getattr(encoder, "patch_size", None)
        patches = x.shape[1] - _before(encoder)
        if of_size is not None:  # whatever else comes before the patches
            patches = min(patches, math.prod(patch_grid(image_size, of_size)))
        grid = token_grid(encoder, image_size, patches)
    if grid is None:
        raise ValueError(
            f"{type(encoder).__name__} returns features of shape {x.shape[1:]} for images of {image_size}: expected a "
            "token for each patch, or a map"
        )
    return x[:, -math.prod(grid) :].reshape(x.shape[0], *grid, x.shape[-1])


def token_grid(model: nn.Module, size: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the patch grid.

    Args:
        model: the model. Without a `patch_size`, the grid is assumed to have the aspect ratio of the image.
        size: height and width of the image in pixels.
        tokens: number of tokens.

    Returns:
        Rows and columns; None if the tokens do not form such a grid because they include registers, or were merged or
        sampled.
    """
    if getattr(model, "patch_size", None) is not None:
        rows, columns = patch_grid(size, model.patch_size)
        return (rows, columns) if rows * columns == tokens else None
    rows = max(1, round((tokens * size[0] / size[1]) ** 0.5))
    columns = tokens // rows
    return (rows, columns) if rows * columns == tokens and rows * size[1] == columns * size[0] else None


def _before(encoder: nn.Module) -> int:
    """Number of tokens before the patches."""
    return getattr(encoder, "tokens_before", int(getattr(encoder, "pool", "mean") == "cls"))


def check_encoder(encoder: nn.Module) -> None:
    """Raise ValueError for an encoder that returns logits."""
    if getattr(encoder, "num_classes", 0):
        raise ValueError(f"encoder.num_classes={encoder.num_classes}: expected 0, an encoder that returns features")


def _first(outputs: Any) -> Array:
    return jax.tree.leaves(outputs)[0]
