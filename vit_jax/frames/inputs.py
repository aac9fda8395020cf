"""Mixins for the kinds of input: images, series and video.

`PlainViT` and `BaseSimpleViT` are for images. A model for series or video lists the mixin of that kind first, which
overrides arguments and methods: `class ViT3D(VideoInput, PlainViT)`.
"""

from typing import ClassVar

from flax import linen as nn
from jax import Array

from vit_jax.frames.arguments import check_array, check_fits, check_images, check_video
from vit_jax.layers.check import pair, patch_count, patch_grid


class ImageInput(nn.Module):
    """Images (b, H, W, c). The model has the arguments `image_size`, `channels`, and `patch_size` or its own `grid`."""

    kind: ClassVar[str] = "images"
    says_sides: ClassVar[str] = "image_size"  # names of the arguments that `sides` come from

    def check_input(self, images: Array) -> None:
        """Raise ValueError unless `images` has the right shape and dtype. Any size is accepted."""
        check_images(images, self.channels)

    def check_positions(self, x: Array) -> None:
        """Like `check_input`, but also raise ValueError for an input larger than the table of positions.

        A smaller input uses the first positions.
        """
        self.check_input(x)
        check_fits(self.kind, x, self.sides(), self.says_sides)

    def sides(self) -> tuple[int, ...]:
        """The input size of the model along each axis."""
        return pair("image_size", self.image_size)

    def patch_sides(self) -> tuple[int, ...]:
        """The size of a patch along each axis."""
        return pair("patch_size", self.patch_size)

    def grid(self, sides: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Number of patches along each axis of an input of size `sides`, by default the model's input size.

        Raises ValueError if a patch does not divide the input.
        """
        return patch_grid(self.image_size if sides is None else sides, self.patch_size)


class SeriesInput(nn.Module, kw_only=True):
    """Series (b, n, c) of `seq_len` steps, in patches of `patch_size` steps. The model has the argument `channels`."""

    kind: ClassVar[str] = "series"
    says_sides: ClassVar[str] = "seq_len"
    image_size: ClassVar[None] = None
    seq_len: int
    patch_size: int

    def __post_init__(self):
        self.grid()
        super().__post_init__()

    def check_input(self, series: Array) -> None:
        check_array("series", series, "length", self.channels)
        self.grid(series.shape[1:2])

    def sides(self) -> tuple[int, ...]:
        return (self.seq_len,)

    def patch_sides(self) -> tuple[int, ...]:
        return (self.patch_size,)

    def grid(self, sides: tuple[int, ...] | None = None) -> tuple[int, ...]:
        length = self.seq_len if sides is None else sides[0]
        return (patch_count("seq_len", length, "patch_size", self.patch_size),)


class VideoInput(nn.Module, kw_only=True):
    """Video (b, f, H, W, c), in patches of several frames and pixels. The model has the argument `channels`."""

    kind: ClassVar[str] = "video"
    says_sides: ClassVar[str] = "frames, image_size"
    patch_size: ClassVar[None] = None
    image_size: int | tuple[int, int]
    image_patch_size: int | tuple[int, int]
    frames: int
    frame_patch_size: int

    def __post_init__(self):
        self.grid()
        super().__post_init__()

    def check_input(self, video: Array) -> None:
        check_video(video, self.channels)
        self.grid(video.shape[1:4])

    def sides(self) -> tuple[int, ...]:
        return (self.frames, *pair("image_size", self.image_size))

    def patch_sides(self) -> tuple[int, ...]:
        return (self.frame_patch_size, *pair("image_patch_size", self.image_patch_size))

    def grid(self, sides: tuple[int, ...] | None = None) -> tuple[int, ...]:
        frames, size = (self.frames, self.image_size) if sides is None else (sides[0], sides[1:])
        count = patch_count("frames", frames, "frame_patch_size", self.frame_patch_size)
        return (count, *patch_grid(size, self.image_patch_size, "image_patch_size"))
