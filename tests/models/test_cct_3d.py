"""Features of CCT for video only: upstream's functions as presets, windows along frames, constant sines."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch
from vit_jax.layers import sincos_1d


@pytest.mark.parametrize("layers", [2, 4, 6, 7, 8, 14, 16])
def test_presets_are_upstreams_functions(layers):
    pytest.importorskip("torch")
    kwargs = dict(img_size=16) if layers > 2 else dict(img_size=32, kernel_size=7, n_conv_layers=2)
    case = dataclasses.replace(FIRST["cct_3d"], upstream=f"cct_3d:cct_{layers}", kwargs=kwargs, repairs=())
    twin, model = build_upstream(case), create_model(f"cct_3d/cct_{layers}", **kwargs)
    video = jnp.ones((1, 8, model.image_size, model.image_size, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    sizes = lambda tensors: sorted(math.prod(tensor.shape) for tensor in tensors)
    assert sizes(jax.tree.leaves(params)) == sizes(twin.parameters())
    assert model.num_heads == twin.classifier.blocks[0].self_attn.heads
    conv, _, pool = twin.tokenizer.conv_layers[0]
    of_axes = lambda module: list(zip(module.kernel_size, module.stride, module.padding, strict=True))
    assert list(model.axes()) == list(zip(of_axes(conv), of_axes(pool), strict=True))


@pytest.mark.parametrize("frames", [6, 48])
def test_upstreams_sines_are_taken(frames):
    """Upstream computes angles in float32: its sines are off by 4e-6 at position 192, and by 3e-5 at 1,536."""
    torch = pytest.importorskip("torch")
    sizes = dict(num_frames=frames, img_size=(16, 24), stride=2, frame_stride=1, pooling_stride=2)
    case = FIRST["cct_3d"]
    video = jnp.ones((1, frames, 16, 24, 3))
    model, twin = build(case, **sizes), build_upstream(case, **sizes)
    variables = from_torch(model, twin.state_dict(), video)
    expected = twin.eval()(torch.from_numpy(np.moveaxis(np.array(video), -1, 1).copy())).detach().numpy()
    np.testing.assert_allclose(model.apply(variables, video), expected, rtol=1e-5, atol=1e-5)


def test_sines_of_long_sequences_are_upstreams():
    pytest.importorskip("torch")
    import tests.upstream  # noqa: F401

    upstream = pytest.importorskip("vit_pytorch.cct_3d")
    for dim in (10, 27):
        expected = upstream.sinusoidal_embedding(20_000, dim)[0]
        np.testing.assert_allclose(sincos_1d(20_000, dim), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("wrong", ["order", "length of waves", "start", "sign of one", "nan"])
def test_other_sines_are_refused(wrong):
    model, video = build(FIRST["cct_3d"]), jnp.ones((1, 4, 8, 8, 3))
    state = to_torch(model, model.init(jax.random.key(0), video))
    name = "classifier.positional_emb"
    _, count, dim = state[name].shape
    if wrong == "order":
        state[name] = state[name][:, ::-1]
    elif wrong == "length of waves":  # sines with a base of 10,010 in place of 10,000
        angles = np.arange(count)[:, None] / 10_010 ** (np.arange(0, dim, 2) / dim)
        state[name] = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(1, count, dim).astype(np.float32)
    elif wrong == "start":
        state[name] = np.concatenate([state[name][:, 1:], state[name][:, :1]], axis=1)
    elif wrong == "sign of one":
        state[name][0, 1, 0] *= -1
    else:
        state[name][0, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"torch key classifier\.positional_emb differs from its formula"):
        from_torch(model, state, video)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_frames=0), "num_frames=0: expected at least 1"),
        (dict(num_frames=1, frame_padding=0), "num_frames=1: expected sides such as 3"),
        (dict(frame_kernel_size=0), "frame_kernel_size=0: expected at least 1"),
        (dict(frame_stride=0), "frame_stride=0: expected at least 1"),
        (dict(frame_padding=-1), "frame_padding=-1: expected at least 0"),
        (dict(frame_pooling_kernel_size=0), "frame_pooling_kernel_size=0: expected at least 1"),
        (dict(frame_pooling_stride=0), "frame_pooling_stride=0: expected at least 1"),
        (dict(frame_pooling_padding=1), "frame_pooling_padding=1: expected at most half"),
        (dict(img_size=(16, 1), padding=0, kernel_size=4), r"image_size=\(16, 1\): expected sides such as 4"),
        (dict(num_heads=5), "num_heads=5: expected a divisor of embedding_dim=24"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["cct_3d"], **kwargs)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 8, 8, 1), r"video of shape .*: expected \(batch, frames, height, width, channels\) with channels=3"),
        ((2, 8, 8, 3), r"video of shape \(2, 8, 8, 3\): expected"),
        ((2, 2, 8, 8, 3), "num_frames=2: expected sides such as 3"),
        ((2, 4, 8, 1, 3), r"image_size=\(8, 1\): expected sides such as 2"),
        ((2, 5, 8, 8, 3), r"\(2, 5, 8, 8, 3\): expected at most num_frames, image_size=\("),
    ],
)
def test_bad_videos_are_named(shape, message):
    model = build(FIRST["cct_3d"], frame_padding=0, pooling_padding=0, pooling_kernel_size=2)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones(shape))


def test_smaller_videos_get_the_first_positions():
    model = build(FIRST["cct_3d"])
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4, 8, 8, 3)))
    assert jax.eval_shape(model.apply, variables, jnp.ones((1, 2, 4, 6, 3))).shape == (1, 5)
