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
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.layers import Attention, Blocks, Dense, ToHeads, block_output, softmax
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import Images, Output, Patches, Tokens


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


class SamplingAttention(Attention):
    """Attention of (b, n, d) whose output, if n exceeds `max_tokens`, has but a sample of the tokens.

    Returns it with its mask, and the ids of its tokens in the input or None for all.
    """

    @nn.compact
    def __call__(self, x: Tokens, mask: Bool[Array, "b n"], max_tokens: int, *, train: bool = False):
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(self.norm(name="norm")(x))
        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        attn = softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min))
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)

        ids = None
        if x.shape[1] - 1 > max_tokens:
            quantiles = (jnp.arange(max_tokens)[None] + 0.5) / max_tokens
            if train:
                quantiles = jax.random.uniform(self.make_rng("dropout"), (x.shape[0], max_tokens))
            drawn = draw(significance(attn, v, mask), quantiles)
            few = mask[:, 1:].sum(axis=-1, keepdims=True) <= max_tokens
            ids, mask = compact(jnp.where(few, mask[:, 1:], drawn), max_tokens)
            attn = jnp.take_along_axis(attn, ids[:, None, :, None], axis=2)

        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train), mask, ids


class Transformer(Blocks):
    """`Blocks` of which each may leave fewer tokens.

    Returns tokens, zero where padded, and which of the input's tokens they are, 0 where padded.
    """

    max_tokens_per_depth: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> tuple[Float[Array, "b m d"], Int[Array, "b m"]]:
        mask = jnp.ones(x.shape[:2], bool)
        token_ids = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        for i, max_tokens in enumerate(self.max_tokens_per_depth):
            out, mask, ids = self.attention(name=f"attn_{i}")(x, mask, max_tokens, train=train)
            if ids is not None:
                x = jnp.take_along_axis(x, ids[:, :, None], axis=1)
                token_ids = jnp.take_along_axis(token_ids, ids, axis=1)
            x = x + out
            x = x + self.feed_forward(name=f"ff_{i}")(x, train=train)
            block_output(self, x)
        return jnp.where(mask[:, :, None], x, 0), token_ids


class ATSViT(PlainViT, kw_only=True):
    """The plain ViT, sampling tokens in every layer i that has more than `max_tokens_per_depth[i]` patches left.

    With `return_sampled_token_ids` it returns a pair of what it returns else and the patches that are left, numbered
    from 0, -1 where padded: (b, m), m being the last of `max_tokens_per_depth`, or all patches if they are fewer.
    Raises ValueError unless `max_tokens_per_depth` has `depth` numbers, at least 1 and never rising.
    """

    patches_lost: ClassVar[bool] = True  # tokens that come out are those sampled
    max_tokens_per_depth: tuple[int, ...]
    pool: str = dataclasses.field(default="cls", init=False)

    def __post_init__(self):
        super().__post_init__()
        numbers = tuple(self.max_tokens_per_depth)
        fits = len(numbers) == self.depth and min(numbers, default=1) >= 1
        expected = f"as many numbers as depth={self.depth}, each at least 1 and at most the one before"
        expect(self, "max_tokens_per_depth", fits and list(numbers) == sorted(numbers, reverse=True), expected)

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(SamplingAttention, self.heads, self.dim_head, self.dropout)
        return Transformer(self.depth, attention, self.make_feed_forward(), tuple(self.max_tokens_per_depth))

    def encode(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Float[Array, "b m d"]:
        """Tokens after the transformer; extra ones would be sampled with the rest."""
        return self.transformer(self.embed(images, patches=patches, train=train), train=train)[0]

    def __call__(
        self, images: Images, *, return_sampled_token_ids: bool = False, train: bool = False
    ) -> Output | tuple[Output, Int[Array, "b m"]]:
        tokens, token_ids = self.transformer(self.embed(images, train=train), train=train)
        out = self.head(tokens) if self.num_classes else tokens
        return (out, token_ids[:, 1:] - 1) if return_sampled_token_ids else out


PRESETS = {
    "tiny": TINY | dict(max_tokens_per_depth=(64, 48, 32, 16)),
    "s16": vit_sizes(384, max_tokens_per_depth=(196,) * 3 + (98,) * 9),  # DeiT-S, sampled from the fourth layer on
}
