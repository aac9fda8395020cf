"""Views of images: random crops, flips, colours and blur, drawn for each sample, with static shapes.

Source: the operations and their distributions are those of torchvision's transforms (RandomResizedCrop, ColorJitter,
RandomGrayscale, GaussianBlur, RandomSolarize), combined as in Grill et al. 2020 (BYOL), arXiv:2006.07733.
Differs from torchvision: the order of ColorJitter is brightness, contrast, saturation, hue (torchvision: random).
Axes: b batch, v views, h w height and width, c channels, f axes before the image, such as frames.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Image = Float[Array, "*f h w c"]
Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class View:
    """The augmentations of a view. Saturation, hue and grey apply only to images with three channels.

    Args:
        scale: range of the crop's share of the area.
        ratio: range of the crop's width over its height.
        size: (height, width) to which the crop is resized; None for the size of the image.
        cubic: resize with bicubic instead of bilinear interpolation.
        flip: probability of a horizontal flip.
        jitter: largest relative change of brightness, contrast and saturation, and largest turn of the hue, where 1 is
            the whole circle.
        jittered: probability of the colour jitter.
        grey: probability of a greyscale image.
        blur: kernel size in pixels, and the range of the standard deviation.
        blurred: probability of the blur.
        solarized: probability of solarization.
        look: a function from a key and pixels to pixels, which replaces everything after the crop.

    Raises:
        ValueError: for an invalid range or probability.
    """

    scale: Range
    ratio: Range = (3 / 4, 4 / 3)
    size: tuple[int, int] | None = None
    cubic: bool = False
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jittered: float = 0.3
    grey: float = 0.2
    blur: tuple[int, Range] = (3, (1.0, 2.0))
    blurred: float = 0.2
    solarized: float = 0.0
    look: Callable[[Array, Array], Array] | None = None

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale={self.scale}: expected two shares of the area, the smaller first")
        for name in ("flip", "jittered", "grey", "blurred", "solarized"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a probability, 0 to 1")


# Random numbers in 0..1 that a view needs. They are drawn in one call, because every call adds time to the compilation.
DRAWS = dict(area=10, aspect=10, place=2, flip=1, jittered=1, jitter=4, grey=1, blurred=1, blur=1, solarized=1)


def make_views(
    key: Array, images: Float[Array, "b *f h w c"], view: View, count: int, mean: tuple, std: tuple
) -> Float[Array, "b {count} *f H W c"]:
    """Draw independent views of every image.

    Args:
        key: random key.
        images: normalised images, as the views are: pixels in 0..1, minus `mean` and divided by `std`.
        view: augmentations.
        count: number of views.
        mean: mean of each channel, or one for all.
        std: standard deviation of each channel, or one for all.

    Raises:
        ValueError: for another number of `mean` or `std`.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[-1]):
            raise ValueError(f"{name}={values}: expected a number for each of {images.shape[-1]} channels")
    per_channel = lambda values: jnp.asarray(values, jnp.float32).reshape((1,) * (images.ndim - 2) + (-1,))

    def one(key: Array | None, draws: Array, image: Array) -> Array:
        pixels = image.astype(jnp.float32) * per_channel(std) + per_channel(mean)
        pixels = one_view(key, by_name(draws), pixels, view)
        return ((pixels - per_channel(mean)) / per_channel(std)).astype(images.dtype)

    shape = (len(images), count)
    keys = jax.random.split(jax.random.fold_in(key, 0), shape) if view.look else None
    draws = jax.random.uniform(key, (*shape, sum(DRAWS.values())))
    return jax.vmap(jax.vmap(one, (0, 0, None)))(keys, draws, images)


