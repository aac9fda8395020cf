"""MaxViT with register tokens: every block's windows share places for what they have in common.

Source: Tu et al. 2022, arXiv:2204.01697; registers: Darcet et al. 2023, arXiv:2309.16588.
Upstream: vit_pytorch/max_vit_with_registers.py.
Differs from upstream: as `max_vit` does; registers start at a deviation of 0.02 (upstream: 1).
Differs from the paper: MaxViT as `max_vit` differs; registers are new in every block (Darcet: kept through all layers),
one set for each window, of which the grid sees the mean.
Axes: b batch (times windows), x rows, y columns, m registers, n pixels of a window, d dim.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import FeedForward, prepend
from vit_jax.layers.check import at_least
from vit_jax.models.max_vit import GRID, MBCONV_RULES, PRESETS, WINDOWS, Attention, MaxViT, MBConv, block_numbers

__all__ = ["PRESETS", "MaxViTWithRegisters", "torch_rules"]


class RegisterAttention(Attention):
    """Self-attention within windows that begin with registers; these have no offsets, and one bias for all pairs."""

    num_register_tokens: int

    def positions(self) -> np.ndarray:
        """The number of the bias for each query and key: the last for a pair with a register in it."""
        offsets = (2 * self.window_size - 1) ** 2
        return np.pad(super().positions(), (self.num_register_tokens, 0), constant_values=offsets)


class RegisterBlock(nn.Module):
    """`max_vit.Block` with registers in every window, which carry their mean into the grid and end there."""

    dim: int
    downsample: bool
    dim_head: int
    window_size: int
    mbconv: tuple[int | float, ...]
    dropout: float
    num_register_tokens: int

    @nn.compact
    def __call__(self, x: Float[Array, "b x y d"], *, train: bool = False) -> Float[Array, "b u v e"]:
        m, w = self.num_register_tokens, self.window_size

        def attend(x: Float[Array, "b m_n d"], name: str) -> Float[Array, "b m_n d"]:
            return x + RegisterAttention(self.dim_head, w, self.dropout, m, name=name)(x, train=train)

        def feed(x: Float[Array, "b n d"], name: str) -> Float[Array, "b n d"]:
            return x + FeedForward(4 * self.dim, self.dropout, name=name)(x, train=train)

        x = MBConv(self.dim, self.downsample, *self.mbconv, name="mbconv")(x, train=train)
        sizes = dict(b=x.shape[0], x=x.shape[1] // w, y=x.shape[2] // w, w1=w, w2=w)

        x = rearrange(x, f"{WINDOWS} -> (b x y) (w1 w2) d", w1=w, w2=w)
        x = prepend(self.param("register_tokens", nn.initializers.normal(0.02), (m, self.dim)), x)
        x = feed(attend(x, "window_attn"), "window_ff")
        registers, x = x[:, :m], x[:, m:]
        x = rearrange(x, f"(b x y) (w1 w2) d -> {WINDOWS}", **sizes)

        x = rearrange(x, f"{GRID} -> (b x y) (w1 w2) d", w1=w, w2=w)
        of_image = reduce(registers, "(b n) m d -> b m d", "mean", b=sizes["b"])
        registers = repeat(of_image, "b m d -> (b n) m d", n=sizes["x"] * sizes["y"])
        x = attend(jnp.concatenate([registers, x], axis=1), "grid_attn")
        x = feed(x[:, m:], "grid_ff")
        return rearrange(x, f"(b x y) (w1 w2) d -> {GRID}", **sizes)


class MaxViTWithRegisters(MaxViT):
    """`MaxViT` in whose blocks every window also has `num_register_tokens` learned tokens, at least one."""

    num_register_tokens: int = 4

    def __post_init__(self):
        at_least(self, num_register_tokens=1)
        super().__post_init__()

    def make_block(self, dim: int, downsample: bool, name: str) -> nn.Module:
        """A block with registers of its own."""
        mbconv = (self.mbconv_expansion_rate, self.mbconv_shrinkage_rate, self.mbconv_dropout)
        attention = (self.dim_head, self.window_size, mbconv, self.dropout, self.num_register_tokens)
        return RegisterBlock(dim, downsample, *attention, name=name)


def torch_rules(model: MaxViTWithRegisters) -> tuple[tuple[str, str], ...]:
    """Upstream's blocks are lists of a convolution and two pairs; their registers stand in a list of their own."""
    blocks = block_numbers(model).items()
    return (
        *((f"{name}/register_tokens", f"register_tokens.{n}") for name, (n, _) in blocks),
        *((f"{name}/mbconv", f"layers.{n}.0{inner}") for name, (n, inner) in blocks),
        *((name, f"layers.{n}") for name, (n, _) in blocks),
        *MBCONV_RULES,
        ("window_attn/to_out", "1.0.to_out.0"),
        ("window_attn", "1.0"),
        ("window_ff/norm", "1.1.0"),
        ("window_ff/fc1", "1.1.1"),
        ("window_ff/fc2", "1.1.4"),
        ("grid_attn/to_out", "2.0.to_out.0"),
        ("grid_attn", "2.0"),
        ("grid_ff/norm", "2.1.0"),
        ("grid_ff/fc1", "2.1.1"),
        ("grid_ff/fc2", "2.1.4"),
    )
