"""RvT: a ViT that knows positions by rotary embeddings, convolves its queries and gates its feed-forward blocks.

Upstream: vit_pytorch/rvt.py (no paper; the rotations are Su et al. 2021, arXiv:2104.09864, along two axes).
Differs from upstream: images and patches may be non-square, and then rotations reach as far as the longer side says;
`emb_dropout` acts (upstream: ignored); `num_classes=0` gives tokens; the class token starts at a deviation of 0.02
(upstream: 1).
Axes: b batch, n tokens, p patches, d dim, f features of a head, r rotated ones, h heads, i query, j key, k classes.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, DepthwiseConv, LayerNorm, NormHead, PatchProjection, gelu, prepend, softmax
from vit_jax.layers.check import check_arguments, check_images, pair, patch_grid
from vit_jax.layers.rules import HEAD_RULES, PATCH_PROJECTION_RULES, feed_forward_rules


def frequencies(dim_head: int, max_freq: int) -> np.ndarray:
    """Half turns from the middle of an image to its edge, float32 (dim_head / 4,)."""
    return np.linspace(1.0, max_freq / 2, dim_head // 4).astype(np.float32)


def rotations(rows: int, columns: int, turns: np.ndarray) -> np.ndarray:
    """Sine and cosine, float32 (2, p, r), of patches by their row, then by their column, from -1 to 1."""
    grid = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    angles = np.concatenate([axis.reshape(-1, 1) * turns * np.pi for axis in grid], axis=1).repeat(2, axis=1)
    return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)


def rotate(x: Float[Array, "b h n f"], sin_cos: Float[Array, "2 p r"]) -> Float[Array, "b h n f"]:
    """Turns the first r features of every token but the first, in pairs, by the angles given."""
    sin, cos = sin_cos[:, None, None]
    turned, rest = x[:, :, 1:, : sin.shape[-1]], x[:, :, 1:, sin.shape[-1] :]
    quarter = jnp.stack([-turned[..., 1::2], turned[..., ::2]], axis=-1).reshape(turned.shape)
    patches = jnp.concatenate([turned * cos + quarter * sin, rest], axis=-1)
    return jnp.concatenate([x[:, :, :1], patches], axis=2)


class ConvQuery(nn.Module):
    """Queries (b, n, features): of patches by a separable convolution, of the class token by a map of its own."""

    features: int
    rows: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        token, grid = x[:, :1], rearrange(x[:, 1:], "b (h w) d -> b h w d", h=self.rows)
        if self.features != x.shape[-1]:
            token = Dense(self.features, name="cls_proj")(token)
        grid = DepthwiseConv(kernel=5, use_bias=False, name="depthwise")(grid)
        grid = nn.Conv(self.features, (1, 1), use_bias=False, name="pointwise")(grid)
        return jnp.concatenate([token, rearrange(grid, "b h w d -> b (h w) d")], axis=1)


class Attention(nn.Module):
    """Self-attention; `sin_cos` rotates queries and keys of patches unless it is None."""

    heads: int
    dim_head: int
    dropout: float
    use_ds_conv: bool
    rows: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], sin_cos: Float[Array, "2 p r"] | None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        to_q = (
            ConvQuery(inner_dim, self.rows, name="to_q") if self.use_ds_conv else Dense(inner_dim, False, name="to_q")
        )
        kv = Dense(2 * inner_dim, use_bias=False, name="to_kv")(x)
        q, k, v = rearrange(jnp.concatenate([to_q(x), kv], -1), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        if sin_cos is not None:
            q, k = rotate(q, sin_cos), rotate(k, sin_cos)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class FeedForward(nn.Module):
    """The feed-forward block; with `use_glu` half of a doubled hidden layer gates the other (arXiv:2002.05202)."""

    hidden_dim: int
    dropout: float
    use_glu: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        hidden = Dense(self.hidden_dim * (2 if self.use_glu else 1), name="fc1")(LayerNorm(name="norm")(x))
        if self.use_glu:
            values, gates = jnp.split(hidden, 2, axis=-1)
            hidden = values * gelu(gates)
        else:
            hidden = gelu(hidden)
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="fc2")(hidden), deterministic=not train)


class RvT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d), class token first.

    An image may have another size than `image_size`, which says how far rotations reach.
    Raises ValueError when `patch_size` does not divide `image_size`.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    use_rotary: bool = True
    use_ds_conv: bool = True
    use_glu: bool = True

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        x = PatchProjection(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        x = prepend(self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.dim)), x)
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)

        rows, columns = patch_grid(images.shape[1:3], self.patch_size)
        turns = frequencies(self.dim_head, max(pair("image_size", self.image_size)))
        sin_cos = jnp.asarray(rotations(rows, columns, turns), x.dtype) if self.use_rotary else None
        for i in range(self.depth):
            attn = Attention(self.heads, self.dim_head, self.dropout, self.use_ds_conv, rows, name=f"attn_{i}")
            x = x + attn(x, sin_cos, train=train)
            x = x + FeedForward(self.mlp_dim, self.dropout, self.use_glu, name=f"ff_{i}")(x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(x[:, 0]) if self.num_classes else x


PRESETS = {"tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128)}

TORCH_RULES = (
    *PATCH_PROJECTION_RULES,
    (r"attn_(\d+)/to_q/depthwise", r"transformer.layers.\1.0.to_q.conv.net.0"),
    (r"attn_(\d+)/to_q/pointwise", r"transformer.layers.\1.0.to_q.conv.net.1"),
    (r"attn_(\d+)/to_out", r"transformer.layers.\1.0.to_out.0"),
    (r"attn_(\d+)", r"transformer.layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"transformer.layers.\1.1.net"),
    *HEAD_RULES,
)


def torch_constants(model: RvT) -> dict[str, np.ndarray]:
    """Frequencies of the rotations."""
    scales = frequencies(model.dim_head, max(pair("image_size", model.image_size)))
    return {"transformer.pos_emb.scales": scales}
