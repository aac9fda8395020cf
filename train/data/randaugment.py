"""RandAugment: a few random operations per image, all of the same strength.

Source: Cubuk et al. 2019, arXiv:1909.13719.
Differs from the paper: `invert` is one of the operations; the strength of every operation grows with the magnitude,
and at magnitude 0 none changes the image (in the paper, colour operations have no effect at 5); signs are random;
sampling is bilinear.

Under `vmap` a switch would compute all its branches. Instead, each image passes through a table of tones, a blend and
an affine map. Its operation sets one of the three; the others are exact identities.

Axes: h height, w width, c channels, v the 256 values of a pixel.
"""

import math

import jax
import jax.numpy as jnp

TONES = ("identity", "autocontrast", "equalize", "invert", "posterize", "solarize", "brightness", "contrast")
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*TONES, "color", "sharpness", *MOVES)


def randaugment(key, images, layers, strength, fill, probability=1.0):
    """Apply `layers` random operations to each uint8 image (b, h, w, c); returns uint8 images.

    `strength` is from 0 to 1. `fill` is the colour, in 0..1 per channel, of areas outside of a moved image. With
    `probability` below 1, the other operations are left out.
    """
    fill = jnp.asarray(fill, jnp.float32) * 255

    def random_operation(key, image):
        operation_key, sign_key = jax.random.split(key)
        operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
        if probability < 1:
            is_applied = jax.random.bernoulli(jax.random.fold_in(key, 2), probability)
            operation = jnp.where(is_applied, operation, OPERATIONS.index("identity"))
        return apply(image, operation, strength * jax.random.rademacher(sign_key, ()), fill)

    def layer(images, key):
        return jax.vmap(random_operation)(jax.random.split(key, len(images)), images), None

    images, _ = jax.lax.scan(layer, images, jax.random.split(key, layers))
    return images


def apply(image, operation, strength, fill):
    """Apply the operation with index `operation` in OPERATIONS to a uint8 image (h, w, c).

    `strength` is from -1 to 1; its sign is the direction of a move, or reduces or enhances a colour. `fill` is a colour
    (c,) in 0..255.
    """
    image = change_tones(image, operation, strength)
    image = change_detail(image, operation, strength)
    return move(image, operation, strength, fill)


def change_tones(image, operation, strength):
    """The operations that map each value of a pixel to a new one, by a table (v, c)."""
    channels = image.shape[-1]
    pixels = image.reshape(-1, channels)
    values = jnp.arange(256.0)[:, None]

    low, high = (extreme.astype(float) for extreme in (pixels.min(0, keepdims=True), pixels.max(0, keepdims=True)))
    stretched = (values - low) * 255 / jnp.maximum(high - low, 1)
    step = 2.0 ** jnp.round(4 * jnp.abs(strength))
    middle = jnp.round(luma(image).mean())
    tables = {
        "identity": values,
        "autocontrast": jnp.where(high > low, stretched, values),
        "equalize": equalized(pixels),
        "invert": 255 - values,
        "posterize": values // step * step,
        "solarize": jnp.where(values < 256 * (1 - jnp.abs(strength)), values, 255 - values),
        "brightness": (1 + 0.9 * strength) * values,
        "contrast": middle + (1 + 0.9 * strength) * (values - middle),
    }
    tables = jnp.stack([jnp.broadcast_to(tables[name], (256, channels)) for name in TONES])
    table = to_uint8(tables[jnp.where(operation < len(TONES), operation, 0)])
    return jnp.take_along_axis(table, pixels.astype(int), axis=0).reshape(image.shape)


def equalized(pixels):
    """Table (v, c) that equalises the histogram of each channel, with the integer arithmetic of PIL."""
    values = jnp.arange(256)[:, None]
    counts = jax.vmap(lambda channel: jnp.bincount(channel, length=256), in_axes=1, out_axes=1)(pixels)
    last = jnp.sum(jnp.where(values == pixels.max(0, keepdims=True), counts, 0), axis=0, keepdims=True)
    step = (len(pixels) - last) // 255
    below = jnp.cumsum(counts, axis=0) - counts
    return jnp.where(step > 0, (below + step // 2) // jnp.maximum(step, 1), values)


def change_detail(image, operation, strength):
    """Color and sharpness: extrapolation from, or blending with, the grey or the smoothed image."""
    color, sharpness = (operation == OPERATIONS.index(name) for name in ("color", "sharpness"))
    pixels = image.astype(jnp.float32)
    poor = jnp.where(color, luma(image), smooth(pixels))
    return jnp.where(color | sharpness, to_uint8(poor + (1 + 0.9 * strength) * (pixels - poor)), image)


def luma(image):
    """Grey value (h, w, 1): ITU-R 601 of three channels, the mean of any other number."""
    channels = image.shape[-1]
    weights = (0.299, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
    return sum(weight * image[..., i : i + 1] for i, weight in enumerate(weights))


def smooth(pixels):
    """Replace each inner pixel by the mean of its 3 x 3 square, with weight 5 for the pixel itself."""
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    squares = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return pixels + jnp.pad((squares - 9 * pixels[1:-1, 1:-1]) / 13, ((1, 1), (1, 1), (0, 0)))


def move(image, operation, strength, fill):
    """Rotation, shear and translation: one affine map around the centre, from target to source pixels."""
    height, width, _ = image.shape
    amount = lambda name, most: jnp.where(operation == OPERATIONS.index(name), most * strength, 0)
    angle = amount("rotate", math.radians(30))
    y, x = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")
    # All amounts but one are zero, so that the sum of the maps equals their product.
    source_y = y * jnp.cos(angle) - x * (jnp.sin(angle) - amount("shear_y", 0.3))
    source_x = x * jnp.cos(angle) + y * (jnp.sin(angle) + amount("shear_x", 0.3))
    source_y += amount("translate_y", 0.45 * height) + (height - 1) / 2
    source_x += amount("translate_x", 0.45 * width) + (width - 1) / 2
    return to_uint8(bilinear(image, source_y, source_x, fill))


def bilinear(image, y, x, fill):
    """Sample an image (h, w, c) at rows `y` and columns `x` (h, w); outside of the image is `fill`."""
    height, width, _ = image.shape
    framed = jnp.tile(fill, (height + 2, width + 2, 1))
    framed = framed.at[1:-1, 1:-1].set(image.astype(jnp.float32))
    y, x = jnp.clip(y + 1, 0, height + 1), jnp.clip(x + 1, 0, width + 1)
    top, left = jnp.minimum(y.astype(int), height), jnp.minimum(x.astype(int), width)
    down, right = (y - top)[..., None], (x - left)[..., None]
    row = lambda i: (1 - right) * framed[i, left] + right * framed[i, left + 1]
    return (1 - down) * row(top) + down * row(top + 1)


def to_uint8(pixels):
    """Round and clip floats to uint8 pixels."""
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
