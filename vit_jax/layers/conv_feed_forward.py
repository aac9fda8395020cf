"""The feed-forward of a transformer block on a feature map."""

from flax import linen as nn

from vit_jax.layers.gelu import gelu
from vit_jax.layers.norm import ChannelNorm
from vit_jax.layers.pointwise import PointwiseConv
from vit_jax.layers.shapes import Maps


class ConvFeedForward(nn.Module):
    """`FeedForward` of (b, h, w, d), with a channel norm and 1x1 convolutions. Its arguments mean the same here."""

    hidden_dim: int
    dropout: float = 0.0
    last_dropout: float | None = None

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        hidden = gelu(PointwiseConv(self.hidden_dim, name="fc1")(ChannelNorm(name="norm")(x)))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        rate = self.dropout if self.last_dropout is None else self.last_dropout
        return nn.Dropout(rate)(PointwiseConv(x.shape[-1], name="fc2")(hidden), deterministic=not train)
