"""Attention over the tokens themselves and a context."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.layers.attend import attend
from vit_jax.layers.dense import Dense
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.shapes import Tokens
from vit_jax.layers.to_heads import ToHeads


class ContextAttention(nn.Module):
    """Attention of x over itself or over [x, context], without the residual. The norm applies to x only."""

    heads: int
    dim_head: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        context: Float[Array, "b m d"] | None = None,
        mask: Bool[Array, "*#b #h #n j"] | None = None,
        *,
        train: bool = False,
    ) -> Tokens:
        x = LayerNorm(name="norm")(x)
        source = x if context is None else jnp.concatenate([x, context], axis=1)
        (q,) = ToHeads(1, self.heads, self.dim_head, name="to_q")(x)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(source)
        out = attend(self, q, k, v, mask=mask, dropout=self.dropout, train=train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)
