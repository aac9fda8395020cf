"""ViT-5: the plain ViT with what language models taught since: RMSNorm, QK-norm, LayerScale, rotations, registers.

Source: Wang et al. 2026, arXiv:2602.08071. Upstream: vit_pytorch/vit_5.py.
Differs from upstream: images may be non-square and smaller than `image_size`; tokens and positions start at a
deviation of 0.02 (upstream: 1).
Differs from the paper: patches rotate at base 100,000 (the authors' code: 10,000); registers stand before the patches,
have learned positions, as the class token does, and rotate as a sequence (theirs: as a square grid).
Axes: b batch, n tokens, p rotated tokens, d dim, h heads, i query, j key.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, PatchProjection, PlainViT, gelu, l2_normalize, softmax
from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.rules import PATCH_PROJECTION_RULES, feed_forward_rules


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
    def __call__(
        self, x: Float[Array, "b n d"], sin_cos: Float[Array, "2 p f"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(RMSNorm(name="norm")(x))
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        q, k = rotate(RMSNorm(name="q_norm")(q), sin_cos), rotate(RMSNorm(name="k_norm")(k), sin_cos)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        if self.heads == 1 and self.dim_head == dim:
            return out
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


def rotate(x: Float[Array, "b h n f"], sin_cos: Float[Array, "2 p f"]) -> Float[Array, "b h n f"]:
    """Turns pairs of features by the angles given, of every token but the first."""
    sin, cos = sin_cos[:, None, None]
    first, x = x[:, :, :1], x[:, :, 1:]
    turned = jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    return jnp.concatenate([first, x * cos + turned * sin], axis=2)


class FeedForward(nn.Module):
    """The feed-forward block with RMSNorm."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        hidden = gelu(Dense(self.hidden_dim, name="fc1")(RMSNorm(name="norm")(x)))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="fc2")(hidden), deterministic=not train)


class Transformer(nn.Module):
    """`depth` blocks whose every branch has a LayerScale, and a last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], sin_cos: Float[Array, "2 p f"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        layer_scale = lambda name: self.param(name, nn.initializers.constant(1e-4), x.shape[-1:])[None, None]
        for i in range(self.depth):
            attn = Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")
            ff = FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")
            x = x + attn(x, sin_cos, train=train) * layer_scale(f"ls1_{i}")
            x = x + ff(x, train=train) * layer_scale(f"ls2_{i}")
        return RMSNorm(name="norm")(x)


class ViT5(PlainViT):
    """The plain ViT with `num_registers` registers between the class token and the patches.

    Raises ValueError besides when `dim_head` is no multiple of 4, half of it for either axis, in pairs.
    """

    pool: ClassVar[str] = "cls"
    num_registers: int = 4

    def __post_init__(self):
        if self.dim_head % 4:
            raise ValueError(f"dim_head={self.dim_head}: expected a multiple of 4, pairs for either axis")
        if self.num_registers < 0:
            raise ValueError(f"num_registers={self.num_registers}: expected at least 0")
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)

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

    def encode(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b n d"]:
        """Tokens after the transformer: the class token, the registers, the patches."""
        x = self.embed(images, train=train)
        grid = patch_grid(images.shape[1:3], self.patch_size)
        sin_cos = rotations(self.num_registers, *grid, self.dim_head)
        return self.transformer(x, jnp.asarray(sin_cos, x.dtype), train=train)


def _paper(dim, depth, heads):
    return dict(image_size=224, patch_size=16, dim=dim, depth=depth, heads=heads, mlp_dim=4 * dim)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "small": _paper(384, 12, 6),
    "base": _paper(768, 12, 12),
    "large": _paper(1024, 24, 16),
    "xlarge": {**_paper(1152, 28, 16), "dim_head": 72},
}

TORCH_RULES = (
    *PATCH_PROJECTION_RULES,
    (r"ls(\d)_(\d+)", r"ls\1.\2"),
    (r"attn_(\d+)/to_out", r"layers.\1.0.to_out.0"),
    (r"attn_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net"),
)


def torch_constants(model: ViT5) -> dict[str, np.ndarray]:
    """Frequencies of the rotations."""
    return {
        "rotary_emb.patch_inv_freq": frequencies(100_000.0, model.dim_head // 2),
        "rotary_emb.reg_inv_freq": frequencies(100.0, model.dim_head),
    }
