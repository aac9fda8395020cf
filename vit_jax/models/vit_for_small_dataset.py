"""ViT for small datasets: patches of the image and of shifted copies; no token attends to itself.

Derives from the frame `PlainViT` and overrides the attention and the patch embedding.

Source: Lee et al. 2021, arXiv:2112.13492. Upstream: vit_pytorch/vit_for_small_dataset.py.
Differs from upstream: `diagonal_shifts` shifts copies as in the paper; patches may be non-square; `num_classes=0`
gives tokens; tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: copies of the image are shifted by one pixel along one axis, unless `diagonal_shifts`; the heads
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
    """Image (b, H, W, c), concatenated with four shifted copies along the channels, to tokens (b, n, dim)."""

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
    """Shift `images` by pixels (negative: up and left); zeros fill the rest."""
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
        places = jnp.arange(x.shape[1])
        others = places[None, None, :, None] != places[None, None, None]
        out = attend(self, q, k, v, scale=scale, mask=others, dropout=self.dropout, train=train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class ViTForSmallDataset(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        diagonal_shifts: shift the copies by half a patch along both axes, as in the paper.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `pool` is neither "cls" nor
            "mean".
    """

    patches_leak: ClassVar[bool] = True  # a token also depends on the edges of its neighbours
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
