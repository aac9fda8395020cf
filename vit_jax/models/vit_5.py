"""ViT-5: the plain ViT with what language models taught since: RMSNorm, QK-norm, LayerScale, rotations, registers.

Source: Wang et al. 2026, arXiv:2602.08071. Upstream: vit_pytorch/vit_5.py.
Differs from upstream: images may be non-square and smaller than `image_size`; tokens and positions start at a
deviation of 0.02 (upstream: 1).
Differs from the paper: patches rotate at base 100,000 (the authors' code: 10,000); registers stand before the patches,
have learned positions, as the class token does, and rotate as a sequence (theirs: as a square grid).
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
from vit_jax.layers import Dense, FeedForward, NormedBlocks, PatchProjection, attend, l2_normalize, rotate
from vit_jax.layers.check import at_least, expect, pair, patch_grid
from vit_jax.layers.shapes import Images, Patches, Tokens
from vit_jax.layers.to_heads import ToHeads


class RMSNorm(nn.Module):
    """Divides by the root of the mean square over the last axis. Source: Zhang and Sennrich 2019, arXiv:1910.07467."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        g = self.param("g", nn.initializers.ones, x.shape[-1:])
        return l2_normalize(x) * x.shape[-1] ** 0.5 * jnp.expand_dims(g, range(x.ndim - 1))


def frequencies(base: float, width: int) -> np.ndarray:
    """Radians per step, float32 (width / 2,), of features that turn in pairs."""
    return (base ** -(np.arange(0, width, 2) / width)).astype(np.float32)


def rotations(registers: int, rows: int, columns: int, dim_head: int) -> np.ndarray:
    """Sine and cosine, float32 (2, p, dim_head), of registers by their number and patches by their row and column."""
    row, column = np.mgrid[:rows, :columns].reshape(2, -1, 1) * frequencies(100_000.0, dim_head // 2)
    of_registers = np.arange(registers)[:, None] * frequencies(100.0, dim_head)
    angles = np.repeat(np.concatenate([of_registers, np.concatenate([row, column], axis=1)]), 2, axis=1)
    return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys, rotated but for those of the first token."""

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
    """`NormedBlocks` whose every branch has a LayerScale."""

    def add(self, x: Tokens, out: Tokens, part: str, i: int) -> Tokens:
        name = {"attn": f"ls1_{i}", "ff": f"ls2_{i}"}[part]
        return x + out * self.param(name, nn.initializers.constant(1e-4), x.shape[-1:])[None, None]


class ViT5(PlainViT):
    """The plain ViT with `num_registers` registers between the class token and the patches.

    Raises ValueError besides when `dim_head` is no multiple of 4, half of it for either axis, in pairs.
    """

    pool: ClassVar[str] = "cls"
    num_registers: int = 4

    def __post_init__(self):
        expect(self, "dim_head", self.dim_head % 4 == 0, "a multiple of 4, pairs for either axis")
        at_least(self, num_registers=0)
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout, RMSNorm)
        return Transformer(self.depth, attention, feed_forward, RMSNorm)

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
        return self.transformer(x, jnp.asarray(sin_cos, x.dtype), train=train)

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
