"""ViT with decorrelation: an auxiliary loss decorrelates the features of the inputs, or outputs, of layers.

Derives from the frame `PlainViT` and overrides the transformer, which also returns what the loss needs.

Source: Carrigg et al. 2025, arXiv:2510.14657. Upstream: vit_pytorch/vit_with_decorr.py.
Differs from upstream: `num_classes=0` gives tokens; tokens and positions have an initial std of 0.02 (upstream: 1);
a sample has at least two tokens (upstream: raises); the random subspaces are in the collection `batch_stats`.
Differs from the paper: a loss (paper: a matrix at the input of every layer, trained by its own rule).
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
from vit_jax.layers import Blocks, Dense, LayerNorm, sow_block
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.shapes import Images, Output, Tokens

LayerTokens = Float[Array, "l b n d"]


class NoNorm(nn.Module):
    """Identity, in place of the norm of attention and feed-forward, whose inputs are normalised already."""

    def __call__(self, x: Tokens) -> Tokens:
        return x


class Transformer(Blocks):
    """`Blocks` and a last norm; also returns the normalised inputs, and the outputs, of all layers."""

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> tuple[Tokens, LayerTokens, LayerTokens]:
        read, written = [], []
        for i, drop_path in enumerate(self.drop_paths(train)):
            for layer in (self.attention(name=f"attn_{i}"), self.feed_forward(name=f"ff_{i}")):
                read.append(LayerNorm(name=f"{layer.name}_norm")(x))
                written.append(layer(read[-1], train=train))
                x = x + drop_path(written[-1])
            sow_block(self, x)
        stack = lambda tokens: jnp.stack(tokens) if tokens else jnp.zeros((0, *x.shape), x.dtype)
        return LayerNorm(name="norm")(x), stack(read), stack(written)


def sample_tokens(key: Array, tokens: LayerTokens, fraction: float) -> Float[Array, "l b m d"]:
    """A `fraction` of the tokens, at least two, drawn without replacement for each layer and image."""
    noise = jax.random.uniform(key, tokens.shape[:-1])
    _, kept = jax.lax.top_k(noise, max(2, int(tokens.shape[2] * fraction)))
    return jnp.take_along_axis(tokens, kept[..., None], axis=2)


def decorrelation_loss(
    tokens: LayerTokens, subspaces: Float[Array, "s d e"] | None, mean_center: bool
) -> Float[Array, ""]:
    """Mean square of the products of two different features, summed over layers and subspaces.

    Args:
        tokens: inputs or outputs of all layers.
        subspaces: projections in which to compute the loss; None for the whole space.
        mean_center: subtract the mean of each feature first.
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
    """Image (b, H, W, c) to a pair: logits (b, k), or with `num_classes=0` tokens (b, n, d), and a loss ().

    An image may be smaller than `image_size`; it then gets the first positions. The decorrelation
    loss is computed if `return_decorr_aux_loss`, which defaults to `train`, and is otherwise zero.

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
        decorr_sample_frac: share of the tokens that the loss reads, drawn with the rng "dropout".
        decorr_use_subspace: compute the loss in random subspaces.
        decorr_dim_subspace: features of a subspace, fewer than `dim`.
        decorr_num_subspaces: number of subspaces.
        decorr_mean_center: subtract the mean of each feature first.
        decorr_layer_outputs_across_depth: compute the loss from outputs of layers, over layers,
            instead of inputs, over tokens.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `pool` is neither "cls" nor
            "mean", `decorr_sample_frac` is not in [0, 1], or subspaces are not smaller than `dim`.
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
        expect(self, "decorr_dim_subspace", fits, f"at least 1 and below dim={self.dim}")
        at_least(self, decorr_num_subspaces=1)
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(self.make_attention(), norm=NoNorm)
        feed_forward = functools.partial(self.make_feed_forward(), norm=NoNorm)
        return Transformer(self.depth, attention, feed_forward, drop_path=self.drop_path)

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
        """Apply the transformer to the tokens of `embed`."""
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
