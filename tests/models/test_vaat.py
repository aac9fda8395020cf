"""Spectrograms of AST, views of sound in VAAT, and invalid arguments of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from tests.cases.vaat import HEARD, SMALL, SPEC
from tests.cases.vat import TRUNK
from tests.test_models import variables_of
from vit_jax import create_model, list_presets
from vit_jax.models.vaat import hann_window

SOUND = np.random.default_rng(0).standard_normal((2, 300), np.float32)
IMAGES = jnp.asarray(np.random.default_rng(1).standard_normal((2, 2, 8, 8, 3), np.float32))


def ast(**kwargs):
    return create_model("vaat:AST", **HEARD | kwargs)


def test_spectrogram_by_hand():
    """Frames of 8 samples every 3, with a centred window of 4, times the cosine and sine of each frequency."""
    model = ast(spec_n_fft=8, spec_win_length=4, spec_hop_length=3, spec_center=False)
    window = np.array([0, 0, 0, 0.5, 1, 0.5, 0, 0])
    frames = np.stack([SOUND[:, 3 * i : 3 * i + 8] * window for i in range((300 - 8) // 3 + 1)], axis=1)
    angles = 2 * np.pi * np.arange(5)[:, None] * np.arange(8) / 8
    expected = (frames @ np.cos(angles).T) ** 2 + (frames @ np.sin(angles).T) ** 2
    np.testing.assert_allclose(model.spectrogram(jnp.asarray(SOUND)), expected.swapaxes(1, 2), rtol=1e-4, atol=1e-5)


OPTIONS = [
    dict(),
    dict(n_fft=31, win_length=20, hop_length=None, pad=2, center=True, pad_mode="reflect", power=1),
    dict(n_fft=32, win_length=None, hop_length=5, pad=0, center=True, pad_mode="constant", power=2),
    dict(n_fft=32, win_length=1, hop_length=3, pad=0, center=True, pad_mode="replicate", power=0.5),
    dict(n_fft=32, win_length=32, hop_length=40, pad=7, center=True, pad_mode="circular", power=3),
    dict(n_fft=33, win_length=2, hop_length=1, pad=1, center=False, pad_mode="reflect", power=2),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_spectrogram_is_torchs(options):
    torch = pytest.importorskip("torch")
    from tests.upstream import Spectrogram

    default = dict(n_fft=128, win_length=24, hop_length=None, pad=0, center=True, pad_mode="reflect", power=2)
    twin = Spectrogram(**default | options)
    expected = twin(torch.from_numpy(SOUND)).numpy()
    ours = ast(**{f"spec_{name}": value for name, value in options.items()}).spectrogram(jnp.asarray(SOUND))
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * expected.max())
    np.testing.assert_allclose(hann_window(len(twin.window)), twin.window, atol=3e-7)  # torch's is computed in float32


def test_silence_has_a_gradient():
    """The gradient of a root is infinite at zero; for silence ours is zero, as torch's, instead of NaN."""
    loss = lambda sound: ast(spec_power=1).spectrogram(sound).sum()
    assert not np.any(jax.grad(loss)(jnp.zeros((1, 150))))
    assert np.isfinite(jax.grad(loss)(jnp.zeros((1, 150)).at[0, 60].set(1.0))).all()


def test_sound_is_read_as_its_spectrogram_is():
    sound = jnp.asarray(SOUND)
    raw, time_first = ast(patch_size=6), ast(patch_size=6, accept_spec=True)
    frequency_first = ast(patch_size=6, accept_spec=True, accept_spec_time_first=False)
    variables, spec = variables_of(raw, sound, {}), raw.spectrogram(sound)
    logits = raw.apply(variables, sound)
    np.testing.assert_array_equal(time_first.apply(variables, spec.swapaxes(1, 2)), logits)
    np.testing.assert_array_equal(frequency_first.apply(variables, spec), logits)
    assert logits.shape == (2, 5)


def test_what_does_not_fill_a_patch_is_left_out():
    model, spec = create_model("vaat:AST", **SPEC), jnp.asarray(SOUND[:, :140].reshape(2, 14, 10))
    variables = variables_of(model, spec, {})
    features = model.apply(variables, spec)
    np.testing.assert_array_equal(model.apply(variables, spec.at[:, 12:].add(1).at[:, :, 9:].add(1)), features)
    assert not np.array_equal(model.apply(variables, spec.at[:, 11, 8].add(1)), features)
    assert features.shape == (2, 16)


@pytest.fixture(scope="module")
def two_microphones():
    model = create_model("vaat", **SMALL | dict(vit=TRUNK, ast=HEARD, num_audio_views=2))
    sound = jnp.stack([SOUND, SOUND[::-1] + 1], axis=1)
    return model, variables_of(model, IMAGES, dict(audio_or_spec=sound)), sound