def draw_crops(
    key: Array, images: Float[Array, "b *f h w c"], looks: Sequence[Mapping[str, Any]], count: int, objective: Any
) -> dict[str, Array]:
    """Draw two global views ("global") and `count` local views ("local") of every image.

    Args:
        key: random key.
        images: normalised images.
        looks: further arguments of `View` for the first global view, the second one, and local views.
        count: number of local views.
        objective: has the crop scales, `augment_fn`, `augment_fn2`, `local_size`, `mean` and `std`, as `Dino` does.
    """
    large = objective.global_lower_crop_scale, 1.0
    small = objective.local_lower_crop_scale, objective.local_upper_crop_scale
    own = objective.augment_fn, objective.augment_fn2
    first, second = (View(large, look=function, **look) for look, function in zip(looks[:2], own, strict=True))
    local = [View(small, size=objective.local_size, look=function, **looks[2]) for function in own]
    halves = (count, 0) if local[0] == local[1] else (count - count // 2, count // 2)
    crops = [
        make_views(jax.random.fold_in(key, i), images, view, number, objective.mean, objective.std)
        for i, (view, number) in enumerate(zip((first, second, *local), (1, 1, *halves), strict=True))
        if number
    ]
    return {"global": jnp.concatenate(crops[:2], axis=1), "local": jnp.concatenate(crops[2:], axis=1)}


def by_name(draws: Float[Array, "m"]) -> dict[str, Float[Array, "_"]]:
    """Split the random numbers of a view by their purpose."""
    return dict(zip(DRAWS, jnp.split(draws, np.cumsum([*DRAWS.values()])[:-1].tolist()), strict=True))


def one_view(key: Array | None, draws: dict[str, Array], pixels: Image, view: View) -> Float[Array, "*f H W c"]:
    """Return one view of pixels in 0..1. The `key` is for `view.look`."""
    *_, height, width, channels = pixels.shape
    box = choose_box(draws, height, width, view.scale, view.ratio)
    pixels = jnp.clip(resize_box(pixels, box, view.size or (height, width), cubic if view.cubic else triangle), 0, 1)
    if view.look:
        return view.look(key, pixels)
    changes = {
        "flip": (view.flip, lambda x: x[..., ::-1, :]),
        "jittered": (view.jittered, lambda x: color_jitter(draws["jitter"], x, *view.jitter)),
        "grey": (view.grey if channels == 3 else 0.0, lambda x: jnp.broadcast_to(grey(x), x.shape)),
        "blurred": (view.blurred, lambda x: blur(x, view.blur[0], between(draws["blur"][0], *view.blur[1]))),
        "solarized": (view.solarized, lambda x: jnp.where(x < 0.5, x, 1 - x)),
    }
    for name, (probability, change) in changes.items():
        if probability > 0:
            pixels = jnp.where(draws[name][0] < probability, change(pixels), pixels)
    return pixels


def between(draw: Float[Array, "*s"], low: float, high: float) -> Float[Array, "*s"]:
    """Scale numbers in 0..1 to the range from `low` to `high`."""
    return low + (high - low) * draw


def choose_box(draws: dict[str, Array], height: int, width: int, scale: Range, ratio: Range) -> Int[Array, "4"]:
    """Return top, left, height and width of a crop in pixels: the first of ten draws that fits into the image.

    If none fits, it is the largest centered box whose width over height is within `ratio`.
    """
    area = between(draws["area"], *scale) * (height * width)
    aspect = jnp.exp(between(draws["aspect"], *np.log(ratio).tolist()))
    sides = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=1))).astype(int)
    fits = ((sides > 0) & (sides <= jnp.array([[height, width]]))).all(axis=1)
    sides = sides[fits.argmax()]
    place = jnp.floor(draws["place"] * (jnp.array([height, width]) - sides + 1)).astype(int)

    narrow, broad = (round(width / ratio[0]), width), (height, round(height * ratio[1]))
    largest = narrow if width / height < ratio[0] else broad if width / height > ratio[1] else (height, width)
    fallback = jnp.array([(height - largest[0]) // 2, (width - largest[1]) // 2, *largest])
    return jnp.where(fits.any(), jnp.concatenate([place, sides]), fallback)


def resize_box(
    image: Image, box: Int[Array, "4"], size: tuple[int, int], kernel: Callable[[Array], Array]
) -> Float[Array, "*f H W c"]:
    """Resize the part of `image` inside `box` (top, left, height, width). Pixels outside have no influence."""
    rows = resampling(image.shape[-3], size[0], box[0], box[2], kernel)
    columns = resampling(image.shape[-2], size[1], box[1], box[3], kernel)
    return jnp.einsum("ih,jw,...hwc->...ijc", rows, columns, image)


def resampling(
    length: int, new: int, start: Int[Array, ""], part: Int[Array, ""], kernel: Callable[[Array], Array]
) -> Float[Array, "{new} {length}"]:
    """Return the weight of each old pixel in each new pixel along an axis, where `part` pixels become `new` pixels.

    If the part shrinks, the kernel is widened by the same factor (antialiasing).

    Args:
        length: number of old pixels.
        new: number of new pixels.
        start: first old pixel of the part.
        part: number of old pixels of the part.
        kernel: interpolation kernel.
    """
    step = part / new
    centers = start + (jnp.arange(new)[:, None] + 0.5) * step
    pixels = jnp.arange(length)[None]
    weights = kernel((pixels + 0.5 - centers) / jnp.maximum(step, 1))
    weights = jnp.where((start <= pixels) & (pixels < start + part), weights, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def triangle(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Kernel of bilinear interpolation."""
    return jnp.maximum(1 - jnp.abs(x), 0)


def cubic(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Kernel of bicubic interpolation (Keys 1981, with a = -1/2)."""
    x = jnp.abs(x)
    return jnp.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, jnp.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))


def color_jitter(
    draws: Float[Array, "4"], x: Image, brightness: float, contrast: float, saturation: float, hue: float
) -> Float[Array, "*f h w c"]:
    """Change brightness, contrast and saturation by random factors around 1, and the hue by a random turn."""
    factor = lambda draw, most: between(draw, max(0.0, 1 - most), 1 + most)
    x = blend(x, jnp.zeros_like(x), factor(draws[0], brightness))
    x = blend(x, grey(x).mean(axis=(-3, -2), keepdims=True), factor(draws[1], contrast))
    if x.shape[-1] != 3:
        return x
    x = blend(x, grey(x), factor(draws[2], saturation))
    return turn_hue(x, between(draws[3], -hue, hue))


def blend(x: Image, other: Float[Array, "*#f #h #w #c"], factor: Float[Array, ""]) -> Float[Array, "*f h w c"]:
    """Interpolate from `other` (factor 0) to `x` (factor 1) or beyond, and clip to 0..1."""
    return jnp.clip(factor * x + (1 - factor) * other, 0, 1)


def grey(x: Image) -> Float[Array, "*f h w 1"]:
    """Return the luma (ITU-R 601) of three channels, or the mean of another number of channels."""
    channels = x.shape[-1]
    weights = np.array([0.2989, 0.587, 0.114] if channels == 3 else [1 / channels] * channels, np.float32)
    return jnp.einsum("...c,c->...", x, weights)[..., None]


def turn_hue(x: Float[Array, "*f h w 3"], turn: Float[Array, ""]) -> Float[Array, "*f h w 3"]:
    """Turn the hue by `turn` of a circle, keeping saturation and value."""
    value, least = x.max(axis=-1), x.min(axis=-1)
    chroma = value - least
    red, green, blue = jnp.moveaxis(x, -1, 0)
    along = lambda a, b: (a - b) / jnp.where(chroma > 0, chroma, 1)
    # Not `value == red`: a compiler may compute the maximum again with another rounding, and no channel would equal it.
    is_red, is_green = (red >= green) & (red >= blue), green >= blue
    sixth = jnp.where(is_red, along(green, blue), jnp.where(is_green, 2 + along(blue, red), 4 + along(red, green)))
    place = lambda start: (start + sixth + 6 * turn) % 6
    fall = lambda start: jnp.clip(jnp.minimum(place(start), 4 - place(start)), 0, 1)
    return jnp.stack([value - chroma * fall(start) for start in (5.0, 3.0, 1.0)], axis=-1)


def blur(x: Image, size: int, deviation: Float[Array, ""]) -> Float[Array, "*f h w c"]:
    """Apply a Gaussian blur with a kernel of `size` x `size` pixels. Borders are mirrored."""
    taps = jnp.exp(-0.5 * jnp.square((jnp.arange(size) - (size - 1) / 2) / deviation))
    taps = taps / taps.sum()
    for axis in (-3, -2):
        length, around = x.shape[axis], [(0, 0)] * x.ndim
        around[axis] = (size // 2, size // 2)
        padded = jnp.pad(x, around, mode="reflect")
        x = sum(taps[i] * jax.lax.slice_in_dim(padded, i, i + length, axis=x.ndim + axis) for i in range(size))
    return x
