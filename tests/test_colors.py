"""3-Augment and colour jitter: against torchvision and Pillow, their distributions, and the images that they take."""

import itertools
import math

import jax
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from train.config import Augment
from train.data import colors
from train.data.augment import augment
from train.data.colors import jittered, one_of_three, three_augment
from train.errors import UserError

RNG = np.random.default_rng(0)
FACTORS = (0.7, 1.3, 0.8)


def photo():
    """A smooth uint8 image of 24 x 20 pixels with noise."""
    y, x = np.mgrid[:24, :20]
    waves = np.stack([np.sin(x / 4 + phase) * np.cos(y / 6 - phase) for phase in (0, 1, 2)], -1)
    return np.round(127 + 100 * waves + RNG.normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8)


PHOTO = photo()
FLOATS = (PHOTO / 255).astype(np.float32)
ONE_OF_THREE, JITTERED = jax.jit(one_of_three), jax.jit(jittered)


def torchvision():
    """torchvision's functions of images, and FLOATS as it takes them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("tests.upstream")  # makes torchvision importable
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    return functional, torch.from_numpy(FLOATS).permute(2, 0, 1)


def test_three_changes_equal_those_of_torchvision():
    functional, image = torchvision()
    expected = [functional.rgb_to_grayscale(image, 3), functional.solarize(image, 0.5)]
    deviations = (0.1, 0.7, 2.0)
    expected += [functional.gaussian_blur(image, [13, 13], [deviation] * 2) for deviation in deviations]
    choices = [(0, 1.0), (1, 1.0), *((2, deviation) for deviation in deviations)]
    for (choice, deviation), theirs in zip(choices, expected, strict=True):
        ours = ONE_OF_THREE(FLOATS, choice, deviation)
        np.testing.assert_allclose(ours, theirs.permute(1, 2, 0), atol=1e-6)


def test_three_changes_are_those_of_pillow():
    """Which the authors of DeiT III use, on bytes."""
    picture = Image.fromarray(PHOTO)
    grey = np.asarray(ImageOps.grayscale(picture))[..., None]
    np.testing.assert_allclose(ONE_OF_THREE(FLOATS, 0, 1.0) * 255, np.tile(grey, 3), atol=1)  # Pillow rounds
    np.testing.assert_allclose(ONE_OF_THREE(FLOATS, 1, 1.0) * 255, np.asarray(ImageOps.solarize(picture)), atol=1e-4)
    for deviation in (0.5, 1.0, 2.0):
        theirs = np.asarray(picture.filter(ImageFilter.GaussianBlur(deviation)), np.float32)
        ours = np.asarray(ONE_OF_THREE(FLOATS, 2, deviation)) * 255
        # Three box blurs, rounded each, are not quite a Gaussian; borders differ, because Pillow repeats them.
        assert np.abs(ours - theirs)[6:-6, 6:-6].max() < 3


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_jitter_equals_that_of_torchvision(order):
    functional, image = torchvision()
    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation")
    for i in order:
        image = getattr(functional, names[i])(image, FACTORS[i])
    ours = JITTERED(FLOATS, np.array(order), np.array(FACTORS, np.float32), None)
    np.testing.assert_allclose(ours, image.permute(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize("turn", [0.3, -0.1])
def test_hue_equals_that_of_torchvision(turn):
    functional, image = torchvision()
    expected = functional.adjust_brightness(functional.adjust_hue(image, turn), 0.7)
    still = np.array([0.7, 1, 1], np.float32)
    ours = JITTERED(FLOATS, np.array([1, 3, 2, 0]), still, np.float32(turn))
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0), atol=2e-6)


def test_each_of_the_three_changes_comes_as_often():
    count = 3000
    image = np.tile(np.array([0.9, 0.1, 0.4], np.float32), (2, 2, 1))
    changed = np.asarray(jax.jit(three_augment)(jax.random.key(0), np.broadcast_to(image, (count, 2, 2, 3))))
    expected = [np.full(3, 0.2989 * 0.9 + 0.587 * 0.1 + 0.114 * 0.4), [0.1, 0.1, 0.4], [0.9, 0.1, 0.4]]
    found = [np.isclose(changed, np.asarray(colour, np.float32), atol=1e-5).all((1, 2, 3)) for colour in expected]
    assert sum(each.sum() for each in found) == count
    for each in found:
        assert abs(each.mean() - 1 / 3) < 4 * math.sqrt(2 / 9 / count)


@pytest.mark.usefixtures("unchecked_types")
def test_jitter_draws_factors_turn_and_order_for_each_image(monkeypatch):
    monkeypatch.setattr(colors, "jittered", lambda image, order, factors, turn: (order, factors, turn))
    count = 2400
    drawn = jax.jit(lambda key: colors.color_jitter(key, np.zeros((count, 1, 1, 3), np.float32), 0.3, 0.1))
    order, factors, turn = (np.asarray(each) for each in drawn(jax.random.key(0)))
    for values, middle, most in ((factors, 1, 0.3), (turn, 0, 0.1)):
        assert np.abs(values - middle).max() == pytest.approx(most, rel=0.01)
        assert values.mean() == pytest.approx(middle, abs=4 * most / math.sqrt(3 * count))
    orders, counts = np.unique(order, axis=0, return_counts=True)
    assert orders.tolist() == [list(each) for each in itertools.permutations(range(4))]
    assert np.abs(counts - count / 24).max() < 4 * math.sqrt(count / 24)


def run(images, config):
    channels = images.shape[-1]
    targets, half = np.eye(2, dtype=np.float32)[: len(images)], (0.5,) * channels
    return augment(jax.random.key(0), images, targets, config, mean=half, std=half)


ALL = Augment(three_augment=True, color_jitter=0.4)


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_and_both_types_of_integers(channels):
    levels = RNG.integers(0, 256, (2, 4, 4, channels), dtype=np.uint8)  # smaller than the kernel of the blur
    both = jax.jit(lambda *images: [run(each, ALL)[0] for each in images])
    of_bytes, of_words = both(levels, levels.astype(np.uint16) * 257)
    np.testing.assert_allclose(of_words, of_bytes, atol=1e-5)  # white is 65535 = 255 * 257
    assert np.abs(of_bytes).max() <= 1 + 1e-6  # also fails for NaN
    assert np.abs(of_bytes - (levels / 127.5 - 1)).max() > 0.1


@pytest.mark.parametrize(
    ("config", "dtype", "channels", "message"),
    [
        (Augment(three_augment=True), np.float32, 3, "--augment.three-augment needs uint8 or uint16 images, not float"),
        (Augment(color_jitter=0.1), np.float32, 1, "--augment.color-jitter needs uint8 or uint16 images, not float32"),
        (Augment(hue=0.1), np.uint8, 1, "--augment.hue needs images with three channels; these have 1"),
        (Augment(color_jitter=1.5), np.uint8, 3, "--augment.color-jitter is 1.5; it must be"),
    ],
)
def test_images_whose_colours_cannot_be_changed(config, dtype, channels, message):
    with pytest.raises(UserError, match=message):
        run(np.zeros((2, 4, 4, channels), dtype), config)


def test_mixed_images_may_have_both_classes():
    images = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    _, targets = jax.jit(lambda x: run(x, Augment(mixup=0.8, mixed_targets="both")))(images)
    np.testing.assert_array_equal(targets, 1)
