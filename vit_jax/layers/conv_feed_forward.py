"""The transformer's second half on a feature map."""

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.gelu import gelu
from vit_jax.layers.norm import ChannelNorm
from vit_jax.layers.pointwise import PointwiseConv


class ConvFeedForward(nn.Module):
    """`FeedForward` of (b, h, w, d), with a channel norm and convolutions of one pixel; its rules hold here too."""

    hidden_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b h w d"]:
        dim = x.shape[-1]
        x = ChannelNorm(name="norm")(x)
        x = PointwiseConv(self.hidden_dim, name="fc1")(x)
        x = gelu(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = PointwiseConv(dim, name="fc2")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)
