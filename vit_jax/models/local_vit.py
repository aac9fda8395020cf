"""LocalViT: feed-forwards that see their neighbours, through a depthwise convolution over the grid of patches.

Source: Li et al. 2021, arXiv:2104.05707. Upstream: vit_pytorch/local_vit.py.
Differs from upstream: it runs (upstream's LayerNorm meets channels-first maps and raises); images and patches may be
non-square; `pool` may be "mean"; `num_classes=0` gives tokens; tokens and positions start at 0.02 (upstream: 1).
Differs from the paper: a LayerNorm in front and none of BatchNorm between the convolutions, a convolution of one pixel
more behind the depthwise one, and no squeeze-and-excitation.
Axes: b batch, n tokens, d dim, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, DepthwiseConv, LayerNorm, PlainViT, softmax
from vit_jax.layers.check import patch_grid
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES


class Attention(nn.Module):
    """Plain self-attention, always with an output projection."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class ConvFeedForward(nn.Module):
    """Inverted residual block over the grid of patches, without the residual."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b h w d"]:
        dim = x.shape[-1]
        x = LayerNorm(name="norm")(x)
        x = nn.hard_swish(nn.Conv(self.hidden_dim, (1, 1), name="expand")(x))
        x = DepthwiseConv(kernel=3, name="depthwise")(x)
        x = nn.hard_swish(nn.Conv(self.hidden_dim, (1, 1), name="pointwise")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = nn.Conv(dim, (1, 1), name="project")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class Transformer(nn.Module):
    """`depth` blocks of attention among all tokens and a feed-forward that passes by the first, the class token."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], rows: int, *, train: bool = False) -> Float[Array, "b n d"]:
        for i in range(self.depth):
            x = x + Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train)
            grid = rearrange(x[:, 1:], "b (h w) d -> b h w d", h=rows)
            grid = grid + ConvFeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(grid, train=train)
            x = jnp.concatenate([x[:, :1], rearrange(grid, "b h w d -> b (h w) d")], axis=1)
        return x


class LocalViT(PlainViT):
    """The plain ViT with convolutions in its feed-forwards."""

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)

    def encode(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b n d"]:
        """Tokens after the transformer; extra ones would have no place in the grid."""
        tokens = self.embed(images, train=train)
        rows, _ = patch_grid(images.shape[1:3], self.patch_size)
        return self.transformer(tokens, rows, train=train)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "t": dict(image_size=224, patch_size=16, dim=192, depth=12, heads=4, dim_head=48, mlp_dim=768),
    "s": dict(image_size=224, patch_size=16, dim=384, depth=12, heads=6, mlp_dim=1536),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_(\d+)/to_out", r"layers.\1.0.fn.to_out.0"),
    (r"attn_(\d+)", r"layers.\1.0.fn"),
    (r"ff_(\d+)/norm", r"layers.\1.1.fn.fn.net.0"),
    (r"ff_(\d+)/expand", r"layers.\1.1.fn.fn.net.1"),
    (r"ff_(\d+)/depthwise", r"layers.\1.1.fn.fn.net.3.net.0"),
    (r"ff_(\d+)/pointwise", r"layers.\1.1.fn.fn.net.3.net.1"),
    (r"ff_(\d+)/project", r"layers.\1.1.fn.fn.net.6"),
    *HEAD_RULES,
)
