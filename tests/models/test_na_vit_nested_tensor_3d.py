"""Volumes packed into one sequence: patches, registers, packed volumes under jit, token dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import test_models
from tests.cases import FIRST
from tests.cases.case import build
from vit_jax.layers.packing import pack_images

FIRST_3D = FIRST["na_vit_nested_tensor_3d"]
MIXES = ([(2, 16, 16), (6, 8, 12), (4, 4, 16)], [(2, 4, 4)], [(6, 4, 4), (2, 8, 8), (4, 16, 8), (2, 4, 4)])


def volumes_of(sizes, channels=3, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*size, channels), np.float32) for size in sizes]


def variables_of(model):
    return test_models.variables_of(model, np.ones((1, 6, 16, 16, 3), np.float32), {})


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_packing_keeps_every_voxel_and_its_place():
    """Checks, by loops over tokens, the voxels of each patch, its frame, row and column, and its volume."""
    volumes = volumes_of([(4, 4, 6), (2, 2, 3)], channels=2)
    packed = pack_images(volumes, (2, 2, 3), seq_len=10)
    assert [array.shape for array in packed] == [(1, 10, 24), (1, 10, 3), (1, 10), (1, 2)]
    np.testing.assert_array_equal(packed.segment_ids, [[0] * 8 + [1, -1]])
    for token in range(8):
        f, y, x = np.unravel_index(token, (2, 2, 2))
        part = volumes[0][2 * f : 2 * f + 2, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3]
        voxels = [part[t, i, j, c] for c in range(2) for t in range(2) for i in range(2) for j in range(3)]
        np.testing.assert_array_equal(packed.patches[0, token], voxels)
        np.testing.assert_array_equal(packed.positions[0, token], (f, y, x))


def test_packed_volumes_never_trace_again_and_give_the_same():
    model = build(FIRST_3D)
    variables, traces = variables_of(model), []

    @jax.jit
    def apply(variables, packed):
        traces.append(packed)
        return model.apply(variables, packed)

    for i, sizes in enumerate(MIXES):
        volumes = volumes_of(sizes, seed=i)
        packed = model.pack(volumes, rows=3, seq_len=20, max_images=3)
        logits = apply(variables, packed)
        assert logits.shape == (3, 3, 5)
        assert np.isfinite(logits).all()
        assert_close(np.asarray(logits)[np.asarray(packed.kept) > 0], jax.jit(model.apply)(variables, volumes))
    assert len(traces) == 1


def test_a_batch_is_a_list_of_equal_volumes():
    model, x = build(FIRST_3D), np.stack(volumes_of([(4, 8, 12)] * 3))
    variables = variables_of(model)
    apply = jax.jit(model.apply)
    assert_close(apply(variables, x), apply(variables, list(x)))


def test_volumes_read_their_own_registers_and_no_other_volume():
    model, volumes = build(FIRST_3D), volumes_of(MIXES[0])
    variables = variables_of(model)
    logits, collected = jax.jit(lambda *args: model.apply(*args, mutable=["intermediates"]))(variables, volumes)
    for i, volume in enumerate(volumes):
        assert_close(jax.jit(model.apply)(variables, [volume])[0], np.asarray(logits)[i])
    (attn,) = collected["intermediates"]["attn_0"]["attn"]
    of_volume = np.concatenate([np.repeat([0, 1, 2], [16, 18, 8]), np.repeat([0, 1, 2], 4)])
    np.testing.assert_array_equal(np.asarray(attn[0, 0] > 0), of_volume[:, None] == of_volume[None])


@pytest.mark.parametrize(
    "rate", [0.5, lambda frames, height, width: 0.25 if height > width else 0.75], ids=["number", "callable"]
)
def test_token_dropout_leaves_its_share_in_training(rate):
    """Logits of a volume depend on the right share of its patches; registers are not dropped."""
    model = build(FIRST_3D, token_dropout_prob=rate)
    variables, volumes = variables_of(model), [jnp.asarray(v) for v in volumes_of([(4, 16, 8), (2, 8, 16)])]

    @jax.jit
    def used(variables, volumes):
        loss = lambda *args: model.apply(*args, train=True, rngs={"dropout": jax.random.key(0)}).sum()
        return jax.grad(loss, argnums=(0, 1))(variables, volumes)

    of_variables, of_volumes = used(variables, volumes)
    assert jnp.all(of_variables["params"]["register_tokens"].any(axis=1))
    shares = [
        np.mean(np.any(grad.reshape(grad.shape[0] // 2, 2, grad.shape[1] // 4, 4, -1, 4, 3) != 0, axis=(1, 3, 5, 6)))
        for grad in of_volumes
    ]
    assert shares == ([0.5, 0.5] if rate == 0.5 else [0.75, 0.25])
    evaluate = lambda model: jax.jit(model.apply)(variables, volumes)
    assert_close(evaluate(model), evaluate(build(FIRST_3D)))


def test_dropout_without_a_rate_for_tokens():
    model, volumes = build(FIRST_3D, token_dropout_prob=None), volumes_of(MIXES[0])
    variables = variables_of(model)
    assert_close(model.apply(variables, volumes, train=True), model.apply(variables, volumes))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(max_frames=5), "max_frames=5: expected a multiple of frame_patch_size=2"),
        (dict(max_frames=0), "max_frames=0: expected at least 1"),
        (dict(frame_patch_size=0), "frame_patch_size=0: expected at least 1"),
        (dict(num_registers=-1), "num_registers=-1: expected at least 0"),
        (dict(image_size=18), "image_size=18: expected multiples of patch_size=4"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST_3D, **kwargs)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 16, 16, 3), r"volume of shape \(8, 16, 16, 3\): expected at most max_frames, image_size=\(6, 16, 16\)"),
        ((4, 16, 20, 3), r"volume of shape \(4, 16, 20, 3\): expected at most"),
        ((3, 16, 16, 3), r"\(3, 16, 16, 3\): expected multiples of frame_patch_size, patch_size=\(2, 4, 4\)"),
        ((4, 16, 10, 3), r"volume of shape \(4, 16, 10, 3\): expected multiples"),
        ((4, 0, 8, 3), r"volume of shape \(4, 0, 8, 3\): expected multiples"),
        ((4, 16, 16, 1), r"\(4, 16, 16, 1\): expected \(frames, height, width, channels=3\)"),
        ((16, 16, 3), r"volume of shape \(16, 16, 3\): expected \(frames, height, width, channels=3\)"),
    ],
)
def test_bad_volumes_are_named(shape, message):
    model = build(FIRST_3D)
    with pytest.raises(ValueError, match=message):
        model.pack([np.zeros(shape, np.float32)])
    if len(shape) == 4:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *shape)))


def test_what_is_no_batch_of_volumes_is_named():
    with pytest.raises(ValueError, match=r"volumes of shape \(2, 16, 16, 3\): expected \(batch, frames, height, width"):
        jax.eval_shape(build(FIRST_3D).init, jax.random.key(0), jnp.zeros((2, 16, 16, 3)))
