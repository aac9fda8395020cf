"""SimpleViT with attention residuals: each layer attends over what all layers before it gave, token by token.

Source: Kimi Team 2026, arXiv:2603.15031. Upstream: vit_pytorch/simple_vit_attn_residual.py.
Differs from upstream: `num_classes=0` gives tokens; queries start at a deviation of 0.02 (upstream: 1).
Differs from the paper: attention over depth has heads, projections and a norm before the query (paper: one query, keys
that are normalised and nothing else); with `learned_query=False` the last output asks.
Axes: b batch, n tokens, d dim, h heads, i query, j key, l outputs so far, e extra tokens.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, softmax
from vit_jax.layers.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.models.simple_vit import PRESETS as SIMPLE_PRESETS
from vit_jax.models.simple_vit import SimpleViT


class Attention(nn.Module):
    """Attention without any bias of x over itself, or over a context with a norm of its own."""

    heads: int
    dim_head: int

    @nn.compact
    def __call__(self, x: Float[Array, "b i d"], context: Float[Array, "b j d"] | None = None) -> Float[Array, "b i d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        source = x if context is None else LayerNorm(name="norm_context")(context)
        q = rearrange(Dense(inner_dim, use_bias=False, name="to_q")(x), "b n (h d) -> b h n d", h=self.heads)
        kv = Dense(2 * inner_dim, use_bias=False, name="to_kv")(source)
        k, v = rearrange(kv, "b n (kv h d) -> kv b h n d", kv=2, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return Dense(dim, use_bias=False, name="to_out")(out)


class DepthPool(nn.Module):
    """What stands for the residual: each token's outputs so far, pooled by a learned query or by the last of them."""

    heads: int
    dim_head: int
    learned_query: bool

    @nn.compact
    def __call__(self, history: list[Float[Array, "b n d"]]) -> Float[Array, "b n d"]:
        context = rearrange(jnp.stack(history, axis=2), "b n l d -> (b n) l d")
        if self.learned_query:
            query = self.param("learned_query", nn.initializers.normal(0.02), context.shape[-1:])
            query = jnp.broadcast_to(query, (len(context), 1, query.size))
        else:
            query = context[:, -1:]
        pooled = Attention(self.heads, self.dim_head, name="attn")(query, context)
        return pooled.reshape(history[0].shape)


class Transformer(nn.Module):
    """`depth` blocks, whose layers read the pooled history and add their output to it; a last pool and norm.

    Gives the tokens and the history: one entry more than layers, besides those it is given.
    """

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    learned_query: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], history: Sequence[Float[Array, "b n d"]] = ()) -> tuple[Array, list]:
        history = [*history, x]
        pool = lambda name: DepthPool(self.heads, self.dim_head, self.learned_query, name=name)(history)
        for i in range(self.depth):
            x = pool(f"attn_pool_{i}") if i else x
            history.append(Attention(self.heads, self.dim_head, name=f"attn_{i}")(x))
            history.append(FeedForward(self.mlp_dim, name=f"ff_{i}")(pool(f"ff_pool_{i}")))
        return LayerNorm(name="norm")(pool("final_pool")), history


class SimpleViTAttnResidual(SimpleViT):
    """SimpleViT with attention residuals; with `return_history=True` it gives (logits, history), too.

    `history`, a list of tokens (b, n, d) as another pass has given it, is attended over besides.
    """

    learned_query: bool = True

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, self.learned_query)

    def encode(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer: the patches, then the extra tokens. `train` changes nothing here."""
        return self.transformer(self.embed(images, extra_tokens))[0]

    def __call__(
        self,
        images: Float[Array, "b H W c"],
        *,
        history: Sequence[Float[Array, "b n d"]] | None = None,
        return_history: bool = False,
        train: bool = False,
    ):
        tokens, history = self.transformer(self.embed(images), history or ())
        out = self.head(tokens) if self.num_classes else tokens
        return (out, history) if return_history else out


PRESETS = SIMPLE_PRESETS  # the paper is about text

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    ("transformer/norm", "transformer.final_pool.fn"),
    (r"attn_pool_(\d+)", r"layers.\1.0"),
    (r"attn_(\d+)", r"layers.\1.0.fn"),
    (r"ff_pool_(\d+)", r"layers.\1.1"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.fn.net", fc2=3),
)