def test_views_of_sound_are_told_apart_in_any_batch(two_microphones):
    """Upstream uses the index of a view as the index in the batch."""
    model, variables, sound = two_microphones
    apply = jax.jit(model.apply)
    actions = apply(variables, IMAGES, sound)
    alone = [apply(variables, IMAGES[i : i + 1], sound[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(jnp.concatenate(alone), actions, atol=1e-5)
    assert np.abs(apply(variables, IMAGES, sound[:, ::-1]) - actions).max() > 1e-3


def test_one_view_may_lack_its_axis():
    for kwargs, sound in ((HEARD, SOUND), (SPEC, SOUND[:, :120].reshape(2, 12, 10))):
        model = create_model("vaat", **SMALL | dict(vit=TRUNK, ast=kwargs))
        sound = jnp.asarray(sound)
        variables = variables_of(model, IMAGES, dict(audio_or_spec=sound))
        apply = jax.jit(model.apply)
        expected = apply(variables, IMAGES[:, :1], sound[:, None])
        np.testing.assert_array_equal(apply(variables, IMAGES[:, 0], sound), expected)


@pytest.mark.parametrize(("freeze", "still"), [("freeze_vit", "vit"), ("freeze_ast", "ast")])
def test_each_encoder_is_frozen_alone(two_microphones, freeze, still):
    model, variables, sound = two_microphones
    loss = lambda params: model.apply({"params": params}, IMAGES, sound, actions=jnp.ones((2, 7, 6)), **{freeze: True})
    gradients = jax.jit(jax.grad(loss))(variables["params"])
    moves = {name: any(jnp.any(leaf) for leaf in jax.tree.leaves(gradients[name])) for name in ("vit", "ast")}
    assert moves == {"vit": still != "vit", "ast": still != "ast"}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(dim=18), "dim=18: expected a multiple of 4"),
        (dict(patch_size=0), "patch_size=0: expected a positive integer"),
        (dict(spec_n_fft=0), "spec_n_fft=0: expected at least 1"),
        (dict(spec_win_length=129), "spec_win_length=129: expected at most spec_n_fft=128"),
        (dict(spec_win_length=0), "spec_win_length=0: expected at least 1"),
        (dict(spec_hop_length=0), "spec_hop_length=0: expected at least 1"),
        (dict(spec_pad=-1), "spec_pad=-1: expected at least 0"),
        (dict(spec_power=None), "spec_power=None: expected more than 0"),
        (dict(spec_power=0), "spec_power=0: expected more than 0"),
        (dict(spec_pad_mode="same"), "spec_pad_mode='same': expected one of 'reflect', 'constant'"),
    ],
)
def test_bad_arguments_of_an_ast_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ast(**kwargs)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "shape", "message"),
    [
        ({}, (2, 3, 150), r"audio of shape \(2, 3, 150\): expected \(batch, samples\), as accept_spec=False"),
        (dict(accept_spec=True), (2, 150), r"audio of shape \(2, 150\): expected \(batch, time, frequency\)"),
        (dict(accept_spec=True), (2, 15, 20), r"has 20 frequencies and 15 frames, expected at least patch_size=16"),
        (
            {},
            (2, 100),
            r"audio of shape .*: its spectrogram has 65 frequencies and 9 frames, expected at least",
        ),
        ({}, (2, 64), r"audio of shape \(2, 64\): expected at least 65 samples"),
        (dict(spec_pad=10), (2, 44), r"audio of shape \(2, 44\): expected at least 45 samples"),
        (dict(spec_center=False), (2, 127), r"audio of shape \(2, 127\): expected at least 128 samples"),
    ],
)
def test_bad_sound_is_named(kwargs, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ast(**kwargs).init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depth=3), "depth=3: expected 2, the depth of its ViT, or vit_layer_indices"),
        (dict(depth=1, vit_layer_indices=(0,)), "depth=1: expected 2, the depth of its AST, or ast_layer_indices"),
        (dict(ast_layer_indices=(0, 3)), r"ast_layer_indices=\(0, 3\): expected for each of depth=2 layers one of"),
        (dict(ast=HEARD | dict(hop=3)), "ast=.*: expected arguments of 'vaat:AST'; .*'hop'"),
        (dict(num_image_views=0), "num_image_views=0: expected at least 1"),
        (dict(num_audio_views=0), "num_audio_views=0: expected at least 1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("vaat", **SMALL | dict(vit=TRUNK, ast=HEARD) | kwargs)


@pytest.mark.usefixtures("unchecked_types")
def test_bad_inputs_are_named():
    heard = dict(num_audio_views=2, num_image_views=2)
    for kwargs, images, sound, message in (
        ({}, 2, (2, 1, 1, 150), r"audio_or_spec of shape \(2, 1, 1, 150\): expected \(batch, views, samples\)"),
        (heard, 2, (2, 300), "1 views: expected num_audio_views=2"),
        (heard, 1, (2, 2, 300), "1 views: expected num_image_views=2"),
        (dict(ast=SPEC), 2, (2, 150), r"audio_or_spec of shape \(2, 150\): expected \(batch, views, time, frequency\)"),
    ):
        model = create_model("vaat", **SMALL | dict(vit=TRUNK, ast=HEARD) | kwargs)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), IMAGES[:, :images], jnp.zeros(sound))


def test_the_preset_is_what_upstream_shows():
    model = create_model("vaat/upstream")
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 2, 4, 256, 256, 3), (2, 2, 14_100 * 5))]
    actions, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    assert actions.shape == (2, 7, 20)
    assert list_presets("vaat:AST") == list_presets("vaat:ViT") == ["tiny"]
    assert type(build(FIRST["vaat:ViT"])) is type(build(FIRST["vat:ViT"]))
