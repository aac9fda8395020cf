"""ATS-ViT: layers that keep only the tokens which the class token's attention samples, as many as an image needs.

Source: Fayyaz et al. 2021, arXiv:2111.15667. Upstream: vit_pytorch/ats_vit.py.
Differs from upstream: draws are random only when `train` and evaluation is the paper's, at fixed quantiles (upstream
always draws); sequences have a fixed length, padded behind (upstream's is that of the longest in the batch); whether an
image has too many tokens it decides for itself (upstream: for the batch); `num_classes=0` gives tokens, zero where
padded; tokens and positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: only a layer with more tokens than it may keep samples; draws are random when `train`.
Axes: b batch, n tokens, m tokens kept, r draws, d dim, h heads, i query, j key, k classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vit_jax.layers import Dense, FeedForward, LayerNorm, PlainViT, softmax
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES


def significance(
    attn: Float[Array, "b h i j"], values: Float[Array, "b h j d"], mask: Bool[Array, "b j"]
) -> Float[Array, "b n"]:
    """Distribution over all tokens but the first, whose attention to them it is, weighted by the lengths of values."""
    lengths = jnp.linalg.norm(values[:, :, 1:].astype(jnp.float32), axis=-1)
    scores = (attn[:, :, 0, 1:] * lengths).sum(axis=1)
    scores = scores / (scores.sum(axis=-1, keepdims=True) + 1e-6)
    scores = jnp.where(mask[:, 1:], scores + 1e-6, 0)
    return jax.lax.stop_gradient(scores / scores.sum(axis=-1, keepdims=True))


def draw(probabilities: Float[Array, "b n"], quantiles: Float[Array, "*b r"]) -> Bool[Array, "b n"]:
    """Inverse transform sampling: which tokens the `quantiles` (0 to 1) fall on, each through its distribution."""
    cumulative = jnp.cumsum(probabilities, axis=-1)
    cumulative = cumulative / cumulative[:, -1:]  # ends at 1, so that each quantile falls on a token
    drawn = (cumulative[:, None] <= quantiles[..., None]).sum(axis=-1)
    return jax.nn.one_hot(drawn, probabilities.shape[-1], dtype=bool).any(axis=1)


def compact(kept: Bool[Array, "b n"], length: int) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """Ids of the class token (0) and of the `kept` tokens (from 1) in order, at most `length`; false where padded."""
    order = jnp.argsort(~kept, axis=-1)[:, :length]
    mask = jnp.take_along_axis(kept, order, axis=-1)
    ids = jnp.where(mask, order + 1, 0)
    return jnp.pad(ids, ((0, 0), (1, 0))), jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)


class Attention(nn.Module):
    """Attention of (b, n, d) whose output, if n exceeds `max_tokens`, has but a sample of the tokens.

    Returns it with its mask, and the ids of its tokens in the input or None for all.
    """

    heads: int
    dim_head: int
    dropout: float
    max_tokens: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], *, train: bool = False):
        dim, inner_dim, ids = x.shape[-1], self.heads * self.dim_head, None
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        attn = softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min))
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)

        if x.shape[1] - 1 > self.max_tokens:
            drawn = draw(significance(attn, v, mask), self._quantiles(len(x), train))
            few = mask[:, 1:].sum(axis=-1, keepdims=True) <= self.max_tokens
            ids, mask = compact(jnp.where(few, mask[:, 1:], drawn), self.max_tokens)
            attn = jnp.take_along_axis(attn, ids[:, None, :, None], axis=2)

        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train), mask, ids

    def _quantiles(self, batch: int, train: bool) -> Float[Array, "b r"]:
        if train:
            return jax.random.uniform(self.make_rng("dropout"), (batch, self.max_tokens))
        return (jnp.arange(self.max_tokens)[None] + 0.5) / self.max_tokens


class Transformer(nn.Module):
    """Blocks of attention and feed-forward, each with its residual, of which each may leave fewer tokens.

    Returns tokens, zero where padded, and which of the input's tokens they are, 0 where padded.
    """

    max_tokens_per_depth: tuple[int, ...]
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], *, train: bool = False
    ) -> tuple[Float[Array, "b m d"], Int[Array, "b m"]]:
        mask = jnp.ones(x.shape[:2], bool)
        token_ids = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        for i, max_tokens in enumerate(self.max_tokens_per_depth):
            attention = Attention(self.heads, self.dim_head, self.dropout, max_tokens, name=f"attn_{i}")
            out, mask, ids = attention(x, mask, train=train)
            if ids is not None:
                x = jnp.take_along_axis(x, ids[:, :, None], axis=1)
                token_ids = jnp.take_along_axis(token_ids, ids, axis=1)
            x = x + out
            x = x + FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
        return jnp.where(mask[:, :, None], x, 0), token_ids


class ATSViT(PlainViT, kw_only=True):
    """The plain ViT, sampling tokens in every layer i that has more than `max_tokens_per_depth[i]` patches left.

    With `return_sampled_token_ids` it returns a pair of what it returns else and the patches that are left, numbered
    from 0, -1 where padded: (b, m), m being the last of `max_tokens_per_depth`, or all patches if they are fewer.
    Raises ValueError unless `max_tokens_per_depth` has `depth` numbers, at least 1 and never rising.
    """

    max_tokens_per_depth: tuple[int, ...]
    pool: str = dataclasses.field(default="cls", init=False)

    def __post_init__(self):
        super().__post_init__()
        numbers = tuple(self.max_tokens_per_depth)
        if len(numbers) != self.depth or min(numbers, default=1) < 1 or list(numbers) != sorted(numbers, reverse=True):
            raise ValueError(
                f"max_tokens_per_depth={self.max_tokens_per_depth!r}: expected as many numbers as depth={self.depth}, "
                "each at least 1 and at most the one before"
            )

    def make_transformer(self) -> nn.Module:
        sizes = (self.heads, self.dim_head, self.mlp_dim, self.dropout)
        return Transformer(tuple(self.max_tokens_per_depth), *sizes)

    def encode(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b m d"]:
        """Tokens after the transformer; extra ones would be sampled with the rest."""
        return self.transformer(self.embed(images, train=train), train=train)[0]

    def __call__(
        self, images: Float[Array, "b H W c"], *, return_sampled_token_ids: bool = False, train: bool = False
    ) -> Float[Array, "b *out"] | tuple[Float[Array, "b *out"], Int[Array, "b m"]]:
        tokens, token_ids = self.transformer(self.embed(images, train=train), train=train)
        out = self.head(tokens) if self.num_classes else tokens
        return (out, token_ids[:, 1:] - 1) if return_sampled_token_ids else out


PRESETS = {
    "tiny": dict(
        image_size=32,
        patch_size=4,
        dim=64,
        depth=4,
        max_tokens_per_depth=(64, 48, 32, 16),
        heads=4,
        dim_head=16,
        mlp_dim=128,
    ),
    "s16": dict(  # DeiT-S, which the paper samples from the fourth layer on
        image_size=224,
        patch_size=16,
        dim=384,
        depth=12,
        max_tokens_per_depth=(196,) * 3 + (98,) * 9,
        heads=6,
        mlp_dim=1536,
    ),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    *TRANSFORMER_RULES,
    *HEAD_RULES,
)
