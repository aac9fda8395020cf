"""Kinds of input: what a frame such as `PlainViT` asks a model about them.

Frames are for images. A model of series or video names that kind before its frame, and so takes its arguments and
answers instead: `class ViT3D(VideoInput, PlainViT)`.
"""

from typing import ClassVar

from flax import linen as nn
from jax import Array

from vit_jax.layers.check import check_array, check_images, check_video, pair, patch_count, patch_grid


class ImageInput(nn.Module):
    """Images (b, H, W, c), of a model with `image_size`, `channels`, and `patch_size` or a `grid` of its own."""

    wording: ClassVar[tuple[str, str]] = ("images give", "image_size says")  # of the message of `add_positions`

    def check_input(self, images: Array) -> None:
        """Raises ValueError unless `images` is what the model takes."""
        check_images(images, self.channels)

    def patch_sides(self) -> tuple[int, ...]:
        """Size of a patch along each axis."""
        return pair("patch_size", self.patch_size)

    def grid(self, sides: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Patches along each axis of an input of these sides, or else of the model's. Raises ValueError for a rest."""
        return patch_grid(self.image_size if sides is None else sides, self.patch_size)


class SeriesInput(nn.Module, kw_only=True):
    """Series (b, n, c) of `seq_len` steps, in patches of `patch_size`, of a model with `channels`."""

    wording: ClassVar[tuple[str, str]] = ("series give", "seq_len says")
    image_size: ClassVar[None] = None
    seq_len: int
    patch_size: int

    def __post_init__(self):
        self.grid()
        super().__post_init__()

    def check_input(self, series: Array) -> None:
        check_array("series", series, "length", self.channels)
        self.grid(series.shape[1:2])

    def patch_sides(self) -> tuple[int, ...]:
        return (self.patch_size,)

    def grid(self, sides: tuple[int, ...] | None = None) -> tuple[int, ...]:
        length = self.seq_len if sides is None else sides[0]
        return (patch_count("seq_len", length, "patch_size", self.patch_size),)


class VideoInput(nn.Module, kw_only=True):
    """Video (b, f, H, W, c) in patches of some frames and pixels, of a model with `channels`."""

    wording: ClassVar[tuple[str, str]] = ("video gives", "frames and image_size say")
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

    def patch_sides(self) -> tuple[int, ...]:
        return (self.frame_patch_size, *pair("image_patch_size", self.image_patch_size))

    def grid(self, sides: tuple[int, ...] | None = None) -> tuple[int, ...]:
        frames, size = (self.frames, self.image_size) if sides is None else (sides[0], sides[1:])
        count = patch_count("frames", frames, "frame_patch_size", self.frame_patch_size)
        return (count, *patch_grid(size, self.image_patch_size, "image_patch_size"))
