"""Arguments that many models take, checked and brought to one form."""

from collections.abc import Sequence

from jax import Array


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """`value` as (height, width): a single number stands for both. Raises ValueError unless both are positive."""
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name}={value!r}: expected a positive integer or a pair (height, width) of them")
    return sides


def patch_grid(image_size: int | Sequence[int], patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns of patches in an image. Raises ValueError when a patch side does not divide its image side."""
    height, width = pair("image_size", image_size)
    patch_height, patch_width = pair("patch_size", patch_size)
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"image_size={image_size!r}: expected multiples of patch_size={patch_size!r}, "
            "height by height and width by width"
        )
    return height // patch_height, width // patch_width


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def check_images(images: Array, channels: int) -> None:
    """Raises ValueError unless `images` is (b, height, width, channels)."""
    if images.ndim != 4 or images.shape[-1] != channels:
        raise ValueError(
            f"images of shape {images.shape}: expected (batch, height, width, channels) with channels={channels}"
        )
