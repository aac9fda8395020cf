"""DINO against upstream's on the same views for two steps; its schedules and pairs computed by hand."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import BLOCKS, IMAGE, Case, build, build_upstream
from tests.objectives.starts import started
from tests.runs import records, train
from tests.test_models import variables_of
from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch
from vit_jax.objectives import create_objective, views
from vit_jax.objectives.dino import Dino

SIZES = dict(num_classes_K=20, projection_hidden_size=12, projection_layers=3)
VIT = Case("vit", "vit:ViT", (2, 16, 16, 3), 0, IMAGE | BLOCKS)
IMAGES = jax.device_put(np.random.default_rng(0).standard_normal(VIT.input_shape, np.float32))


def encoder(**kwargs):
    return build(VIT, num_classes=0, **kwargs)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_two_steps_are_upstreams(pool):
    torch = pytest.importorskip("torch")
    from tests.objectives.views import assert_same_gradients, crops, fix, wrapper_of
    from tests.upstream import shake

    upstream = importlib.import_module("vit_pytorch.dino")
    nothing = dict(augment_fn=torch.nn.Identity(), augment_fn2=torch.nn.Identity())
    options = dict(student_temp=0.7, teacher_temp=0.06, moving_average_decay=0.8, center_moving_average_decay=0.6)
    learner = upstream.Dino(
        build_upstream(VIT, pool=pool), image_size=16, hidden_layer="to_latent", **SIZES, **options, **nothing
    )
    shake(learner)
    learner.teacher_centers.normal_()
    objective = Dino(encoder(pool=pool), "upstream", **SIZES, **options)
    model, images = objective.model, jnp.zeros(VIT.input_shape)
    params = from_torch(model, wrapper_of(learner, "student_encoder", "student_encoder"), images)["params"]
    _, extras = started(objective, images)
    center = jnp.asarray(learner.teacher_centers[0].numpy())
    teacher = from_torch(model, wrapper_of(learner, "teacher_encoder", "student_encoder"), images)["params"]
    extras |= {"ema": teacher, "center": {"now": center, "next": center}}

    @jax.jit
    def step(params, extras, drawn):
        compared = lambda params: objective.compare(params, extras, drawn, {}, train=True)
        value = lambda params: (lambda losses, extras: (losses.mean(), extras))(*compared(params))
        (loss, extras), gradients = jax.value_and_grad(value, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients)
        return loss, gradients, params, objective.updated(params, extras)

    for _ in range(2):
        drawn = crops(3, 2, 2)
        fix(learner, drawn)
        learner.zero_grad()
        expected = learner(torch.zeros(3, 3, 16, 16))
        expected.backward()
        loss, gradients, params, extras = step(params, extras, drawn)
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
        assert_same_gradients(model, gradients, learner)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter -= 0 if parameter.grad is None else 0.5 * parameter.grad
        learner.update_moving_average()
        np.testing.assert_allclose(extras["center"]["now"], learner.teacher_centers[0], rtol=1e-5, atol=1e-6)
        average = to_torch(model, {"params": extras["ema"]})
        for key, value in wrapper_of(learner, "teacher_encoder", "student_encoder").items():
            np.testing.assert_allclose(average[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


def test_settings_are_upstreams_by_name():
    pytest.importorskip("torch")
    import inspect

    importlib.import_module("tests.upstream")
    theirs = inspect.signature(importlib.import_module("vit_pytorch.dino").Dino.__init__).parameters
    objective = Dino(encoder(), "upstream")
    ours = {name: getattr(objective, name) for name in theirs if hasattr(objective, name)}
    assert ours == {name: theirs[name].default for name in ours}
    assert len(ours) == 11
    assert set(theirs) - set(ours) == {"self", "net", "image_size", "hidden_layer"}


def test_the_loss_by_hand():
    """Two global views and one local: teacher 0 is paired with students 1 and 2, teacher 1 with students 0 and 2."""
    objective = Dino(encoder(), "paper", num_classes_K=5, steps=100)
    rng = np.random.default_rng(0)
    teachers, students, center = (rng.standard_normal(shape) for shape in ((2, 3, 5), (3, 3, 5), (5,)))

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    told = np.exp(log_softmax((teachers - center) / 0.055))  # at step 15, half of the warm-up
    logs = log_softmax(students / 0.1)
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    expected = -sum((told[t] * logs[s]).sum(-1) for t, s in pairs) / 4
    extras = {"center": {"now": jnp.asarray(center, jnp.float32)}, "step": jnp.asarray(15)}
    as_views = lambda x: [jnp.asarray(view, jnp.float32) for view in x]
    losses, centers = objective.losses(as_views(teachers), as_views(students), extras)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(centers["center"], teachers.mean((0, 1)), rtol=1e-5)


def test_schedules_by_hand():
    objective = Dino(encoder(), "paper", steps=100)
    temperatures = [float(objective.temperature(jnp.asarray(step))) for step in (0, 15, 30, 90)]
    np.testing.assert_allclose(temperatures, [0.04, 0.055, 0.07, 0.07], rtol=1e-6)
    decays = [float(objective.decay(jnp.asarray(step))) for step in (0, 25, 50, 100, 120)]
    quarter = 1 - 0.004 * (1 + np.sqrt(0.5)) / 2
    np.testing.assert_allclose(decays, [0.996, quarter, 0.998, 1, 1], rtol=1e-6)
    constant = Dino(encoder(), "upstream", moving_average_decay=0.7, teacher_temp=0.2, steps=100)
    assert {float(constant.decay(jnp.asarray(step))) for step in (0, 50)} == {np.float32(0.7)}
    assert {float(constant.temperature(jnp.asarray(step))) for step in (0, 50)} == {np.float32(0.2)}


def test_the_projection_is_of_cosines():
    model = Dino(encoder(), **SIZES).model
    variables, apply = variables_of(model, IMAGES, {}), jax.jit(model.apply)
    out = apply(variables, IMAGES)
    assert (np.abs(out) <= 1).all()
    grown = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 3 if "directions" in str(path) else leaf, variables
    )
    np.testing.assert_allclose(apply(grown, IMAGES), out, atol=1e-6)  # the length of a direction does not count


def test_views_are_those_asked_for():
    objective = Dino(encoder(), num_local_views=3, local_size=(8, 12))
    drawn = jax.eval_shape(objective.draw, jax.random.key(1), IMAGES)
    assert {name: views.shape for name, views in drawn.items()} == {
        "global": (2, 2, 16, 16, 3),
        "local": (2, 3, 8, 12, 3),
    }
    marks = [lambda key, pixels, mark=mark: jnp.full_like(pixels, mark) for mark in (0.25, 0.75)]
    own = Dino(encoder(), num_local_views=3, augment_fn=marks[0], augment_fn2=marks[1], mean=(0.5,), std=(0.25,))
    drawn = jax.jit(own.draw)(jax.random.key(1), IMAGES)
    np.testing.assert_allclose(drawn["global"][0, :, 0, 0, 0], [-1, 1], atol=1e-6)
    np.testing.assert_allclose(drawn["local"][0, :, 0, 0, 0], [-1, -1, 1], atol=1e-6)


def test_crops_show_as_much_as_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(views, "make_views", lambda key, images, view, count, *_: seen.append(view.scale) or images)
    scales = dict(local_lower_crop_scale=0.2, local_upper_crop_scale=0.3, global_lower_crop_scale=0.6)
    Dino(encoder(), **scales).draw(jax.random.key(0), jnp.zeros((2, 16, 16, 3)))
    assert seen == [(0.6, 1.0), (0.6, 1.0), (0.2, 0.3)]


def test_local_views_may_be_smaller():
    objective = Dino(encoder(depth=1), **SIZES, local_size=(8, 8), num_local_views=1, steps=4)
    params, extras = started(objective, IMAGES)
    rngs = {"objective": jax.random.key(2), "dropout": jax.random.key(3)}
    loss, (_, moved) = jax.jit(lambda: objective.loss(params, extras, {"image": IMAGES}, rngs, train=True))()
    assert np.isfinite(loss)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, extras)


def test_batch_statistics_of_both_networks_move():
    shape = FIRST["cvt"].input_shape
    objective = Dino(build(FIRST["cvt"], num_classes=0), **SIZES, num_local_views=1, steps=4)
    batch = {"image": jax.device_put(np.random.default_rng(0).standard_normal(shape, np.float32))}
    params, extras = started(objective, batch["image"])
    rngs = {"objective": jax.random.key(2), "dropout": jax.random.key(3)}
    _, (_, moved) = jax.jit(lambda: objective.loss(params, extras, batch, rngs, train=True))()
    for name in ("batch_stats", "ema_batch_stats"):
        before, after = (jax.tree.leaves(tree[name]) for tree in (extras, moved))
        assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    module, variables = objective.trunk(params, moved)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(module.init, jax.random.key(0), batch["image"])
    )
    assert variables["params"] is moved["ema"]["encoder"]


def test_evaluation_is_repeatable_and_of_each_image():
    objective = Dino(encoder(depth=1), **SIZES, num_local_views=1, steps=4)
    params, extras = started(objective, IMAGES)
    evaluate = lambda: objective.evaluate(params, extras, {"image": IMAGES})["loss"]
    losses = jax.jit(lambda: [evaluate() for _ in range(2)])()  # traced twice
    np.testing.assert_array_equal(*losses)
    assert losses[0].shape == (2,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(settings="papers"), "settings='papers': expected one of 'paper', 'small', 'upstream'"),
        (dict(local_lower_crop_scale=0.9), "local_lower_crop_scale=0.9: expected at most local_upper_crop_scale=0.8"),
        (dict(student_temp=0.0), "student_temp=0.0: expected more than 0"),
        (dict(moving_average_decay=1.5), "moving_average_decay=1.5: expected 0 to 1"),
        (dict(num_local_views=0), "num_local_views=0: expected more than 0"),
        (dict(settings="upstream", num_local_views=4), "num_local_views=4: expected 2 with settings='upstream'"),
    ],
)
def test_bad_values_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_objective("dino", encoder(), **kwargs)


def test_an_encoder_with_classes_is_named():
    with pytest.raises(ValueError, match=r"encoder.num_classes=5: expected 0"):
        Dino(build(VIT))


def test_a_run_learns_and_goes_on(tmp_path):
    arguments = ("--objective-args", "num_classes_K=32", "num_local_views=1", "projection_layers=2")
    assert train(tmp_path, "--steps=4", "--objective=dino", *arguments) == 0
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path, "train"))
    assert records(tmp_path, "eval")[-1]["loss"] > 0


def test_the_student_learns_what_a_teacher_that_stands_still_tells():
    """If teacher and center move, the loss first rises, and falls only after hundreds of steps."""
    from tests.objectives.views import losses_on_digits

    model = create_model("vit/tiny", num_classes=0, image_size=8, patch_size=(1, 8), channels=1, depth=1)
    frozen = dict(moving_average_decay=1.0, center_moving_average_decay=1.0)
    losses = losses_on_digits(Dino(model, num_classes_K=64, num_local_views=1, steps=24, **frozen), (8, 8, 1))
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
