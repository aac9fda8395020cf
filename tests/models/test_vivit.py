"""ViViT: masks, memory of its attention, and invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from tests.cases.vivit import SELF
from tests.test_models import variables_of

CASE = FIRST["vivit"]
VIDEO = jax.device_put(np.random.default_rng(0).standard_normal(CASE.input_shape, np.float32))
VARIANTS = pytest.mark.parametrize("kwargs", [{}, SELF], ids=["encoder", "self-attention"])


def built(**kwargs):
    """A model with changed arguments, and random variables."""
    model = build(CASE, **kwargs)
    return model, variables_of(model, VIDEO, {})


@VARIANTS
def test_masked_frames_are_not_read(kwargs):
    """The second of three frames of patches has one masked frame, which masks all of it."""
    model, variables = built(**kwargs)
    mask = jnp.asarray([[True, True, False, True, True, True], [True] * 6])

    @jax.jit
    def run(video):
        logits, back = jax.vjp(lambda video: model.apply(variables, video, mask=mask), video)
        return logits, *back(jnp.ones_like(logits))

    masked, gradient = run(VIDEO)
    slopes = np.abs(gradient).sum((2, 3, 4))
    np.testing.assert_array_equal(slopes > 0, [[1, 1, 0, 0, 1, 1], [1] * 6])
    np.testing.assert_allclose(masked[1], jax.jit(model.apply)(variables, VIDEO)[1], atol=1e-6)


def test_a_mask_that_leaves_no_frame_gives_numbers():
    model, variables = built(**SELF)
    assert jnp.isfinite(jax.jit(model.apply)(variables, VIDEO, mask=jnp.zeros((2, 6), bool))).all()


@VARIANTS
def test_attention_maps_are_not_kept(kwargs):
    def run(use_flash_attn):
        model, variables = built(use_flash_attn=use_flash_attn, **kwargs)
        loss = lambda variables: model.apply(variables, VIDEO).sum()
        kept = jax.tree.leaves(jax.eval_shape(lambda variables: jax.vjp(loss, variables)[1], variables))
        return sum(leaf.shape == (6, 3, 5, 5) for leaf in kept), jax.jit(jax.grad(loss))(variables)

    (with_flash, gradient), (without, expected) = run(True), run(False)
    assert with_flash == 0 < without
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected)


def test_a_shorter_video_gets_the_first_positions():
    """Without temporal layers tokens do not depend on later frames, so they equal those of a shorter video."""
    model, variables = built(num_classes=0, temporal_depth=0, pool="mean")
    whole, part = (jax.jit(model.apply)(variables, video) for video in (VIDEO, VIDEO[:, :4]))
    np.testing.assert_allclose(part, whole[:, :2], atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=10), "image_size=10: expected multiples of image_patch_size=4"),
        (dict(image_patch_size=(4, 3)), r"image_size=8: expected multiples of image_patch_size=\(4, 3\)"),
        (dict(image_patch_size=0), "image_patch_size=0: expected a positive integer"),
        (dict(frames=5), "frames=5: expected a multiple of frame_patch_size=2"),
        (dict(frames=0), "frames=0: expected at least 1"),
        (dict(frame_patch_size=0), "frame_patch_size=0: expected at least 1"),
        (dict(spatial_depth=-1), "spatial_depth=-1: expected at least 0"),
        (dict(temporal_depth=-1), "temporal_depth=-1: expected at least 0"),
        (dict(variant="joint"), "variant='joint': expected one of 'factorized_encoder', 'factorized_self_attention'"),
        (SELF | dict(temporal_depth=3), "temporal_depth=3: expected spatial_depth=2, as each block has both"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(CASE, **kwargs)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 8, 3), r"video of shape \(2, 8, 8, 3\): expected \(batch, frames, height, width, channels\)"),
        ((2, 3, 6, 8, 8), r"video of shape \(2, 3, 6, 8, 8\): expected .* with channels=3"),
        ((2, 5, 8, 8, 3), "frames=5: expected a positive multiple of frame_patch_size=2"),
        ((2, 0, 8, 8, 3), "frames=0: expected a positive multiple of frame_patch_size=2"),
        ((2, 6, 8, 6, 3), r"image_size=\(8, 6\): expected multiples of image_patch_size=\(4, 4\)"),
        ((2, 8, 8, 8, 3), r"\(2, 8, 8, 8, 3\): expected at most frames, image_size=\(6, 8, 8\)"),
        ((2, 6, 8, 12, 3), r"\(2, 6, 8, 12, 3\): expected at most frames, image_size=\("),
    ],
)
def test_bad_videos_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build(CASE).init, jax.random.key(0), jnp.ones(shape))


@pytest.mark.usefixtures("unchecked_types")
@VARIANTS
def test_bad_masks_are_named(kwargs):
    model, variables = built(**kwargs)
    with pytest.raises(ValueError, match=r"mask of shape \(2, 3\): expected \(batch, frames\) = \(2, 6\)"):
        model.apply(variables, VIDEO, mask=jnp.ones((2, 3), bool))
