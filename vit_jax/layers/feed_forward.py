"""The feed-forward of a transformer block: two linear layers with a GELU between them."""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.dense import Dense
from vit_jax.layers.gelu import gelu
from vit_jax.layers.norm import LayerNorm


class FeedForward(nn.Module):
    """Norm, linear layer, activation, linear layer; without the residual.

    Args:
        hidden_dim: width between the linear layers.
        dropout: rate after the activation and, unless `last_dropout` is given, after the second layer.
        norm: function from a name to the norm.
        last_dropout: rate after the second layer.
        features: width of the output; None for that of the input.
        activation: activation function.
    """

    hidden_dim: int
    dropout: float = 0.0
    norm: Callable[..., nn.Module] = LayerNorm
    last_dropout: float | None = None
    features: int | None = None
    activation: Callable[[Array], Array] = gelu

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *, train: bool = False) -> Float[Array, "*batch e"]:
        hidden = self.activation(Dense(self.hidden_dim, name="fc1")(self.norm(name="norm")(x)))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        out = Dense(self.features or x.shape[-1], name="fc2")(hidden)
        rate = self.dropout if self.last_dropout is None else self.last_dropout
        return nn.Dropout(rate)(out, deterministic=not train)
