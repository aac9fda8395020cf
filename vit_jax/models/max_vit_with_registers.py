"""MaxViT with register tokens in every window, which store global information.

Derives from `MaxViT` (vit_jax/models/max_vit.py) and overrides its blocks.

Source: Tu et al. 2022, arXiv:2204.01697; registers: Darcet et al. 2023, arXiv:2309.16588.
Upstream: vit_pytorch/max_vit_with_registers.py.
Differs from upstream: as `max_vit` does; registers have an initial std of 0.02 (upstream: 1).
Differs from the paper: as `max_vit` does; every block has its own registers (Darcet: kept through all layers), a set
for each window, whose mean over windows the attention over the grid reads.
Axes: b batch (times windows), x rows, y columns, m registers, n pixels of a window, d dim.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.rules import Rules
from vit_jax.layers import WindowAttention, make_drop_path
from vit_jax.layers.check import at_least
from vit_jax.layers.shapes import Maps
from vit_jax.models.max_vit import GRID, PRESETS, WINDOWS, Block, MaxViT, Part

__all__ = ["PRESETS", "MaxViTWithRegisters"]


class RegisterAttention(WindowAttention):
    """Self-attention within windows that begin with registers.

    Registers have no offsets: one bias serves all pairs with a register in them.
    """

    num_register_tokens: int

    def positions(self) -> np.ndarray:
        """Index of the bias for each query and key: the last one for pairs with a register."""
        offsets = (2 * self.window_size - 1) ** 2
        return np.pad(super().positions(), (self.num_register_tokens, 0), constant_values=offsets)


class RegisterBlock(Block):
    """`max_vit.Block` with registers in every window.

    Attention over the grid reads their mean over all windows. They are dropped at the end of the
    block.
    """

    num_register_tokens: int = dataclasses.field(kw_only=True)

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Float[Array, "b u v e"]:
        m, w = self.num_register_tokens, self.window_size
        drop_path = make_drop_path(self, self.drop_path, train)
        x = self.mbconv(name="mbconv")(x, train=train)
        x = rearrange(x, f"{WINDOWS} -> b x y (w1 w2) d", w1=w, w2=w)
        registers = self.param("register_tokens", nn.initializers.normal(0.02), (m, x.shape[-1]))
        x = jnp.concatenate([jnp.broadcast_to(registers, (*x.shape[:3], *registers.shape)), x], axis=3)
        x = x + drop_path(self.attention(name="window_attn")(x, train=train))
        x = x + drop_path(self.feed_forward(name="window_ff")(x, train=train))
        registers, x = x[:, :, :, :m], x[:, :, :, m:]
        x = rearrange(x, f"b x y (w1 w2) d -> {WINDOWS}", w1=w)

        x = rearrange(x, f"{GRID} -> b x y (w1 w2) d", w1=w, w2=w)
        of_image = registers.mean(axis=(1, 2), keepdims=True)
        x = jnp.concatenate([jnp.broadcast_to(of_image, registers.shape), x], axis=3)
        x = x + drop_path(self.attention(name="grid_attn")(x, train=train))
        x = x[:, :, :, m:]
        x = x + drop_path(self.feed_forward(name="grid_ff")(x, train=train))
        return rearrange(x, f"b x y (w1 w2) d -> {GRID}", w1=w)


class MaxViTWithRegisters(MaxViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    Args:
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image.
        image_size: pixels, or (height, width); optional, only checked at construction.
        dim: width of a pixel of the map in the first stage; it doubles from stage to stage.
        depth: number of blocks in each stage.
        dim_head: width of a head.
        dim_conv_stem: channels of the stem; by default `dim`.
        window_size: side of a window, in pixels of the map.
        mbconv_expansion_rate: hidden width of an MBConv, as a multiple of its output.
        mbconv_shrinkage_rate: width of the squeeze-excitation, as a multiple of the hidden width.
        dropout: rate within attention and feed-forward.
        mbconv_dropout: rate at which the convolution branch of a sample is dropped.
        num_register_tokens: register tokens in each window, at least one.
        drop_path: rate of stochastic depth of the other branches in the last block; it rises
            linearly from 0 in the first.

    Raises:
        ValueError: if windows do not tile the maps of an image, `dim_head` does not divide `dim`,
            or there is no register.
    """

    num_register_tokens: int = 4

    def __post_init__(self):
        at_least(self, num_register_tokens=1)
        super().__post_init__()

    def make_block(self, mbconv: Part, feed_forward: Part, drop_path: float, name: str) -> Block:
        """Make a block with its own registers."""
        m, w = self.num_register_tokens, self.window_size
        attention = functools.partial(RegisterAttention, self.dim_head, w, self.dropout, m)
        return RegisterBlock(w, mbconv, attention, feed_forward, drop_path, num_register_tokens=m, name=name)

    def torch_rules(self) -> Rules:
        """Upstream's blocks are lists of a convolution and two pairs; a second list holds their registers."""
        names = (f"stage_{i}_block_{j}" for i, depth in enumerate(self.depth) for j in range(depth))
        registers = ((f"{name}/register_tokens", f"register_tokens.{n}") for n, name in enumerate(names))
        return (*registers, *super().torch_rules(("1.0", "1.1", "2.0", "2.1")))
