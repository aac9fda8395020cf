"""The transformer's second half: two linear maps with a GELU between them."""

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.dense import Dense
from vit_jax.layers.gelu import gelu
from vit_jax.layers.norm import LayerNorm


class FeedForward(nn.Module):
    """Pre-norm feed-forward block: (b, n, d) to (b, n, d) through `hidden_dim`, without the residual."""

    hidden_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim = x.shape[-1]
        x = LayerNorm(name="norm")(x)
        x = Dense(self.hidden_dim, name="fc1")(x)
        x = gelu(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = Dense(dim, name="fc2")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


def feed_forward_rules(flax: str, torch: str, *, fc2: int = 4) -> tuple[tuple[str, str], ...]:
    """Rules for the block at `flax`; upstream's second linear map is number 3 where it has no dropout."""
    return (
        (f"{flax}/norm", f"{torch}.net.0"),
        (f"{flax}/fc1", f"{torch}.net.1"),
        (f"{flax}/fc2", f"{torch}.net.{fc2}"),
    )
