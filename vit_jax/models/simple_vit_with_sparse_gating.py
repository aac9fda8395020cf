"""SimpleViT with sparse gates: a narrow attention of its own says of each query and patch whether they may meet.

Source: upstream, which names no paper. Upstream: vit_pytorch/simple_vit_with_sparse_gating.py.
Differs from upstream: `num_classes=0` gives tokens; registers start at a deviation of 0.02 (upstream: 1).
Axes: b batch, n tokens (registers first), d dim, h heads, i query, j key, p patches, r extra tokens, k classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, prepend, softmax
from vit_jax.layers.check import at_least, one_of
from vit_jax.models.simple_vit import PRESETS as SIMPLE_PRESETS
from vit_jax.models.simple_vit import SimpleViT


class Attention(nn.Module):
    """Attention whose weights are multiplied by gates, before they are normalised; `registers`, in front, have none.

    Gives the tokens and how far the gates of each image are open on average, from 0 to 1.
    """

    heads: int
    dim_head: int
    dim_mask: int
    registers: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], Float[Array, "b"]]:
        dim = x.shape[-1]
        x = LayerNorm(name="norm")(x)
        widths = self.heads * np.array([self.dim_head] * 3 + [self.dim_mask] * 2)
        parts = Dense(int(widths.sum()), use_bias=False, name="to_qkv_and_mask")(x)
        parts = jnp.split(parts, widths.cumsum()[:-1], axis=-1)
        q, k, v, q_mask, k_mask = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)

        gates = jnp.einsum("bhid,bhjd->bhij", q_mask, k_mask[:, :, self.registers :]) * self.dim_mask**-0.5
        gates = gates.astype(jnp.float32)
        log_gates = jnp.maximum(jax.nn.log_sigmoid(gates), jnp.log(1e-20))
        log_gates = jnp.pad(log_gates, ((0, 0), (0, 0), (0, 0), (self.registers, 0)))
        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        attn = softmax(scores + log_gates.astype(scores.dtype))
        self.sow("intermediates", "attn", attn)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return Dense(dim, use_bias=False, name="to_out")(out), jax.nn.sigmoid(gates).mean(axis=(1, 2, 3))


class Transformer(nn.Module):
    """`depth` blocks and a last norm; gives the tokens and how far the gates are open, averaged over layers."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dim_mask: int
    registers: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], Float[Array, "b"]]:
        mean_openness = jnp.zeros(len(x))
        for i in range(self.depth):
            attn = Attention(self.heads, self.dim_head, self.dim_mask, self.registers, name=f"attn_{i}")
            out, openness = attn(x)
            x, mean_openness = x + out, mean_openness + openness / self.depth
            x = x + FeedForward(self.mlp_dim, name=f"ff_{i}")(x)
        return LayerNorm(name="norm")(x), mean_openness


class SimpleViTWithSparseGating(SimpleViT):
    """SimpleViT with gates; with `return_loss=True` it gives (logits, loss), a scalar to add to the classifier's.

    `sparsity_loss_type` "l1" is the share of each image's gates that is open, averaged over images; "thresholded_l1"
    is what of that share exceeds `sparsity_threshold`. Raises ValueError for another `sparsity_loss_type`.
    """

    num_register_tokens: int = 4
    dim_mask: int = 4
    sparsity_loss_type: str = "thresholded_l1"
    sparsity_threshold: float = 0.05

    def __post_init__(self):
        at_least(self, num_register_tokens=0, dim_mask=1)
        one_of("sparsity_loss_type", self.sparsity_loss_type, ("l1", "thresholded_l1"))
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        gating = (self.dim_mask, self.num_register_tokens)
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, *gating)

    def setup(self):
        super().setup()
        init = nn.initializers.normal(0.02)
        self.register_tokens = self.param("register_tokens", init, (self.num_register_tokens, self.dim))

    def encode_with_loss(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "r d"] | None = None
    ) -> tuple[Float[Array, "b p d"], Float[Array, ""]]:
        """What `encode` gives, and the sparsity loss."""
        x = prepend(self.register_tokens, self.embed(images, extra_tokens))
        x, openness = self.transformer(x)
        loss = openness if self.sparsity_loss_type == "l1" else nn.relu(openness - self.sparsity_threshold)
        return x[:, self.num_register_tokens :], loss.mean()

    def encode(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "r d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b p d"]:
        """Tokens after the transformer: the patches, then the extra tokens, without the registers."""
        return self.encode_with_loss(images, extra_tokens)[0]

    def __call__(self, images: Float[Array, "b H W c"], *, return_loss: bool = False, train: bool = False):
        tokens, loss = self.encode_with_loss(images)
        out = self.head(tokens) if self.num_classes else tokens
        return (out, loss) if return_loss else out


PRESETS = SIMPLE_PRESETS  # upstream names no sizes
