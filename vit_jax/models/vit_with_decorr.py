"""ViT with decorrelation: an auxiliary loss keeps the features that layers read, or write, uncorrelated.

Source: Carrigg et al. 2025, arXiv:2510.14657. Upstream: vit_pytorch/vit_with_decorr.py.
Differs from upstream: `num_classes=0` gives tokens; tokens and positions start at a deviation of 0.02 (upstream: 1);
a sample has at least two tokens (upstream: an error); the random subspaces are in the collection `batch_stats`.
Differs from the paper: a loss (paper: a matrix at the input of every layer, which learns by a rule of its own).
Axes: l layers, b batch, n tokens, d dim, s subspaces, e and f features of a subspace.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_EMBED_RULES, attention_rules, sequential_rules
from vit_jax.layers import Blocks, Dense, LayerNorm, block_output
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.shapes import Images, Output, Tokens

LayerTokens = Float[Array, "l b n d"]


class NoNorm(nn.Module):
    """In place of the norm of attention and feed-forward, whose tokens are normalised already."""

    def __call__(self, x: Tokens) -> Tokens:
        return x


class Transformer(Blocks):
    """`Blocks` and a last norm; also returns what attentions and feed-forwards read (normalised) and wrote."""

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> tuple[Tokens, LayerTokens, LayerTokens]:
        read, written = [], []
        for i in range(self.depth):
            for layer in (self.attention(name=f"attn_{i}"), self.feed_forward(name=f"ff_{i}")):
                read.append(LayerNorm(name=f"{layer.name}_norm")(x))
                written.append(layer(read[-1], train=train))
                x = x + written[-1]
            block_output(self, x)
        stack = lambda tokens: jnp.stack(tokens) if tokens else jnp.zeros((0, *x.shape), x.dtype)
        return LayerNorm(name="norm")(x), stack(read), stack(written)


def sample_tokens(key: Array, tokens: LayerTokens, fraction: float) -> Float[Array, "l b m d"]:
    """A `fraction` of the tokens, at least two, drawn without replacement anew for each layer and image."""
    noise = jax.random.uniform(key, tokens.shape[:-1])
    _, kept = jax.lax.top_k(noise, max(2, int(tokens.shape[2] * fraction)))
    return jnp.take_along_axis(tokens, kept[..., None], axis=2)


def decorrelation_loss(
    tokens: LayerTokens, subspaces: Float[Array, "s d e"] | None, mean_center: bool
) -> Float[Array, ""]:
    """Mean square of the products of two different features, summed over layers and subspaces, and at least 0.

    Of features as they are, or less their mean if `mean_center`; in each of `subspaces`, or in the whole space.
    """
    x = tokens[:, :, None]
    if subspaces is not None:
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
        expect(self, "decorr_sample_frac", 0 <= self.decorr_sample_frac <= 1, "0 to 1")
        fits = not self.decorr_use_subspace or 0 < self.decorr_dim_subspace < self.dim
        expect(self, "decorr_dim_subspace", fits, f"1 to below dim={self.dim}")
        at_least(self, decorr_num_subspaces=1)
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(self.make_attention(), norm=NoNorm)
        return Transformer(self.depth, attention, functools.partial(self.make_feed_forward(), norm=NoNorm))

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

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        """Tokens after the transformer, from those before it."""
        return self.transformer(tokens, train=train)[0]

    def __call__(
        self, images: Images, *, return_decorr_aux_loss: bool | None = None, train: bool = False
    ) -> tuple[Output, Float[Array, ""]]:
        tokens, read, written = self.transformer(self.embed(images, train=train), train=train)
        wanted = train if return_decorr_aux_loss is None else return_decorr_aux_loss
        loss = self._loss(read, written) if wanted and self.decorr_sample_frac > 0 else jnp.zeros((), tokens.dtype)
        return (self.head(tokens) if self.num_classes else tokens), loss

    def _loss(self, read: LayerTokens, written: LayerTokens) -> Float[Array, ""]:
        tokens = read
        if self.decorr_layer_outputs_across_depth:
            tokens = rearrange(written, "l b n d -> n b l d")
        elif self.decorr_sample_frac < 1:
            tokens = sample_tokens(self.make_rng("dropout"), read, self.decorr_sample_frac)
        return decorrelation_loss(tokens, self.subspaces, self.decorr_mean_center)

    torch_rules = (
        *PATCH_EMBED_RULES,
        ("decorr_proj", "decorr_loss.proj"),
        (r"attn_(\d+)_norm", r"layers.\1.0.norm"),
        *attention_rules(r"attn_(\d+)", r"layers.\1.0"),
        (r"ff_(\d+)_norm", r"layers.\1.1.norm"),
        *sequential_rules(r"ff_(\d+)", r"layers.\1.1.net", fc1=0, fc2=3),
    )


PRESETS = {"tiny": TINY, "b16": vit_sizes(768)}
