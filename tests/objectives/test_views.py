"""Views: against PIL, torch and colorsys; their bounds; an independent draw for each sample; deterministic by key."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.objectives.views import (
    DRAWS,
    View,
    blur,
    by_name,
    choose_box,
    color_jitter,
    cubic,
    make_views,
    resize_box,
    triangle,
    turn_hue,
)

RNG = np.random.default_rng(0)
PIXELS = RNG.random((12, 16, 3), np.float32)
BOXES = [(0, 0, 12, 16), (3, 5, 7, 4), (2, 1, 9, 14), (11, 15, 1, 1)]


def draws(count: int) -> dict:
    draw = lambda key: jax.vmap(by_name)(jax.random.uniform(key, (count, sum(DRAWS.values()))))
    return jax.jit(draw)(jax.random.key(0))


RESIZE = jax.jit(resize_box, static_argnums=(2, 3))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [(4, 5), (12, 16), (20, 30)])
@pytest.mark.parametrize(("kernel", "name"), [(triangle, "BILINEAR"), (cubic, "BICUBIC")])
def test_a_box_is_resized_as_pil_does(box, size, kernel, name):
    top, left, height, width = box
    part = PIXELS[top : top + height, left : left + width]
    channels = [Image.fromarray(part[..., i]).resize(size[::-1], Image.Resampling[name]) for i in range(3)]
    ours = RESIZE(PIXELS, np.array(box), size, kernel)
    np.testing.assert_allclose(ours, np.stack([np.asarray(channel) for channel in channels], axis=-1), atol=2e-5)


def test_boxes_keep_their_bounds():
    choose = jax.jit(jax.vmap(lambda d: choose_box(d, 20, 30, (0.1, 0.5), (0.5, 2.0))))
    boxes = np.array(choose(draws(4000)))
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert ((top + height <= 20) & (left + width <= 30)).all()
    assert {0, 1} < set(top)
    assert (top + height).max() == 20
    share = height * width / 600  # sides are whole pixels
    assert 0.08 < share.min() < 0.11
    assert 0.46 < share.max() < 0.53
    assert abs(share.mean() - 0.3) < 0.02
    assert (width / height).min() > 0.45
    assert (width / height).max() < 2.2


def test_where_no_box_fits_the_largest_in_the_middle_is_taken():
    """An image of 4 x 100 pixels has no box of its whole area with similar sides."""
    boxes = jax.vmap(lambda d: choose_box(d, 4, 100, (1.0, 1.0), (1.0, 1.5)))(draws(3))
    np.testing.assert_array_equal(boxes, np.tile([0, 47, 4, 6], (3, 1)))
    boxes = jax.vmap(lambda d: choose_box(d, 100, 4, (1.0, 1.0), (0.5, 1.5)))(draws(3))
    np.testing.assert_array_equal(boxes, np.tile([46, 0, 8, 4], (3, 1)))


def test_hues_turn_as_in_colorsys():
    pixels = np.concatenate([PIXELS, np.full((12, 1, 3), 0.4, np.float32)], axis=1)
    for turn in (-0.4, 0.0, 0.3):
        expected = np.empty_like(pixels)
        for place in np.ndindex(pixels.shape[:2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixels[place].astype(float))
            expected[place] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        np.testing.assert_allclose(jax.jit(turn_hue)(pixels, np.float32(turn)), expected, atol=1e-5)


def test_colours_and_blur_are_torchvisions():
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first  # lets torchvision be imported

    functional = pytest.importorskip("torchvision.transforms.functional")
    image = channels_first(PIXELS[None])[0]
    last = lambda tensor: tensor.movedim(0, -1).numpy()
    theirs = functional.adjust_brightness(image, 1.4)
    theirs = functional.adjust_contrast(theirs, 0.7)
    theirs = functional.adjust_saturation(theirs, 1.3)
    theirs = functional.adjust_hue(theirs, 0.1)
    # Half of the way from none to most, or of the way back: 1 + 0.4, 1 - 0.3, 1 + 0.3, a turn of 0.1.
    jitter = jax.jit(lambda order, image: color_jitter(order, image, 0.4, 0.3, 0.3, 0.1))
    ours = jitter(np.array([1.0, 0.0, 1.0, 1.0], np.float32), PIXELS)
    np.testing.assert_allclose(ours, last(theirs), atol=1e-5)
    theirs = functional.gaussian_blur(image, [9, 9], [1.7, 1.7])
    ours = jax.jit(lambda deviation: blur(jnp.asarray(PIXELS), 9, deviation))(jnp.float32(1.7))
    np.testing.assert_allclose(ours, last(theirs), atol=1e-5)
    assert torch.is_tensor(theirs)


BUSY = View((0.3, 1.0), size=(6, 8), jittered=1.0, blurred=0.5, solarized=0.5, cubic=True)


@pytest.mark.parametrize("shape", [(12, 16, 3), (12, 16, 1), (3, 12, 16, 3), (12, 16, 2)])
def test_every_sample_and_view_has_its_own_draw(shape):
    """Views have one shape and valid pixels, depend only on the key, and do not depend on the other images."""
    images = jnp.broadcast_to(jax.random.uniform(jax.random.key(0), shape), (4, *shape))
    mean, std = (0.4,) * shape[-1], (0.25,)
    traces = []

    @jax.jit
    def make(key):
        traces.append(key)
        return make_views(key, (images - 0.4) / 0.25, BUSY, 3, mean, std)

    views, again, other = (make(jax.random.key(seed)) for seed in (1, 1, 2))
    assert len(traces) == 1
    assert views.shape == (4, 3, *shape[:-3], 6, 8, shape[-1])
    np.testing.assert_array_equal(views, again)
    flat = np.concatenate([views.reshape(12, -1), other.reshape(12, -1)])
    assert len(np.unique(flat.round(4), axis=0)) == 24
    pixels = views * 0.25 + 0.4
    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5


def test_probabilities_are_kept():
    """For each change after the crop separately."""
    image = jnp.asarray(PIXELS * 0.4)  # so dark that a solarized pixel would not be changed
    whole = dict(scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=0.0, jittered=0.0, grey=0.0, blurred=0.0)

    def make(image, count, **probabilities):
        views = lambda key: make_views(key, image[None], View(**whole | probabilities), count, (0.0,), (1.0,))[0]
        return jax.jit(views)(jax.random.key(0))

    for name in ("flip", "jittered", "grey", "blurred"):
        views = make(image, 2000, **{name: 0.3})
        changed = np.abs(np.array(views) - np.array(image)[None]).max(axis=(1, 2, 3)) > 1e-4
        assert abs(changed.mean() - 0.3) < 0.05, name
    np.testing.assert_allclose(make(image, 1, flip=1.0)[0], image[:, ::-1], atol=1e-6)
    grey = make(image, 1, grey=1.0)[0]
    np.testing.assert_allclose(grey[..., 0], np.array(image) @ [0.2989, 0.587, 0.114], atol=1e-5)
    bright = make(1 - image, 1, solarized=1.0)[0]
    np.testing.assert_allclose(bright, image, atol=1e-5)


def test_narrow_images_stay_narrow():
    make = lambda key, images: make_views(key, images, View((0.5, 1.0)), 1, (0.0,), (1.0,))
    views = jax.eval_shape(make, jax.random.key(0), jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.bfloat16))
    assert views.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(scale=(0.0, 1.0)), r"scale=\(0.0, 1.0\): expected two shares of the area"),
        (dict(scale=(0.8, 0.4)), r"scale=\(0.8, 0.4\): expected"),
        (dict(scale=(0.5, 1.0), flip=1.5), "flip=1.5: expected a probability"),
    ],
)
def test_bad_values_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        View(**kwargs)


def test_bad_colours_are_named():
    with pytest.raises(ValueError, match=r"mean=\(0.1, 0.2\): expected a number for each of 3 channels"):
        make_views(jax.random.key(0), jnp.ones((1, 8, 8, 3)), View((0.5, 1.0)), 1, (0.1, 0.2), (1.0,))
