"""SimpleViT with attention residuals: each layer attends, token by token, to the outputs of all earlier layers.

Derives from the frame `BaseSimpleViT` and overrides the transformer, which keeps the outputs of all layers.

Source: Kimi Team 2026, arXiv:2603.15031. Upstream: vit_pytorch/simple_vit_attn_residual.py.
Differs from upstream: `num_classes=0` gives tokens; queries have an initial std of 0.02 (upstream: 1).
Differs from the paper: attention over depth has heads, projections and a norm before the query (paper: only one query
and normalised keys); with `learned_query=False` the last output is the query.
Axes: b batch, n tokens, d dim, h heads, m tokens of a context, l outputs so far, e extra tokens.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.frames.simple_vit import BaseSimpleViT, BiasFreeAttention
from vit_jax.layers import Blocks, Dense, LayerNorm, ToHeads, attend, sow_block
from vit_jax.layers.shapes import Images, Tokens
from vit_jax.models import simple_vit


class Attention(BiasFreeAttention):
    """Attention without bias of `x` over itself, or over a context with its own norm."""

    @nn.compact
    def __call__(self, x: Tokens, context: Float[Array, "b m d"] | None = None, *, train: bool = False) -> Tokens:
        x = LayerNorm(name="norm")(x)
        source = x if context is None else LayerNorm(name="norm_context")(context)
        (q,) = ToHeads(1, self.heads, self.dim_head, name="to_q")(x)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(source)
        return Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v))


class DepthPool(nn.Module):
    """Attention over the outputs of all earlier layers, token by token, in place of the residual.

    The query is learned, or the last output.
    """

    attention: Callable[..., nn.Module]
    learned_query: bool

    @nn.compact
    def __call__(self, history: list[Tokens]) -> Tokens:
        context = rearrange(jnp.stack(history, axis=2), "b n l d -> (b n) l d")
        query = context[:, -1:]
        if self.learned_query:
            query = self.param("learned_query", nn.initializers.normal(0.02), context.shape[-1:])
            query = jnp.broadcast_to(query, (context.shape[0], 1, query.size))
        return self.attention(name="attn")(query, context).reshape(history[0].shape)


class Transformer(Blocks):
    """`depth` blocks whose layers read the pooled history and append their output to it; a last pool and norm.

    Returns the tokens and the history, which starts with the given one and the input.
    """

    learned_query: bool

    @nn.compact
    def __call__(self, x: Tokens, history: list[Tokens], *, train: bool = False) -> tuple[Tokens, list[Tokens]]:
        history = [*history, x]
        pool = lambda name: DepthPool(self.attention, self.learned_query, name=name)(history)
        for i, drop_path in enumerate(self.drop_paths(train)):
            x = pool(f"attn_pool_{i}") if i else x
            history.append(drop_path(self.attention(name=f"attn_{i}")(x, train=train)))
            history.append(drop_path(self.feed_forward(name=f"ff_{i}")(pool(f"ff_pool_{i}"), train=train)))
            sow_block(self, history[-1])
        return LayerNorm(name="norm")(pool("final_pool")), history


class SimpleViTAttnResidual(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.
    With `return_history=True` the call returns a pair: this output and the history, a list of
    tokens (b, n, d). It also attends to a `history` that an earlier call returned, if given.

    Args:
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, a multiple of 4.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        learned_query: attend to earlier outputs with a learned query instead of the last output.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    learned_query: bool = True

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(Attention, self.heads, self.dim_head)
        parts = attention, self.make_feed_forward()
        return Transformer(self.depth, *parts, self.learned_query, drop_path=self.drop_path)

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        return self.transformer(tokens, [], train=train)[0]

    def __call__(
        self, images: Images, *, history: list[Tokens] | None = None, return_history: bool = False, train: bool = False
    ):
        tokens, history = self.transformer(self.embed(images), history or [], train=train)
        out = self.head(tokens) if self.num_classes else tokens
        return (out, history) if return_history else out

    torch_rules = (
        *PATCH_EMBED_RULES,
        ("transformer/norm", "transformer.final_pool.fn"),
        (r"attn_pool_(\d+)", r"layers.\1.0"),
        (r"attn_(\d+)", r"layers.\1.0.fn"),
        (r"ff_pool_(\d+)", r"layers.\1.1"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.fn.net", fc2=3),
    )


PRESETS = simple_vit.PRESETS  # the paper is about text
