"""ATS-ViT: each layer keeps a sample of the tokens, drawn by the attention that the class token pays to them.

Derives from the frame `PlainViT` and overrides the transformer: its attention samples tokens.

Source: Fayyaz et al. 2021, arXiv:2111.15667. Upstream: vit_pytorch/ats_vit.py.
Differs from upstream: sampling is random only when `train`, evaluation uses the paper's fixed quantiles (upstream
always draws); sequences have a fixed length and are padded at the end (upstream: the longest of the batch); an image
is sampled if it has too many tokens itself (upstream: if the batch has); `num_classes=0` gives tokens, zero where
padded; tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: a layer samples only if it has more tokens than it may keep; sampling is random when `train`.
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
from vit_jax.layers import Attention, Blocks, Dense, ToHeads, softmax, sow_block
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import Images, Output, Patches, Tokens


def significance(
    attn: Float[Array, "b h i j"], values: Float[Array, "b h j d"], mask: Bool[Array, "b j"]
) -> Float[Array, "b n"]:
    """Distribution over all tokens but the first: attention of the first token, weighted by the norms of the values."""
    lengths = jnp.linalg.norm(values[:, :, 1:].astype(jnp.float32), axis=-1)
    scores = (attn[:, :, 0, 1:] * lengths).sum(axis=1)
    scores = scores / (scores.sum(axis=-1, keepdims=True) + 1e-6)
    scores = jnp.where(mask[:, 1:], scores + 1e-6, 0)
    return jax.lax.stop_gradient(scores / scores.sum(axis=-1, keepdims=True))


def draw(probabilities: Float[Array, "b n"], quantiles: Float[Array, "*b r"]) -> Bool[Array, "b n"]:
    """Inverse transform sampling: mask of the tokens whose share of the distribution contains a quantile."""
    cumulative = jnp.cumsum(probabilities, axis=-1)
    cumulative = cumulative / cumulative[:, -1:]  # ends at 1, so that each quantile falls on a token
    drawn = (cumulative[:, None] <= quantiles[..., None]).sum(axis=-1)
    return jax.nn.one_hot(drawn, probabilities.shape[-1], dtype=bool).any(axis=1)


def compact(kept: Bool[Array, "b n"], length: int) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """Ids and mask of the class token (id 0) and of the first `length` tokens in `kept` (ids from 1), in order.

    The mask is False, and the id 0, where padded.
    """
    order = jnp.argsort(~kept, axis=-1)[:, :length]
    mask = jnp.take_along_axis(kept, order, axis=-1)
    ids = jnp.where(mask, order + 1, 0)
    return jnp.pad(ids, ((0, 0), (1, 0))), jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)


class SamplingAttention(Attention):
    """Attention over (b, n, d) that returns only a sample of the tokens if there are more than `max_tokens`.

    Returns the output, its mask, and the ids of its tokens in the input, or None for all of them.
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
    """`Blocks`, each of which may keep only some of its tokens.

    Returns tokens, zero where padded, and their ids in the input, 0 where padded.
    """

    max_tokens_per_depth: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> tuple[Float[Array, "b m d"], Int[Array, "b m"]]:
        mask = jnp.ones(x.shape[:2], bool)
        token_ids = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        drop_paths = self.drop_paths(train)
        for i, max_tokens in enumerate(self.max_tokens_per_depth):
            out, mask, ids = self.attention(name=f"attn_{i}")(x, mask, max_tokens, train=train)
            if ids is not None:
                x = jnp.take_along_axis(x, ids[:, :, None], axis=1)
                token_ids = jnp.take_along_axis(token_ids, ids, axis=1)
            x = x + drop_paths[i](out)
            x = x + drop_paths[i](self.feed_forward(name=f"ff_{i}")(x, train=train))
            sow_block(self, x)
        return jnp.where(mask[:, :, None], x, 0), token_ids


class ATSViT(PlainViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, m, d).

    An image may be smaller than `image_size`; it then gets the first positions. With
    `return_sampled_token_ids` the call returns a pair: this output, and the indices (b, m) of the
    patches that are left, counted from 0, -1 where padded. m is the last of `max_tokens_per_depth`,
    or the number of patches if that is smaller.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        max_tokens_per_depth: for each block, the number of patches to keep at most.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `max_tokens_per_depth` does not
            have `depth` numbers, each at least 1 and at most the one before.
    """

    patches_lost: ClassVar[bool] = True  # some patches have no output token
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
        sizes = tuple(self.max_tokens_per_depth)
        return Transformer(self.depth, attention, self.make_feed_forward(), sizes, drop_path=self.drop_path)

    def encode(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Float[Array, "b m d"]:
        """Tokens after the transformer. There are no extra tokens, as the layers would sample them too."""
        return self.transform(self.embed(images, patches=patches, train=train), train=train)

    def transform(self, tokens: Tokens, *, train: bool = False) -> Float[Array, "b m d"]:
        """Apply the transformer to tokens from `embed`, of which a sample is left."""
        return self.transformer(tokens, train=train)[0]

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
