"""CCT for video: convolutions and pooling also extend over frames.

Derives from `CCT` (vit_jax/models/cct.py) and adds the axis of frames.

Source: Hassani et al. 2021, arXiv:2104.05704, for images. Upstream: vit_pytorch/cct_3d.py.
Differs from upstream: `seq_pool`, `dropout_rate` and `attention_dropout` work (upstream raises for any of them), and
`seq_pool=False` gives a class token; `stride` and `padding` may be None, as in upstream's functions cct_2 to cct_16,
which are presets here; `image_size` and `channels` are other names of `img_size` and `n_input_channels`; videos may
be smaller than `num_frames` and `img_size`; `num_classes=0` gives tokens.
Differs from the paper: by default positions are sines of the token's number, frame by frame (paper: learned).
Axes: b batch, f frames, n tokens, c channels, d dim, k classes.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_jax.frames.arguments import check_array
from vit_jax.layers import add_positions, sincos_1d
from vit_jax.layers.check import at_least, check_sides, expect
from vit_jax.layers.shapes import Tokens
from vit_jax.models import cct


class CCT3D(cct.CCT):
    """Classifier: video (b, f, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    A video may be shorter than `num_frames` and smaller than `image_size`; it then gets the first
    positions, if there are any.

    Args:
        img_size: pixels, or (height, width); `image_size` takes precedence.
        embedding_dim: width of a token, a multiple of `num_heads`.
        n_input_channels: channels of a frame; `channels` takes precedence.
        n_conv_layers: number of layers that convolve and pool to make the tokens.
        kernel_size: side of the convolutions, in pixels.
        stride: stride of the convolutions; None for one that follows from `kernel_size`.
        padding: padding of the convolutions; None for one that follows from `kernel_size`.
        pooling_kernel_size: side of the max pooling, in pixels.
        pooling_stride: stride of the max pooling.
        pooling_padding: padding of the max pooling, at most half of its side.
        dropout_rate: rate within the blocks and on the tokens before the first block.
        attention_dropout: rate on the attention maps.
        stochastic_depth_rate: rate at which the branches of the last block are dropped; it rises
            linearly from 0.
        num_layers: number of blocks.
        num_heads: attention heads in each block.
        mlp_ratio: hidden width of each feed-forward, as a multiple of `embedding_dim`.
        num_classes: number of classes; 0 for tokens.
        positional_embedding: "sine", "learnable" or "none". Sines are stored as a parameter without
            gradient, as upstream does.
        seq_pool: pool the tokens by attention; False reads a class token instead.
        image_size: another name of `img_size`.
        channels: another name of `n_input_channels`.
        num_frames: largest number of frames.
        frame_stride: stride of the convolutions along frames.
        frame_kernel_size: frames that the convolutions read.
        frame_padding: padding of the convolutions along frames; None for half of
            `frame_kernel_size`.
        frame_pooling_kernel_size: frames that the max pooling reads.
        frame_pooling_stride: stride of the max pooling along frames.
        frame_pooling_padding: padding of the max pooling along frames; None for half of
            `frame_pooling_kernel_size`.

    Raises:
        ValueError: if `num_heads` does not divide `embedding_dim`, `positional_embedding` is
            unknown, or a video is too short or too small for one token.
    """

    kind: ClassVar[str] = "video"
    says_sides: ClassVar[str] = "num_frames, image_size"
    num_frames: int = 8
    frame_stride: int = 1
    frame_kernel_size: int = 3
    frame_padding: int | None = None
    frame_pooling_kernel_size: int = 1
    frame_pooling_stride: int = 1
    frame_pooling_padding: int | None = None

    def __post_init__(self):
        at_least(self, num_frames=1, frame_stride=1, frame_kernel_size=1, frame_padding=0)
        at_least(self, frame_pooling_kernel_size=1, frame_pooling_stride=1, frame_pooling_padding=0)
        fits = (self.frame_pooling_padding or 0) <= self.frame_pooling_kernel_size // 2
        expect(self, "frame_pooling_padding", fits, "at most half of frame_pooling_kernel_size")
        super().__post_init__()

    def axes(self) -> tuple[cct.Axis, ...]:
        half = lambda padding, kernel: kernel // 2 if padding is None else padding
        kernel, pool = self.frame_kernel_size, self.frame_pooling_kernel_size
        conv = (kernel, self.frame_stride, half(self.frame_padding, kernel))
        return ((conv, (pool, self.frame_pooling_stride, half(self.frame_pooling_padding, pool))), *super().axes())

    def grid(self, sides: tuple[int, ...] | None = None) -> tuple[int, ...]:
        frames, size = (self.num_frames, None) if sides is None else (sides[0], sides[1:])
        along = lambda frames: self.tokens_along(self.axes()[0], frames)
        check_sides("num_frames", frames, lambda frames: along(frames) > 0)
        return (along(frames), *super().grid(size))

    def sides(self) -> tuple[int, ...]:
        return (self.num_frames, *super().sides())

    def check_input(self, video: Array) -> None:
        check_array("video", video, "frames, height, width", self.channels)

    def add_positions(self, x: Tokens) -> Tokens:
        if self.positional_embedding != "sine":
            return super().add_positions(x)
        sines = sincos_1d(self.count_tokens(), self.embedding_dim)
        return add_positions(x, jnp.asarray(sines, x.dtype))

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores the sines, though no longer as a parameter."""
        sines = self.positional_embedding == "sine"
        return {"classifier.positional_emb": sincos_1d(self.count_tokens(), self.embedding_dim)[None]} if sines else {}


PRESETS = {name: preset for name, preset in cct.PRESETS.items() if name.startswith("cct_")}
PRESETS |= {"tiny": PRESETS["cct_2"] | dict(img_size=32, num_frames=4, stride=2)}
