"""Augmentation: against PIL and numpy, its distributions, and on eight devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from train.config import Augment
from train.data.augment import augment, mix, normalize, random_crop, random_erase, random_flip
from train.data.randaugment import OPERATIONS, apply, randaugment
from train.errors import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ALL = Augment(crop_padding=3, flip=True, randaugment_layers=2, erasing=0.5, mixup=0.8, cutmix=1.0)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (16, 12, 10, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 5, 16).astype(np.int32)


def run(key, images=IMAGES, labels=LABELS, config=ALL, mean=MEAN, std=STD):
    return augment(key, images, jax.nn.one_hot(labels, 5), config, mean=mean, std=std)


RUN = jax.jit(run, static_argnames=("config", "mean", "std"))
APPLY = jax.jit(apply)


def photo():
    """A smooth image of 40 x 52 pixels with all values, to compare interpolations on."""
    y, x = np.mgrid[:40, :52]
    waves = [np.sin(x / 5 + phase) * np.cos(y / 7 - phase) for phase in (0, 1, 2)]
    return np.round(127 + 90 * np.stack(waves, -1) + RNG.normal(0, 3, (40, 52, 3))).clip(0, 255).astype(np.uint8)


PHOTO = photo()


def operate(name, strength, image=PHOTO, fill=0.0):
    fill = jnp.full(image.shape[-1], fill)
    out = APPLY(image, OPERATIONS.index(name), strength, fill)
    assert (out.dtype, out.shape) == (jnp.uint8, image.shape)
    return np.asarray(out).astype(int)


def test_everything_off_is_normalize_and_one_hot():
    images, targets = run(jax.random.key(0), config=Augment())
    np.testing.assert_array_equal(images, normalize(IMAGES, MEAN, STD))
    np.testing.assert_allclose(images, (IMAGES / 255 - np.array(MEAN)) / np.array(STD), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(5)[LABELS])
    assert images.dtype == targets.dtype == jnp.float32


def test_what_is_off_is_not_traced():
    def trace(config):
        return str(jax.make_jaxpr(lambda key: run(key, config=config))(jax.random.key(0)))

    assert "random_bits" not in trace(Augment())
    assert "random_bits" in trace(Augment(flip=True))


def test_crop_moves_the_image_and_brings_in_black():
    images = np.asarray(jax.jit(lambda key: random_crop(key, IMAGES, 2))(jax.random.key(0)))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, source in zip(images, padded, strict=True):
        matches = [(y, x) for y in range(5) for x in range(5) if (source[y : y + 12, x : x + 10] == image).all()]
        assert len(matches) == 1
        seen.update(matches)
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(5))


def test_flip_mirrors_half_of_the_images():
    images = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None], (4000, 2, 4, 1))
    flipped = np.asarray(jax.jit(random_flip)(jax.random.key(0), images))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == images).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_erasing_has_its_probability_areas_and_aspects():
    size, count = 64, 4000
    erase = jax.jit(lambda key: random_erase(key, jnp.ones((count, size, size, 1)), 0.25))
    erased = np.asarray(erase(jax.random.key(0)))[..., 0] == 0
    hit = erased.any((1, 2))
    assert abs(hit.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)
    heights, widths = erased.any(2).sum(1)[hit], erased.any(1).sum(1)[hit]
    np.testing.assert_array_equal(erased.sum((1, 2))[hit], heights * widths)  # a rectangle each
    areas = heights * widths / size**2
    assert 0.015 < areas.min() < 0.03
    assert 0.32 < areas.max() < 0.345
    assert areas.mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.01)
    ratios = heights / widths
    assert 0.25 < ratios.min() < 0.35
    assert 2.9 < ratios.max() < 3.8
    assert np.median(ratios) == pytest.approx(1, abs=0.1)
    covered = erased[hit].mean(0)
    assert min(covered[:4, :4].max(), covered[-4:, -4:].max()) > 0  # reaches the corners


def test_mixup_blends_each_image_with_the_one_before():
    images, labels = normalize(IMAGES, MEAN, STD), np.eye(5, dtype=np.float32)[LABELS]
    mixed, targets = jax.jit(lambda key: mix(key, images, labels, 0.8, 0.0))(jax.random.key(3))
    before = np.roll(np.arange(16), 1)
    change = images - images[before]
    share = np.vdot(mixed - images[before], change) / np.vdot(change, change)
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[before], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets, share * labels + (1 - share) * labels[before], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [dict(mixup=0.8), dict(cutmix=1.0)])
def test_no_image_is_mixed_with_its_own_copy(settings):
    images, labels = np.repeat(IMAGES[:5], 3, axis=0), np.repeat(np.arange(5, dtype=np.int32), 3)
    shares = [
        np.asarray(RUN(jax.random.key(seed), images, labels, Augment(repeats=3, **settings))[1]) for seed in range(3)
    ]
    assert all((np.count_nonzero(each, axis=1) == 2).all() for each in shares)


def test_cutmix_labels_follow_the_pasted_pixels_exactly():
    images = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None], (4, 9, 7, 1))
    cut, shares = jax.jit(lambda key: mix(key, images, jnp.eye(4), 0.0, 1.0)), set()
    for seed in range(20):
        mixed, targets = cut(jax.random.key(seed))
        for i in range(4):
            kept = np.asarray(mixed[i, :, :, 0] == i)
            assert (np.asarray(mixed[i, :, :, 0])[~kept] == (i - 1) % 4).all()
            pasted = ~kept
            assert pasted.sum() == pasted.any(0).sum() * pasted.any(1).sum()  # one box
            np.testing.assert_allclose(targets[i, i], kept.mean(), rtol=1e-6)
        shares.add(kept.sum())
    assert len(shares) > 10


def test_both_mixes_get_half_of_the_batches_each():
    images = jnp.arange(2.0).reshape(2, 1, 1, 1) * jnp.ones((1, 9, 9, 1))
    draw = jax.jit(jax.vmap(lambda key: mix(key, images, jnp.eye(2), 1.0, 1.0)[0]))
    mixed = np.asarray(draw(jax.random.split(jax.random.key(0), 400)))
    mixup = ~np.isin(mixed, (0, 1)).all((1, 2, 3, 4))
    assert abs(mixup.mean() - 0.5) < 4 * 0.5 / math.sqrt(400)


def test_label_mass_is_one():
    for seed in range(20):
        _, targets = RUN(jax.random.key(seed))
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        assert (targets >= 0).all()


PIL_TONES = {
    "identity": lambda image, s: image,
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "invert": lambda image, s: ImageOps.invert(image),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - abs(s))),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
}
EXACT = {"identity", "equalize", "invert", "posterize", "solarize"}
DARK = (PHOTO // 3 + 20).astype(np.uint8)
EXTREME = RNG.choice(np.array([0, 255], np.uint8), (8, 9, 3))
FLAT = np.full((8, 9, 3), 77, np.uint8)


@pytest.mark.parametrize(
    "image", [PHOTO, DARK, EXTREME, FLAT, PHOTO[..., :1]], ids=["photo", "dark", "extreme", "flat", "grey"]
)
@pytest.mark.parametrize("name", PIL_TONES)
def test_tones_and_detail_match_pil(name, image):
    pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    for strength in (0.9, -0.55, 0.25):
        expected = np.asarray(PIL_TONES[name](pil, strength)).reshape(image.shape).astype(int)
        # PIL truncates where we round, and rounds the grey or smooth image before it blends.
        most = 0 if name in EXACT else 2 if name in ("color", "sharpness") else 1
        assert np.abs(operate(name, strength, image) - expected).max() <= most


def pil_move(name, s):
    """The same geometric operation by PIL, where pixel centres are at half-integers."""
    if name == "rotate":
        return lambda image: image.rotate(-30 * s, Image.Resampling.BILINEAR)
    height, width, _ = PHOTO.shape
    amounts = {"shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45 * width, "translate_y": 0.45 * height}
    shear_x, shear_y, shift_x, shift_y = (most * s * (name == other) for other, most in amounts.items())
    data = (1, shear_x, shift_x - shear_x * height / 2, shear_y, 1, shift_y - shear_y * width / 2)
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("strength", [0.9, -0.5])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_moves_match_pil(name, strength):
    move = pil_move(name, strength)
    inside = np.asarray(move(Image.fromarray(np.full_like(PHOTO, 255)))).min(-1) == 255
    # Not at the edges, where PIL repeats the border and we blend in the fill colour.
    near = [np.roll(np.pad(inside, 1), (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    inner = np.all(near, axis=0)[1:-1, 1:-1]
    assert 0.2 < inner.mean() < 0.95
    ours, theirs = operate(name, strength), np.asarray(move(Image.fromarray(PHOTO))).astype(int)
    assert np.abs(ours - theirs)[inner].max() <= 1
    assert (operate(name, strength, fill=99.0) == 99).all(-1).mean() > 0.01  # the fill comes in


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize", "invert"}))
def test_strength_zero_changes_nothing(name):
    np.testing.assert_array_equal(operate(name, 0.0), PHOTO)


def test_randaugment_draws_every_operation_evenly():
    """With one layer, every result equals that of one operation with one sign; a quarter is left out."""
    count = 2000
    out = jax.jit(lambda key, images: randaugment(key, images, 1, 0.8, MEAN, probability=0.75))(
        jax.random.key(0), jnp.broadcast_to(DARK[:20, :20], (count, 20, 20, 3))
    )
    fill = jnp.asarray(MEAN) * 255
    menu = {}
    for name in OPERATIONS:
        for strength in (0.8, -0.8):
            result = np.asarray(APPLY(DARK[:20, :20], OPERATIONS.index(name), strength, fill)).tobytes()
            menu.setdefault(result, name)
    names = [menu.get(np.asarray(image).tobytes()) for image in out]
    assert None not in names
    for name in OPERATIONS:
        expected = 100 + 500 * (name == "identity")
        assert abs(names.count(name) - expected) < 5 * math.sqrt(expected)


def test_same_key_same_result_and_jit_equals_eager():
    eager, jitted, again = run(jax.random.key(5)), RUN(jax.random.key(5)), RUN(jax.random.key(5))
    for ours, theirs, same in zip(eager, jitted, again, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(theirs, same)
    assert np.abs(RUN(jax.random.key(6))[0] - jitted[0]).max() > 0.1


def test_result_does_not_depend_on_the_number_of_devices():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    images, labels = jax.device_put((IMAGES, LABELS), NamedSharding(mesh, PartitionSpec("batch")))
    for seed in range(4):
        one, eight = RUN(jax.random.key(seed), IMAGES, LABELS), RUN(jax.random.key(seed), images, labels)
        assert len(eight[0].sharding.device_set) == 8
        for ours, theirs in zip(one, eight, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_extreme_pixels_and_any_number_of_channels(channels):
    half = (0.5,) * channels
    images = np.repeat(np.array([0, 255], np.uint8), 4 * 8 * 8 * channels).reshape(8, 8, 8, channels)
    config = Augment(randaugment_layers=2, erasing=0.5)
    out, _ = RUN(jax.random.key(0), images, LABELS[:8], config, half, half)
    assert out.shape == images.shape
    assert np.abs(out).max() <= 1 + 1e-6  # also fails for NaN


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("crop-padding", -1),
        ("randaugment-layers", -1),
        ("randaugment-magnitude", 10.5),
        ("erasing", 1.5),
        ("erasing", float("nan")),
        ("mixup", -0.1),
        ("cutmix", -1.0),
    ],
)
def test_senseless_values_are_named(option, value):
    with pytest.raises(UserError, match=f"--augment.{option} is {value}; it must be"):
        run(jax.random.key(0), config=Augment(**{option.replace("-", "_"): value}))


def test_statistics_need_one_value_per_channel():
    with pytest.raises(UserError, match=r"--data.mean has 1 value; the images have 3 channels"):
        run(jax.random.key(0), config=Augment(), mean=(0.5,))
