"""VAT: its inputs, views, frames and conditions, and invalid arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from tests.cases.vat import ACTIONS, CONDITIONED, SMALL, TRUNK, VIDEO
from tests.test_models import variables_of
from vit_jax import create_model

RNG = np.random.default_rng(0)
VIEWS, MOVIE = (jnp.asarray(RNG.standard_normal(shape, np.float32)) for shape in ((2, 2, 8, 8, 3), (2, 2, 3, 8, 8, 3)))
CONDITIONAL = build(FIRST["vat"], **CONDITIONED)


def vat(images, **kwargs):
    """A model as a function of its inputs, with parameters that are not the initial ones."""
    model = build(FIRST["vat"], **kwargs)
    apply = jax.jit(model.apply, static_argnames="return_hiddens")
    return functools.partial(apply, variables_of(model, images, {}))


@pytest.fixture(scope="module")
def conditional():
    return vat(VIEWS, **CONDITIONED)


def test_axes_of_one_view_and_of_one_frame_may_be_left_out():
    images = vat(VIEWS, **SMALL)
    np.testing.assert_array_equal(images(VIEWS[:, 0]), images(VIEWS[:, :1]))
    np.testing.assert_array_equal(images(VIEWS), images(VIEWS[:, :, None]))
    video = vat(MOVIE[:, :1], **VIDEO | dict(num_views=1))
    np.testing.assert_array_equal(video(MOVIE[:, 0]), video(MOVIE[:, :1]))


def test_views_are_told_apart_where_there_is_a_number_of_them():
    """Attention reads a set, so views need embeddings to be distinguished. Frames always have embeddings."""
    for num_views in (None, 2):
        video = vat(MOVIE, **VIDEO | dict(num_views=num_views))
        actions = video(MOVIE)
        assert np.allclose(video(MOVIE[:, ::-1]), actions, atol=1e-5) == (num_views is None)
        assert not np.allclose(video(MOVIE[:, :, ::-1]), actions, atol=1e-3)


def test_any_number_of_views_is_read_where_none_is_given():
    for num_views in (None, 1):
        images = vat(VIEWS, **SMALL | dict(num_views=num_views))
        np.testing.assert_allclose(images(jnp.concatenate([VIEWS, VIEWS], axis=1)), images(VIEWS), atol=1e-5)


def test_a_dict_stands_for_a_vit():
    shapes = [
        jax.eval_shape(build(FIRST["vat"], vit=vit).init, jax.random.key(0), VIEWS)
        for vit in (TRUNK, create_model("vat:ViT", **TRUNK))
    ]
    assert shapes[0] == shapes[1]


def test_layers_are_read_by_their_numbers():
    """The second of two blocks of a ViT changes its output, layer 2 or -1, but not its input, layer 1."""
    for layer, changes in ((0, False), (1, False), (2, True), (-1, True), (-2, False)):
        model = build(FIRST["vat"], **SMALL | dict(depth=1, vit_layer_indices=(layer,)))
        params = variables_of(model, VIEWS, {})["params"]
        other = jax.tree.map(lambda x: x, params)
        other["vit"]["transformer"]["ff_1"]["fc2"]["bias"] += RNG.standard_normal(24)
        apply = jax.jit(model.apply)
        actions = [apply({"params": p}, VIEWS) for p in (params, other)]
        assert np.array_equal(*actions) != changes


def test_film_starts_as_the_identity_and_learns():
    variables, tasks = jax.jit(CONDITIONAL.init)(jax.random.key(0), VIEWS), jnp.array([2, 0])
    apply = jax.jit(CONDITIONAL.apply)
    np.testing.assert_allclose(apply(variables, VIEWS, tasks=tasks), apply(variables, VIEWS), rtol=0, atol=1e-6)
    loss = lambda params: CONDITIONAL.apply({"params": params}, VIEWS, tasks=tasks, actions=jnp.ones((2, 7, 6)))
    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(jnp.any(gradients[f"film_{i}"]["kernel"]) for i in range(2))


def test_each_condition_matters_to_its_own_sample(conditional):
    plain = conditional(VIEWS)
    extra = jnp.asarray(RNG.standard_normal((2, 5), np.float32))
    for keywords in (dict(extra=extra), dict(tasks=jnp.array([0, 1])), dict(advantages=jnp.array([-1, 2]))):
        assert np.abs(conditional(VIEWS, **keywords) - plain).max() > 1e-3
    for name, values in (("tasks", ([0, 1], [0, 2])), ("advantages", ([3, -1], [3, 0]))):
        a, b = (conditional(VIEWS, **{name: jnp.array(value)}) for value in values)
        np.testing.assert_array_equal(a[0], b[0])
        assert np.abs(a[1] - b[1]).max() > 1e-3
    np.testing.assert_array_equal(conditional(VIEWS, extra=extra), conditional(VIEWS, extra=extra[:, None]))


def test_numbers_beyond_a_table_give_nan(conditional):
    for name, number in (("tasks", 3), ("advantages", 4), ("advantages", -2)):
        actions = conditional(VIEWS, **{name: jnp.array([0, number])})
        assert np.isfinite(actions[0]).all()
        assert np.isnan(actions[1]).all()


def test_loss_is_the_mean_distance_and_comes_alone(conditional):
    actions = jnp.asarray(RNG.standard_normal((2, 7, 6), np.float32))
    expected = np.abs(np.asarray(conditional(VIEWS)) - np.asarray(actions)).mean()
    for keywords in ({}, dict(return_hiddens=True)):
        np.testing.assert_allclose(conditional(VIEWS, actions=actions, **keywords), expected, rtol=1e-6)


def test_parameters_do_not_depend_on_what_is_given():
    shapes = lambda **given: jax.eval_shape(CONDITIONAL.init, jax.random.key(0), VIEWS, **given)
    given = dict(extra=jnp.ones((2, 5)), tasks=jnp.array([0, 1]), advantages=jnp.array([0, 1]))
    assert shapes() == shapes(**given) == shapes(actions=jnp.ones((2, 7, 6)))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depth=3), "depth=3: expected 2, the depth of its ViT, or vit_layer_indices"),
        (dict(depth=0), "depth=0: expected at least 1"),
        (dict(vit_layer_indices=(0,)), r"vit_layer_indices=\(0,\): expected for each of depth=2 layers one of -3 to 2"),
        (dict(vit_layer_indices=(0, 3)), r"vit_layer_indices=\(0, 3\): expected for each of depth=2 layers one of"),
        (dict(vit_layer_indices=(0, -4)), r"vit_layer_indices=\(0, -4\): expected for each of depth=2 layers one of"),
        (dict(vit=create_model("vit/tiny", num_classes=2)), r"vit=.*expected a model made by create_model\('vat:ViT'"),
        (dict(vit=None), "vit=None: expected a model made by create_model"),
        (dict(vit=TRUNK | dict(patches=3)), "vit=.*: expected arguments of 'vat:ViT'; .*'patches'"),
        (dict(vit=TRUNK | dict(patch_size=3)), "image_size=8: expected multiples of patch_size=3"),
        (dict(num_views=0), "num_views=0: expected at least 1"),
        (dict(time_seq_len=0), "time_seq_len=0: expected at least 1"),
        (dict(dim_action=0), "dim_action=0: expected at least 1"),
        (dict(action_chunk_len=0), "action_chunk_len=0: expected at least 1"),
        (dict(num_tasks=0), "num_tasks=0: expected at least 1"),
        (dict(dim_extra_token=0), "dim_extra_token=0: expected at least 1"),
        (dict(self_attn_heads=0), "self_attn_heads=0: expected at least 1"),
        (dict(self_attn_dim_head=0), "self_attn_dim_head=0: expected at least 1"),
        (dict(num_advantage_bins=-1), "num_advantage_bins=-1: expected at least 0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        create_model("vat", **ACTIONS | dict(vit=TRUNK) | kwargs)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "shape", "given", "message"),
    [
        (SMALL, (2, 8, 3), {}, r"video_or_image of shape \(2, 8, 3\): expected \(batch, views, frames, height, width"),
        (SMALL, (2, 2, 3, 8, 8, 3), {}, r"video_or_image of shape .*: expected .* time_seq_len=1 frames"),
        (VIDEO, (2, 2, 2, 8, 8, 3), {}, r"video_or_image of shape .*: expected .* time_seq_len=3 frames"),
        (VIDEO, (2, 8, 8, 3), {}, r"video_or_image of shape .*: expected .* time_seq_len=3 frames"),
        (VIDEO, (2, 3, 8, 8, 3), {}, "1 views: expected num_views=2"),
        (VIDEO, (2, 4, 3, 8, 8, 3), {}, "4 views: expected num_views=2"),
        (SMALL, (2, 2, 3, 8, 8), {}, r"images of shape \(4, 3, 8, 8\): expected .* with channels=3"),
        (SMALL, (2, 2, 8, 8, 3), dict(tasks=(2,)), "tasks given: expected none, as num_tasks=None"),
        (SMALL, (2, 2, 8, 8, 3), dict(extra=(2, 5)), "extra given: expected none, as dim_extra_token=None"),
        (SMALL, (2, 2, 8, 8, 3), dict(advantages=(2,)), "advantages given: expected none, as num_advantage_bins=0"),
        (CONDITIONED, (2, 2, 8, 8, 3), dict(tasks=(3,)), r"tasks of shape \(3,\): expected \(2,\)"),
        (CONDITIONED, (2, 2, 8, 8, 3), dict(tasks=(2, 1)), r"tasks of shape \(2, 1\): expected \(2,\)"),
        (CONDITIONED, (2, 2, 8, 8, 3), dict(advantages=(1,)), r"advantages of shape \(1,\): expected \(2,\)"),
        (CONDITIONED, (2, 2, 8, 8, 3), dict(extra=(2, 4)), r"extra of shape \(2, 4\): expected \(2, 5\)"),
        (CONDITIONED, (2, 2, 8, 8, 3), dict(extra=(1, 3, 5)), r"extra of shape \(1, 3, 5\): expected \(2, 3, 5\)"),
        (CONDITIONED, (2, 2, 8, 8, 3), dict(actions=(2, 6, 6)), r"actions of shape \(2, 6, 6\): expected \(2, 7, 6\)"),
        (CONDITIONED, (2, 2, 8, 8, 3), dict(actions=(2, 7, 1)), r"actions of shape \(2, 7, 1\): expected \(2, 7, 6\)"),
    ],
)
def test_bad_inputs_are_named(kwargs, shape, given, message):
    values = {name: jnp.zeros(of, "i4" if name in ("tasks", "advantages") else "f4") for name, of in given.items()}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build(FIRST["vat"], **kwargs).init, jax.random.key(0), jnp.zeros(shape), **values)


def test_a_bad_advantage_is_named():
    for advantage in (-2, 4):
        with pytest.raises(ValueError, match=f"advantages={advantage}: expected -1 to 3"):
            jax.eval_shape(lambda x: CONDITIONAL.init(jax.random.key(0), x, advantages=advantage), VIEWS)  # noqa: B023


@pytest.mark.parametrize(
    ("name", "views"), [("vat/upstream", 2), ("vat_siglip/upstream", 2)], ids=lambda value: str(value).partition("/")[0]
)
def test_presets_are_what_upstream_shows(name, views):
    """Shapes of the example calls in upstream's files."""
    model = create_model(name)
    side = 256 if name == "vat/upstream" else 224
    video = jax.ShapeDtypeStruct((2, views, model.time_seq_len, side, side, 3), jnp.float32)
    actions, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
    assert actions.shape == ((2, 7, 20) if name == "vat/upstream" else (2, 50, 32))
