"""Error messages of the models of video for wrong inputs, SimpleViTs included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax.layers import PatchEmbed

SIMPLE = ("simple_vit_3d", "simple_flash_attn_vit_3d")
VIDEO = pytest.mark.parametrize("name", ["vit_3d", *SIMPLE])


@VIDEO
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(frames=7), "frames=7: expected a positive multiple of frame_patch_size=2"),
        (dict(frames=0), "frames=0: expected a positive multiple of frame_patch_size=2"),
        (dict(frame_patch_size=4), "frames=6: expected a positive multiple of frame_patch_size=4"),
        (dict(frame_patch_size=0), "frame_patch_size=0: expected at least 1"),
        (dict(image_size=10), "image_size=10: expected multiples of image_patch_size=4"),
        (dict(image_size=(8, 10)), r"image_size=\(8, 10\): expected multiples of image_patch_size=4"),
        (dict(image_patch_size=(4, 3)), r"image_size=8: expected multiples of image_patch_size=\(4, 3\)"),
        (dict(image_size=8.0), "image_size=8.0: expected a positive integer or a pair"),
        (dict(image_patch_size=0), "image_patch_size=0: expected a positive integer or a pair"),
        (dict(patch_size=4), "unknown argument of model '.*': 'patch_size'; did you mean"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST[name], **kwargs)


@VIDEO
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (2, 6, 8, 8, 1),
            r"video of shape \(2, 6, 8, 8, 1\): .*\(batch, frames, height, width, channels\) .*channels=3",
        ),
        ((2, 3, 6, 8, 8), r"video of shape \(2, 3, 6, 8, 8\): expected"),
        ((2, 8, 8, 3), r"video of shape \(2, 8, 8, 3\): expected"),
        ((2, 5, 8, 8, 3), "frames=5: expected a positive multiple of frame_patch_size=2"),
        ((2, 6, 8, 6, 3), r"image_size=\(8, 6\): expected multiples of image_patch_size=4"),
    ],
)
def test_bad_videos_are_named(name, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build(FIRST[name]).init, jax.random.key(0), jnp.ones(shape))


def test_only_learned_positions_end():
    init = lambda name: jax.eval_shape(build(FIRST[name]).init, jax.random.key(0), jnp.ones((2, 8, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"video of shape .*: expected at most frames, image_size=\("):
        init("vit_3d")
    for name in SIMPLE:
        init(name)


def test_a_patch_is_some_pixels_of_some_frames():
    """Tokens are ordered by frame, then by row: with constant patches, each token shows its place."""
    numbers = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    video = numbers.repeat(3, axis=0).repeat(4, axis=1).repeat(5, axis=2)[None, ..., None]
    identity = lambda name: lambda x: x
    embed = PatchEmbed((3, 4, 5), dim=1, norm=identity)
    params = dict(proj=dict(kernel=jnp.full((60, 1), 1 / 60), bias=jnp.zeros(1)))
    tokens = embed.apply({"params": params}, jnp.asarray(video))
    np.testing.assert_allclose(tokens.reshape(-1), np.arange(12), rtol=1e-5)
