"""nViT: tokens and the vectors of every weight matrix stay on the unit sphere, and layers move tokens along it.

Source: Loshchilov et al. 2024 (nGPT), arXiv:2410.01131. Upstream: vit_pytorch/normalized_vit.py.
Differs from upstream: patches may be non-square; `num_classes=0` gives tokens.
Differs from the paper: images instead of text, so positions are learned, not rotary, and tokens are pooled; the
projection of patches and the head are normalised as well; scales are not stored divided by their initial size.
Axes: b batch, n patches, d dim, h heads, i query, j key, e extra tokens, k classes.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import add_positions, append, l2_normalize, softmax
from vit_jax.layers.check import at_least, check_images, pair, patch_grid
from vit_jax.models.simple_vit import SimpleViT


def unit_columns(kernel: Float[Array, "c d"]) -> Float[Array, "c d"]:
    """`kernel` with the weights of each output feature at length 1."""
    return l2_normalize(kernel.T).T


class NormDense(nn.Module):
    """Linear map without bias, whose kernel has unit vectors: those of its outputs, or with `norm_in` of its inputs."""

    features: int
    norm_in: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch features"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        return x @ (l2_normalize(kernel) if self.norm_in else unit_columns(kernel))


class Attention(nn.Module):
    """Attention by scaled cosines, without the residual."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        split = lambda name: rearrange(
            NormDense(self.heads * self.dim_head, name=name)(x), "b n (h d) -> b h n d", h=self.heads
        )
        init = nn.initializers.constant(self.dim_head**0.25)
        scale = lambda name: self.param(name, init, (self.heads, 1, self.dim_head))[None]
        q = l2_normalize(split("to_q")) * scale("q_scale")
        k = l2_normalize(split("to_k")) * scale("k_scale")
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k))
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, split("to_v")), "b h n d -> b n (h d)")
        return NormDense(x.shape[-1], norm_in=True, name="to_out")(out)


class FeedForward(nn.Module):
    """Gated feed-forward (SwiGLU) through two thirds of `mlp_dim`, without the residual."""

    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim, hidden_dim = x.shape[-1], int(self.mlp_dim * 2 / 3)
        scale = lambda name: self.param(name, nn.initializers.ones, (hidden_dim,))[None, None]
        hidden = NormDense(hidden_dim, name="to_hidden")(x) * scale("hidden_scale")
        gate = NormDense(hidden_dim, name="to_gate")(x) * scale("gate_scale") * dim**0.5
        x = nn.Dropout(self.dropout)(nn.silu(gate) * hidden, deterministic=not train)
        return NormDense(dim, norm_in=True, name="to_out")(x)


class Transformer(nn.Module):
    """`depth` blocks; each branch moves a token part of the way to its output, `lerp_init` at first, feature-wise."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    lerp_init: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        scale = x.shape[-1] ** 0.5
        init = nn.initializers.constant(self.lerp_init / scale)
        for i in range(self.depth):
            attn = Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")
            ff = FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")
            for name, branch in (("attn", attn), ("ff", ff)):
                rate = self.param(f"{name}_lerp_{i}", init, x.shape[-1:]) * scale
                x = l2_normalize(x + rate[None, None] * (l2_normalize(branch(x, train=train)) - x))
        return x


class NormalizedViT(SimpleViT):
    """SimpleViT on the sphere. `residual_lerp_scale_init` is how far a branch moves tokens at first (1 / depth).

    Raises ValueError when two thirds of `mlp_dim` leave no feature.
    """

    dropout: float = 0.0
    residual_lerp_scale_init: float | None = None

    def __post_init__(self):
        at_least(self, mlp_dim=2)
        super().__post_init__()

    def setup(self):
        init = self.residual_lerp_scale_init
        self.to_patch_embedding = NormDense(self.dim, norm_in=True)
        patches = math.prod(patch_grid(self.image_size, self.patch_size))
        self.abs_pos_emb = self.param("abs_pos_emb", nn.initializers.normal(0.02), (patches, self.dim))
        blocks = (self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)
        self.transformer = Transformer(*blocks, 1 / max(1, self.depth) if init is None else init)
        if self.num_classes:
            self.to_pred = NormDense(self.num_classes)
            self.logit_scale = self.param("logit_scale", nn.initializers.ones, (self.num_classes,))

    def embed(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens before the transformer, of length 1: the patches with positions, and the extra tokens."""
        check_images(images, self.channels)
        patch_grid(images.shape[1:3], self.patch_size)
        ph, pw = pair("patch_size", self.patch_size)
        x = rearrange(images, "b (h ph) (w pw) c -> b (h w) (c ph pw)", ph=ph, pw=pw)
        x = add_positions(self.to_patch_embedding(x), l2_normalize(self.abs_pos_emb))
        return l2_normalize(x if extra_tokens is None else append(x, extra_tokens))

    def encode(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer, of length 1: the patches, then the extra tokens."""
        return self.transformer(self.embed(images, extra_tokens), train=train)

    def head(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without the extra ones."""
        return self.to_pred(tokens.mean(axis=1)) * self.logit_scale[None] * self.dim**0.5


def normalize_weights(params: dict) -> dict:
    """`params` with every kernel as the model reads it, for use after a training step: upstream's `norm_weights_`."""

    def normalize(path, leaf):
        module, name = [key.key for key in path][-2:] if len(path) > 1 else (None, path[-1].key)
        if name not in ("kernel", "abs_pos_emb"):
            return leaf
        by_row = name == "abs_pos_emb" or module in ("to_out", "to_patch_embedding")
        return l2_normalize(leaf) if by_row else unit_columns(leaf)

    return jax.tree_util.tree_map_with_path(normalize, params)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "ti16": dict(image_size=224, patch_size=16, dim=192, depth=12, heads=3, mlp_dim=768),
    "s16": dict(image_size=224, patch_size=16, dim=384, depth=12, heads=6, mlp_dim=1536),
    "b16": dict(image_size=224, patch_size=16, dim=768, depth=12, heads=12, mlp_dim=3072),
}

TORCH_RULES = (
    ("to_patch_embedding/kernel", "to_patch_embedding.1.linear.parametrizations.weight.original"),
    ("abs_pos_emb", "abs_pos_emb.linear.parametrizations.weight.original"),
    ("kernel", "linear.parametrizations.weight.original"),
    (r"transformer/attn_lerp_(\d+)", r"residual_lerp_scales.\1.0"),
    (r"transformer/ff_lerp_(\d+)", r"residual_lerp_scales.\1.1"),
    (r"transformer/attn_(\d+)", r"layers.\1.0"),
    (r"transformer/ff_(\d+)", r"layers.\1.1"),
)
