"""SimpleViT with relative positions: each query weighs learned curves over distance, whose sum biases its scores.

Source: the Inkling model of Thinking Machines, as upstream names it.
Upstream: vit_pytorch/simple_vit_with_relative_proj_pos_bias.py.
Differs from upstream: rows and columns are those of the image at hand; `num_classes=0` gives tokens (b, n, d)
(upstream's are a grid until they are pooled).
Axes: b batch, n patches, d dim, h heads, i query, j key, w rows and columns, m curves, r distances.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, softmax
from vit_jax.layers.check import at_least, patch_grid
from vit_jax.layers.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.models.simple_vit import PRESETS as SIMPLE_PRESETS
from vit_jax.models.simple_vit import SimpleViT


class RelativeProjPosBias(nn.Module):
    """Bias of attention scores for tokens of a `grid`, by distance in rows and in columns.

    Patches that are `max_dist` or more apart, along either, get none.
    """

    grid: tuple[int, int]
    heads: int
    num_distance_basis: int
    max_dist: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b h n n"]:
        basis, span = self.num_distance_basis, 2 * self.max_dist - 1
        weights = Dense(self.heads * 2 * basis, name="to_distance_weights")(x)
        weights = rearrange(weights, "b n (w h m) -> w b h n m", w=2, h=self.heads)
        banks = self.param("distance_banks", nn.initializers.normal(0.02), (2, basis, span))

        coordinates = np.indices(self.grid).reshape(2, -1)
        distances = coordinates[:, :, None] - coordinates[:, None, :]  # (w, i, j)
        near = (np.abs(distances) < self.max_dist).all(axis=0)
        index = np.clip(distances + self.max_dist - 1, 0, span - 1)
        curves = jnp.stack([banks[w][:, index[w]] for w in (0, 1)])
        bias = jnp.einsum("wbhim,wmij->bhij", weights, curves)
        return jnp.where(near[None, None], bias, 0)


class Attention(nn.Module):
    """Self-attention, without any bias in its projections, with relative positions."""

    grid: tuple[int, int]
    heads: int
    dim_head: int
    num_distance_basis: int
    max_dist: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        relative = RelativeProjPosBias(
            self.grid, self.heads, self.num_distance_basis, self.max_dist, name="rel_pos_bias"
        )
        bias = relative(x)
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5 + bias)
        self.sow("intermediates", "attn", attn)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return Dense(dim, use_bias=False, name="to_out")(out)


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward over tokens of a `grid`, and a last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    num_distance_basis: int
    max_dist: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b n d"]:
        for i in range(self.depth):
            positions = (self.num_distance_basis, self.max_dist)
            x = x + Attention(grid, self.heads, self.dim_head, *positions, name=f"attn_{i}")(x)
            x = x + FeedForward(self.mlp_dim, name=f"ff_{i}")(x)
        return LayerNorm(name="norm")(x)


class RelativeBiasViT(SimpleViT):
    """SimpleViT with `num_distance_basis` curves over up to `max_dist` patches in every layer."""

    num_distance_basis: int = 16
    max_dist: int = 512

    def __post_init__(self):
        at_least(self, num_distance_basis=1, max_dist=1)
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        blocks = (self.depth, self.heads, self.dim_head, self.mlp_dim)
        return Transformer(*blocks, self.num_distance_basis, self.max_dist)

    def encode(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b n d"]:
        """Tokens after the transformer. Extra tokens would have no place in the grid."""
        return self.transformer(self.embed(images), patch_grid(images.shape[1:3], self.patch_size))


PRESETS = SIMPLE_PRESETS  # upstream names no sizes

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_(\d+)/rel_pos_bias/to_distance_weights", r"layers.\1.0.rel_pos_bias.to_distance_weights.0"),
    (r"attn_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net", fc2=3),
)
