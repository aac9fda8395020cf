"""Augmentation of a batch of training images on the device, inside the jitted step.

All shapes are static and all random numbers come from `jax.random`, so the result of a step depends on its key and not
on the number of devices. Augmentation that is off is not traced.

Axes: b batch, h height, w width, c channels, k classes.
"""

import jax
import jax.numpy as jnp

from train.commandline.ranges import check_values
from train.config import Augment
from train.data.colors import color_jitter, three_augment
from train.data.randaugment import randaugment
from train.errors import UserError
from vit_jax.printable import counted


def augment(key, images, targets, config: Augment, *, mean, std):
    """Augment images (b, h, w, c) with float32 targets (b, k), in the order of the lines below.

    Pixels are of any type that `normalize` takes; RandAugment takes only uint8, and changes of colour only integers,
    whose white is known. Returns normalised float32 images (b, h, w, c) and targets, mixed like the images. `mean` and
    `std` have one number per channel, for pixels in 0..1. Raises UserError for a value of `config` that is out of range
    or does not fit the images.
    """
    check_values(config, "augment.")
    crop_key, flip_key, randaugment_key, erase_key, mix_key, choice_key, jitter_key = jax.random.split(key, 7)
    check_colors(images, config)

    if config.crop_padding:
        images = random_crop(crop_key, images, config.crop_padding)
    if config.flip:
        images = random_flip(flip_key, images)
    if config.randaugment_layers:
        if images.dtype != jnp.uint8:
            raise UserError(f"--augment.randaugment-layers needs uint8 images, not {images.dtype}: --data.pixels=uint8")
        strength, probability = config.randaugment_magnitude / 10, config.randaugment_probability
        images = randaugment(randaugment_key, images, config.randaugment_layers, strength, mean, probability)
    if config.three_augment:
        images = three_augment(choice_key, fractions(images))
    if config.color_jitter or config.hue:
        images = color_jitter(jitter_key, fractions(images), config.color_jitter, config.hue)
    images = normalize(images, mean, std)
    if config.erasing:
        images = random_erase(erase_key, images, config.erasing)

    if config.mixup or config.cutmix:
        images, targets = mix(mix_key, images, targets, config.mixup, config.cutmix, config.repeats)
        if config.mixed_targets == "both":
            targets = (targets > 0).astype(targets.dtype)
    return images, targets


def check_colors(images, config: Augment):
    """Raises UserError if the colours of `images` cannot be changed as `config` says."""
    is_float, channels = jnp.issubdtype(images.dtype, jnp.floating), images.shape[-1]
    for option in ("three_augment", "color_jitter", "hue"):
        if getattr(config, option) and is_float:
            what = f"--augment.{option.replace('_', '-')}"
            raise UserError(f"{what} needs uint8 or uint16 images, not {images.dtype}: --data.pixels=uint8")
    if config.hue and channels != 3:
        raise UserError(f"--augment.hue needs images with three channels; these have {channels}")


def normalize(images, mean, std):
    """Normalise pixels (b, h, w, c): float32 (pixels / white - mean) / std, per channel.

    The type of the pixels gives white: 255 for uint8, 65535 for uint16, 1 for float32.
    """
    channels = images.shape[-1]
    for option, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            found = f"--data.{option} has {counted(len(values), 'value')}"
            raise UserError(f"{found}; the images have {counted(channels, 'channel')}")
    per_channel = lambda values: jnp.asarray(values, jnp.float32).reshape(1, 1, 1, channels)
    return (fractions(images) - per_channel(mean)) / per_channel(std)


def fractions(images):
    """Samples as float32: integers as fractions of white, floats unchanged."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(jnp.float32)
    return images.astype(jnp.float32) / jnp.iinfo(images.dtype).max


def random_crop(key, images, padding):
    """Shift each image by up to `padding` pixels along both axes, and fill with black."""
    batch, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)
    crop = lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape)
    return jax.vmap(crop)(padded, corners)


def random_flip(key, images):
    """Flip each image horizontally with probability 0.5."""
    flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def random_erase(key, images, probability):
    """Erase a random rectangle of each image, with `probability` (Zhong et al. 2017, arXiv:1708.04896).

    The rectangle is filled with zeros, the mean colour of normalised images. It has 2 to 33 % of the area and an aspect
    ratio of 0.3 to 3.3. A rectangle that is longer than the image is cropped; the paper draws again.
    """
    batch, height, width, _ = images.shape
    choice_key, area_key, aspect_key, place_key = jax.random.split(key, 4)

    chosen = jax.random.bernoulli(choice_key, probability, (batch,))
    area = jax.random.uniform(area_key, (batch,), minval=0.02, maxval=0.33) * height * width
    aspect = jnp.exp(jax.random.uniform(aspect_key, (batch,), minval=jnp.log(0.3), maxval=jnp.log(3.3)))
    rows = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, height)
    columns = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, width)
    place = jax.random.uniform(place_key, (2, batch))
    top = jnp.floor(place[0] * (height - rows + 1))
    left = jnp.floor(place[1] * (width - columns + 1))

    inside = jax.vmap(rectangle, (0, 0, 0, 0, None, None))(top, left, top + rows, left + columns, height, width)
    erased = (inside & chosen[:, None, None])[..., None]
    return jnp.where(erased, 0, images)


def mix(key, images, targets, mixup, cutmix, back=1):
    """Mixup (Zhang 2017, arXiv:1710.09412) or CutMix (Yun 2019, arXiv:1905.04899), each image with one before it.

    `mixup` and `cutmix` are the parameters of the Beta distributions; if both are positive, each is used with
    probability 0.5. The whole batch has one map of weights (h, w), which is constant for mixup and zero inside a box
    for CutMix. Targets are mixed with the mean of the map, for CutMix exactly the fraction of pixels kept. The partner
    is the image `back` positions before, because a device with a part of the batch then needs only `back` images of
    another device; with a reversed batch it would need all of them. With repeated augmentation, `back` is the number of
    repeats, so that an image is not mixed with itself.
    """
    choice_key, share_key, box_key = jax.random.split(key, 3)
    cut = jax.random.bernoulli(choice_key, 0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = jnp.where(cut, cutmix, mixup)
    share = jax.random.beta(share_key, alpha, alpha)
    kept = jnp.where(cut, 1.0 - random_box(box_key, 1 - share, *images.shape[1:3]), share)

    blend = lambda x, weight: weight * x + (1 - weight) * jnp.roll(x, back, axis=0)
    return blend(images, kept[None, :, :, None]), blend(targets, kept.mean())


def random_box(key, share, height, width):
    """Mask (h, w) of a box around a random pixel; `share` is its fraction of the area before it is cut at the edges."""
    row_key, column_key = jax.random.split(key)
    rows, columns = ((jnp.sqrt(share) * side).astype(int) for side in (height, width))
    top = jax.random.randint(row_key, (), 0, height) - rows // 2
    left = jax.random.randint(column_key, (), 0, width) - columns // 2
    return rectangle(top, left, top + rows, left + columns, height, width)


def rectangle(top, left, bottom, right, height, width):
    """Mask (h, w) that is true in rows [top, bottom) and columns [left, right)."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)
