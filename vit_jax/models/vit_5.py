"""ViT-5: the plain ViT with RMSNorm, QK-norm, LayerScale, rotary positions and registers.

Derives from the frame `PlainViT` and overrides the transformer, the patch projection, the tokens and the
head.

Source: Wang et al. 2026, arXiv:2602.08071. Upstream: vit_pytorch/vit_5.py.
Differs from upstream: images may be non-square and smaller than `image_size`; tokens and positions have an
initial std of 0.02 (upstream: 1).
Differs from the paper: the rotary base of patches is 100,000 (the authors' code: 10,000); registers come before the
patches, have learned positions, as the class token does, and rotate as a sequence (theirs: as a square grid).
Axes: b batch, n tokens, p rotated tokens, d dim, h heads, i query, j key.
"""

import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_PROJECTION_RULES, TRANSFORMER_RULES
from vit_jax.layers import Dense, DropPath, FeedForward, NormedBlocks, PatchProjection, attend, l2_normalize, rotate
from vit_jax.layers.check import at_least, expect, pair, patch_grid
from vit_jax.layers.shapes import Images, Patches, Tokens
from vit_jax.layers.to_heads import ToHeads


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis. Source: Zhang and Sennrich 2019, arXiv:1910.07467."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        g = self.param("g", nn.initializers.ones, x.shape[-1:])
        return l2_normalize(x) * x.shape[-1] ** 0.5 * jnp.expand_dims(g, range(x.ndim - 1))


def frequencies(base: float, width: int) -> np.ndarray:
    """Radians per step for each pair of features, float32 (width / 2,)."""
    return (base ** -(np.arange(0, width, 2) / width)).astype(np.float32)


def rotations(registers: int, rows: int, columns: int, dim_head: int) -> np.ndarray:
    """Sine and cosine, float32 (2, p, dim_head), of registers by their index and patches by row and column."""
    row, column = np.mgrid[:rows, :columns].reshape(2, -1, 1) * frequencies(100_000.0, dim_head // 2)
    of_registers = np.arange(registers)[:, None] * frequencies(100.0, dim_head)
    angles = np.repeat(np.concatenate([of_registers, np.concatenate([row, column], axis=1)]), 2, axis=1)
    return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys, rotated except for those of the first token."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, sin_cos: Float[Array, "2 p f"], *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(RMSNorm(name="norm")(x))
        q, k = rotate(RMSNorm(name="q_norm")(q), sin_cos), rotate(RMSNorm(name="k_norm")(k), sin_cos)
        out = attend(self, q, k, v, dropout=self.dropout, train=train)
        if self.heads == 1 and self.dim_head == x.shape[-1]:
            return out
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class Transformer(NormedBlocks):
    """`NormedBlocks` with a LayerScale in every branch."""

    def add(self, x: Tokens, out: Tokens, part: str, i: int, drop_path: DropPath) -> Tokens:
        name = {"attn": f"ls1_{i}", "ff": f"ls2_{i}"}[part]
        return x + drop_path(out * self.param(name, nn.initializers.constant(1e-4), x.shape[-1:])[None, None])


class ViT5(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    The class token comes first, then the registers, then the patches. An image may be smaller than
    `image_size`; it then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head, a multiple of 4.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        num_registers: number of register tokens.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or 4 does not divide `dim_head`.
    """

    pool: ClassVar[str] = "cls"
    num_registers: int = 4

    def __post_init__(self):
        expect(self, "dim_head", self.dim_head % 4 == 0, "a multiple of 4, as pairs of features rotate along two axes")
        at_least(self, num_registers=0)
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout, RMSNorm)
        return Transformer(self.depth, attention, feed_forward, RMSNorm, drop_path=self.drop_path)

    def make_patch_embedding(self) -> nn.Module:
        return PatchProjection(pair("patch_size", self.patch_size), self.dim)

    def make_head(self) -> nn.Module:
        return Dense(self.num_classes)

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        init, count = nn.initializers.normal(0.02), self.num_registers
        pos_embedding = self.param("pos_embedding", init, (patches + 1 + count, self.dim))
        tokens = self.param("cls_token", init, (1, self.dim))
        if count:
            tokens = jnp.concatenate([tokens, self.param("register_tokens", init, (count, self.dim))])
        return tokens, pos_embedding

    def encode(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Tokens:
        """Tokens after the transformer: the class token, the registers, the patches."""
        x = self.embed(images, patches=patches, train=train)
        sin_cos = rotations(self.num_registers, *patch_grid(images.shape[1:3], self.patch_size), self.dim_head)
        return self.transform(x, jnp.asarray(sin_cos, x.dtype), train=train)

    torch_rules = (*PATCH_PROJECTION_RULES, (r"ls(\d)_(\d+)", r"ls\1.\2"), *TRANSFORMER_RULES)

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Frequencies of the rotations."""
        return {
            "rotary_emb.patch_inv_freq": frequencies(100_000.0, self.dim_head // 2),
            "rotary_emb.reg_inv_freq": frequencies(100.0, self.dim_head),
        }


PRESETS = {
    "tiny": TINY,
    "small": vit_sizes(384),
    "base": vit_sizes(768),
    "large": vit_sizes(1024, depth=24),
    "xlarge": vit_sizes(1152, depth=28, heads=16, dim_head=72),
}
