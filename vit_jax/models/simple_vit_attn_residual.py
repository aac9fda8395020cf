"""SimpleViT with attention residuals: each layer attends over what all layers before it gave, token by token.

Source: Kimi Team 2026, arXiv:2603.15031. Upstream: vit_pytorch/simple_vit_attn_residual.py.
Differs from upstream: `num_classes=0` gives tokens; queries start at a deviation of 0.02 (upstream: 1).
Differs from the paper: attention over depth has heads, projections and a norm before the query (paper: one query, keys
that are normalised and nothing else); with `learned_query=False` the last output asks.
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
from vit_jax.layers import Blocks, Dense, LayerNorm, ToHeads, attend, block_output
from vit_jax.layers.shapes import Images, Tokens
from vit_jax.models import simple_vit


class Attention(BiasFreeAttention):
    """Attention without any bias of x over itself, or over a context with a norm of its own."""

    @nn.compact
    def __call__(self, x: Tokens, context: Float[Array, "b m d"] | None = None, *, train: bool = False) -> Tokens:
        x = LayerNorm(name="norm")(x)
        source = x if context is None else LayerNorm(name="norm_context")(context)
        (q,) = ToHeads(1, self.heads, self.dim_head, name="to_q")(x)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(source)
        return Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v))


class DepthPool(nn.Module):
    """Replaces the residual: attention over each token's outputs so far, by a learned query or by the last output."""

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
    """`depth` blocks, whose layers read the pooled history and add their output to it; a last pool and norm.

    Gives the tokens and the history: one entry more than layers, besides those it is given.
    """

    learned_query: bool

    @nn.compact
    def __call__(self, x: Tokens, history: list[Tokens], *, train: bool = False) -> tuple[Tokens, list[Tokens]]:
        history = [*history, x]
        pool = lambda name: DepthPool(self.attention, self.learned_query, name=name)(history)
        for i in range(self.depth):
            x = pool(f"attn_pool_{i}") if i else x
            history.append(self.attention(name=f"attn_{i}")(x, train=train))
            history.append(self.feed_forward(name=f"ff_{i}")(pool(f"ff_pool_{i}"), train=train))
            block_output(self, history[-1])
        return LayerNorm(name="norm")(pool("final_pool")), history


class SimpleViTAttnResidual(BaseSimpleViT):
    """SimpleViT with attention residuals; with `return_history=True` it gives (logits, history), too.

    `history`, a list of tokens (b, n, d) as another pass has given it, is attended over besides.
    """

    learned_query: bool = True

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(Attention, self.heads, self.dim_head)
        return Transformer(self.depth, attention, self.make_feed_forward(), self.learned_query)

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
