"""ViT for small datasets: patches that see beyond their edges, and tokens that attend to all but themselves.

Source: Lee et al. 2021, arXiv:2112.13492. Upstream: vit_pytorch/vit_for_small_dataset.py.
Differs from upstream: `diagonal_shifts` gives the paper's; patches may be non-square; `num_classes=0` gives tokens;
tokens and positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: copies of the image move by one pixel, up, down or sideways, unless `diagonal_shifts`; the heads
of a layer share one temperature (authors' code: one each), learned as its logarithm.
Axes: b batch, n tokens, d dim, k classes.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY
from vit_jax.frames.rules import HEAD_RULES, TRANSFORMER_RULES, sequential_rules
from vit_jax.layers import Attention, Dense, LayerNorm, ToHeads, attend
from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.shapes import Images, Tokens


class ShiftedPatchTokenization(nn.Module):
    """Image (b, H, W, c), and four shifted copies on top of it, to tokens (b, n, dim)."""

    patch_size: tuple[int, int]
    dim: int
    diagonal: bool

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "b n {self.dim}"]:
        patch_grid(images.shape[1:3], self.patch_size)
        ph, pw = self.patch_size
        down, right = ph // 2, pw // 2
        shifts = ((0, 1), (0, -1), (1, 0), (-1, 0))
        if self.diagonal:
            shifts = ((down, right), (down, -right), (-down, right), (-down, -right))
        x = jnp.concatenate([images, *(shift(images, *offset) for offset in shifts)], axis=-1)
        x = rearrange(x, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)
        return Dense(self.dim, name="proj")(LayerNorm(name="norm")(x))


def shift(images: Images, down: int, right: int) -> Images:
    """`images` moved by so many pixels (up and left where negative); zeros move in."""
    _, height, width, _ = images.shape
    pad_y, pad_x = abs(down), abs(right)
    padded = jnp.pad(images, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0)))
    top, left = pad_y - down, pad_x - right
    return padded[:, top : top + height, left : left + width]


class LocalitySelfAttention(Attention):
    """Self-attention with a learned temperature, in which no token attends to itself."""

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        temperature = self.param("temperature", nn.initializers.constant(-0.5 * math.log(self.dim_head)), ())
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(self.norm(name="norm")(x))
        scale = jnp.exp(temperature.astype(jnp.float32)).astype(x.dtype)
        others = ~jnp.eye(x.shape[1], dtype=bool)[None, None]
        out = attend(self, q, k, v, scale=scale, mask=others, dropout=self.dropout, train=train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class ViTForSmallDataset(PlainViT):
    """The plain ViT with shifted patches and locality self-attention.

    With `diagonal_shifts` the copies of the image move as in the paper, by half a patch along both axes.
    """

    patches_leak: ClassVar[bool] = True  # tokens include their neighbours' edges
    diagonal_shifts: bool = False

    def make_patch_embedding(self) -> nn.Module:
        return ShiftedPatchTokenization(pair("patch_size", self.patch_size), self.dim, self.diagonal_shifts)

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(LocalitySelfAttention, self.heads, self.dim_head, self.dropout)

    torch_rules = (
        *sequential_rules("to_patch_embedding", "to_patch_embedding.to_patch_tokens", norm=1, proj=2),
        *TRANSFORMER_RULES,
        *HEAD_RULES,
    )


_CIFAR = TINY | dict(dim=192, depth=9, heads=12, mlp_dim=384, diagonal_shifts=True)
PRESETS = {"tiny": TINY, "cifar": _CIFAR, "tiny_imagenet": _CIFAR | dict(image_size=64, patch_size=8)}
