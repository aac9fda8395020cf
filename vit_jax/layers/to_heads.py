"""The linear layer before attention, whose output is split into heads."""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.dense import linear
from vit_jax.layers.execution import target_platform


class ToHeads(nn.Module):
    """Queries, keys and values from one kernel: (..., n, c) to `parts` arrays (..., heads, n, dim_head).

    The parameters are those of `Dense(parts * heads * dim_head, use_bias)`.
    """

    parts: int
    heads: int
    dim_head: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch n c"]) -> tuple[Float[Array, "*batch h n d"], ...]:
        width = self.parts * self.heads * self.dim_head
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], width))
        bias = self.param("bias", nn.initializers.zeros, (width,)) if self.use_bias else None
        if target_platform() != "tpu":
            together = linear(x, kernel, bias)
            return tuple(rearrange(together, "... n (part h d) -> part ... h n d", part=self.parts, h=self.heads))
        # On TPU use separate matmuls: splitting a fused result, and concatenating its gradient, copies it. A kernel is
        # split faster if it is transposed first, and if an axis of its own tells the parts apart (docs/tpu.md).
        kernels = [part.T for part in jnp.unstack(kernel.T.reshape(self.parts, width // self.parts, -1))]
        biases = [None] * self.parts if bias is None else jnp.split(bias, self.parts)
        outs = (linear(x, *part) for part in zip(kernels, biases, strict=True))
        return tuple(rearrange(out, "... n (h d) -> ... h n d", h=self.heads) for out in outs)
