"""ViT with decorrelation: an auxiliary loss keeps the features that layers read, or write, uncorrelated.

Source: Carrigg et al. 2025, arXiv:2510.14657. Upstream: vit_pytorch/vit_with_decorr.py.
Differs from upstream: `num_classes=0` gives tokens; tokens and positions start at a deviation of 0.02 (upstream: 1);
a sample has at least two tokens (upstream: an error); the random subspaces are in the collection `batch_stats`.
Differs from the paper: a loss (paper: a matrix at the input of every layer, which learns by a rule of its own).
Axes: l layers, b batch, n tokens, d dim, s subspaces, e and f features of a subspace.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, LayerNorm, PlainViT, gelu, softmax
from vit_jax.layers.rules import PATCH_EMBED_RULES


class Attention(nn.Module):
    """Plain self-attention, of tokens that are normalised already."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        if self.heads == 1 and self.dim_head == dim:
            return out
        return nn.Dropout(self.dropout)(Dense(dim, name="to_out")(out), deterministic=not train)


class FeedForward(nn.Module):
    """The plain feed-forward block, of tokens that are normalised already."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        hidden = nn.Dropout(self.dropout)(gelu(Dense(self.hidden_dim, name="fc1")(x)), deterministic=not train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="fc2")(hidden), deterministic=not train)


class Transformer(nn.Module):
    """The plain transformer, which also returns what its layers read (normalised) and wrote, (l, b, n, d) each."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], *, train: bool = False
    ) -> tuple[Float[Array, "b n d"], Float[Array, "l b n d"], Float[Array, "l b n d"]]:
        read, written = [], []
        for i in range(self.depth):
            attn = Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")
            ff = FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")
            for layer in (attn, ff):
                read.append(LayerNorm(name=f"{layer.name}_norm")(x))
                written.append(layer(read[-1], train=train))
                x = x + written[-1]
        stack = lambda tokens: jnp.stack(tokens) if tokens else jnp.zeros((0, *x.shape), x.dtype)
        return LayerNorm(name="norm")(x), stack(read), stack(written)


def sample_tokens(key: Array, tokens: Float[Array, "l b n d"], fraction: float) -> Float[Array, "l b m d"]:
    """A `fraction` of the tokens, at least two, drawn without replacement anew for each layer and image."""
    noise = jax.random.uniform(key, tokens.shape[:-1])
    _, kept = jax.lax.top_k(noise, max(2, int(tokens.shape[2] * fraction)))
    return jnp.take_along_axis(tokens, kept[..., None], axis=2)


def decorrelation_loss(
    tokens: Float[Array, "l b n d"], subspaces: Float[Array, "s d e"] | None, mean_center: bool
) -> Float[Array, ""]:
    """Mean square of the products of two different features, summed over layers and subspaces, and at least 0.

    Of features as they are, or less their mean if `mean_center`; in each of `subspaces`, or in the whole space.
    """
    if subspaces is None:
        x = tokens[:, :, None]
    else:
        x = jnp.einsum("lbnd,sde->lbsne", tokens, subspaces.astype(tokens.dtype))
    if mean_center:
        x = x - x.mean(axis=-2, keepdims=True)
    count, dim = x.shape[-2:]
    products = jnp.einsum("lbsne,lbsnf->lbsef", x, x).astype(jnp.float32) / count
    different = (1 - jnp.eye(dim)).reshape(1, 1, 1, dim, dim)
    loss = jnp.sum(jnp.square(products) * different, axis=(0, 2, 3, 4)) / max(1, dim * (dim - 1))
    return loss.mean().astype(tokens.dtype)


class ViTWithDecorrelation(PlainViT):
    """The plain ViT; returns a pair of what `PlainViT` returns and the decorrelation loss, (), or zero.

    The loss is computed when `return_decorr_aux_loss`, which defaults to `train`: of what layers read, over a sample
    of tokens drawn from the rng "dropout" if `decorr_sample_frac` is below 1; or, with
    `decorr_layer_outputs_across_depth`, of what they write, over layers instead of tokens.
    Raises ValueError besides for a fraction outside 0 to 1, and for subspaces that are none or not smaller than `dim`.
    """

    decorr_sample_frac: float = 1.0
    decorr_use_subspace: bool = False
    decorr_dim_subspace: int = 64
    decorr_num_subspaces: int = 1
    decorr_mean_center: bool = False
    decorr_layer_outputs_across_depth: bool = False

    def __post_init__(self):
        if not 0 <= self.decorr_sample_frac <= 1:
            raise ValueError(f"decorr_sample_frac={self.decorr_sample_frac}: expected 0 to 1")
        if self.decorr_use_subspace and not 0 < self.decorr_dim_subspace < self.dim:
            raise ValueError(f"decorr_dim_subspace={self.decorr_dim_subspace}: expected 1 to below dim={self.dim}")
        if self.decorr_num_subspaces < 1:
            raise ValueError(f"decorr_num_subspaces={self.decorr_num_subspaces}: expected at least 1")
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)

    def make_head(self) -> nn.Module:
        return Dense(self.num_classes)

    def setup(self):
        super().setup()
        self.subspaces = None
        if self.decorr_use_subspace and self.decorr_sample_frac > 0:
            self.subspaces = self.variable("batch_stats", "decorr_proj", self._draw_subspaces).value

    def _draw_subspaces(self) -> Float[Array, "s d e"]:
        shape = (self.dim, self.decorr_dim_subspace)
        keys = jax.random.split(self.make_rng("params"), self.decorr_num_subspaces)
        return jnp.stack([nn.initializers.orthogonal()(key, shape) for key in keys])

    def encode(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer, in the order of `embed`."""
        return self.transformer(self.embed(images, extra_tokens, train=train), train=train)[0]

    def __call__(
        self, images: Float[Array, "b H W c"], *, return_decorr_aux_loss: bool | None = None, train: bool = False
    ) -> tuple[Float[Array, "b *out"], Float[Array, ""]]:
        tokens, read, written = self.transformer(self.embed(images, train=train), train=train)
        wanted = train if return_decorr_aux_loss is None else return_decorr_aux_loss
        loss = self._loss(read, written) if wanted and self.decorr_sample_frac > 0 else jnp.zeros((), tokens.dtype)
        return (self.head(tokens) if self.num_classes else tokens), loss

    def _loss(self, read: Float[Array, "l b n d"], written: Float[Array, "l b n d"]) -> Float[Array, ""]:
        if self.decorr_layer_outputs_across_depth:
            tokens = rearrange(written, "l b n d -> n b l d")
        elif self.decorr_sample_frac < 1:
            tokens = sample_tokens(self.make_rng("dropout"), read, self.decorr_sample_frac)
        else:
            tokens = read
        return decorrelation_loss(tokens, self.subspaces, self.decorr_mean_center)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "b16": dict(image_size=224, patch_size=16, dim=768, depth=12, heads=12, mlp_dim=3072),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    ("decorr_proj", "decorr_loss.proj"),
    (r"attn_(\d+)_norm", r"layers.\1.0.norm"),
    (r"attn_(\d+)/to_out", r"layers.\1.0.to_out.0"),
    (r"attn_(\d+)", r"layers.\1.0"),
    (r"ff_(\d+)_norm", r"layers.\1.1.norm"),
    (r"ff_(\d+)/fc1", r"layers.\1.1.net.0"),
    (r"ff_(\d+)/fc2", r"layers.\1.1.net.3"),
)
