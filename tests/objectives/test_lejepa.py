"""LeJEPA against upstream's on the same views and directions, with SIGReg and with a moving average."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases.case import BLOCKS, IMAGE, Case, build, build_upstream
from tests.objectives.starts import started
from tests.runs import records, train
from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch
from vit_jax.layers.sigreg import random_directions, sigreg_loss
from vit_jax.objectives import create_objective
from vit_jax.objectives.lejepa import LeJEPA

SIZES = dict(num_classes_K=20, projection_hidden_size=12, projection_layers=3)
VIT = Case("vit", "vit:ViT", (2, 16, 16, 3), 0, IMAGE | BLOCKS)
IMAGES = jax.device_put(np.random.default_rng(0).standard_normal((4, 16, 16, 3), np.float32))
KWARGS = dict(num_slices=64, domain=(-4, 6), num_knots=9)


def encoder(**kwargs):
    return build(VIT, num_classes=0, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(settings="upstream", target_loss_weight=0.7, sigreg_loss_weight=3.0, sigreg_loss_kwargs=KWARGS),
        dict(settings="upstream", use_ema=True, moving_average_decay=0.8),
        dict(settings="upstream", use_ema=True, use_sigreg=True, sigreg_loss_kwargs=KWARGS),
    ],
    ids=["sigreg", "ema", "both"],
)
def test_loss_gradient_and_average_are_upstreams(kwargs, monkeypatch):
    torch = pytest.importorskip("torch")
    from tests.objectives.views import assert_same_gradients, crops, fix, wrapper_of
    from tests.upstream import shake

    upstream = importlib.import_module("vit_pytorch.lejepa")
    options = {name: value for name, value in kwargs.items() if name != "settings"}
    nothing = dict(augment_fn=torch.nn.Identity(), augment_fn2=torch.nn.Identity())
    learner = upstream.LeJEPA(
        build_upstream(VIT), image_size=16, hidden_layer="to_latent", **SIZES, **options, **nothing
    )
    shake(learner)
    objective = LeJEPA(encoder(), **SIZES, **kwargs)
    model, images = objective.model, jnp.zeros(VIT.input_shape)
    params = from_torch(model, wrapper_of(learner, "encoder", "encoder"), images)["params"]
    extras = {}
    if objective.averages:
        extras = {"ema": from_torch(model, wrapper_of(learner, "target_encoder", "encoder"), images)["params"]}
    drawn = crops(3, 2, 2) | {"directions": random_directions(jax.random.key(0), 20, 64)}
    fix(learner, drawn)
    directions = torch.from_numpy(np.array(drawn["directions"]))
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: directions)
    expected = learner(torch.zeros(3, 3, 16, 16))
    expected.backward()

    def value(params):
        losses, moved = objective.compare(params, extras, drawn, {}, train=True)
        return losses.mean(), moved

    (loss, extras), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    assert_same_gradients(model, gradients, learner)
    if objective.averages:
        learner.update_moving_average()
        average = to_torch(model, {"params": objective.updated(params, extras)["ema"]})
        for key, theirs in wrapper_of(learner, "target_encoder", "encoder").items():
            np.testing.assert_allclose(average[key], theirs, rtol=1e-5, atol=1e-6, err_msg=key)


def test_settings_are_upstreams_by_name():
    pytest.importorskip("torch")
    importlib.import_module("tests.upstream")
    theirs = inspect.signature(importlib.import_module("vit_pytorch.lejepa").LeJEPA.__init__).parameters
    objective = LeJEPA(encoder(), "upstream")
    names = ("num_classes_K", "projection_hidden_size", "projection_layers", "target_loss_weight", "sigreg_loss_weight")
    names += ("local_upper_crop_scale", "global_lower_crop_scale")
    assert {name: getattr(objective, name) for name in names} == {name: theirs[name].default for name in names}


@pytest.mark.parametrize("average", [False, True])
def test_the_loss_by_hand(average):
    """Two global views and one local, each drawn to the mean of what the global ones are, by us or by the average."""
    objective = LeJEPA(encoder(depth=1), **SIZES, use_ema=average, use_sigreg=True, target_loss_weight=0.7)
    noise = np.random.default_rng(0).standard_normal((4, 2, 16, 16, 3), np.float32)
    drawn = jax.device_put({"global": noise, "local": np.ones((4, 1, 16, 16, 3), np.float32)})
    drawn["directions"] = random_directions(jax.random.key(1), 20, 64)
    params, extras = started(objective, IMAGES)  # the average is of other parameters

    def project(params, statistics, views):
        variables = {"params": params, "batch_stats": statistics}
        flat = views.swapaxes(0, 1).reshape(-1, 16, 16, 3)
        out, moved = objective.model.apply(variables, flat, train=True, mutable=["batch_stats"])
        return out.reshape(-1, 4, 20), moved["batch_stats"]

    def expected(params):
        views, statistics = project(
            params, extras["batch_stats"], jnp.concatenate([drawn["global"], drawn["local"]], 1)
        )
        targets = views[:2]
        if average:
            targets = project(extras["ema"], extras["ema_batch_stats"], drawn["global"])[0]
        distances = jnp.square(views - targets.mean(axis=0, keepdims=True)).mean(axis=(0, 2))
        shape = sum(sigreg_loss(view[:, None], drawn["directions"]) for view in views) / 3
        return (0.7 * distances + 3.0 * shape).mean(), (distances, statistics)

    def compared(params):
        losses, moved = objective.compare(params, extras, drawn, {}, train=True)
        return losses.mean(), moved

    values = jax.jit(lambda params: [jax.value_and_grad(f, has_aux=True)(params) for f in (expected, compared)])
    ((theirs, (distances, statistics)), expected_gradients), ((ours, moved), gradients) = values(params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert np.ptp(distances) > 1e-3  # of images, not of the batch
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected_gradients))
    close = lambda rtol, atol: lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    jax.tree.map(close(1e-4, 1e-5 * largest), gradients, expected_gradients)
    jax.tree.map(close(1e-5, 1e-6), moved["batch_stats"], statistics)


@pytest.mark.parametrize("use_ema", [None, True, False])
@pytest.mark.parametrize("use_sigreg", [None, True, False])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_what_is_on_is_what_upstream_has_on(use_ema, use_sigreg, decay, monkeypatch):
    pytest.importorskip("torch")
    importlib.import_module("tests.upstream")
    upstream = importlib.import_module("vit_pytorch.lejepa").LeJEPA
    monkeypatch.setattr(upstream, "forward", lambda *_: None)
    flags = dict(use_ema=use_ema, use_sigreg=use_sigreg, moving_average_decay=decay)
    learner, objective = upstream(build_upstream(VIT), 16, **flags), LeJEPA(encoder(), **flags)
    assert (objective.averages, objective.regularizes) == (learner.use_ema, learner.has_sigreg_loss)


def test_local_views_may_be_smaller():
    objective = LeJEPA(encoder(depth=1), **SIZES, local_size=(8, 8))
    params, extras = started(objective, IMAGES)
    rngs = {"objective": jax.random.key(2), "dropout": jax.random.key(3)}
    loss, (_, moved) = jax.jit(lambda: objective.loss(params, extras, {"image": IMAGES}, rngs, train=True))()
    assert np.isfinite(loss)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, extras)


def test_sigreg_counts_what_is_asked_for():
    x = jax.random.normal(jax.random.key(0), (5, 2, 7))
    directions = random_directions(jax.random.key(1), 7, 16)
    part = sigreg_loss(x[:3], directions)
    np.testing.assert_allclose(sigreg_loss(x, directions, weights=jnp.array([1.0, 1, 1, 0, 0])), part, rtol=1e-5)
    np.testing.assert_allclose(sigreg_loss(x[:3], directions, weights=jnp.ones(3)), part, rtol=1e-5)


def test_evaluation_leaves_out_what_fills_the_batch_up():
    objective = LeJEPA(encoder(depth=1), **SIZES)
    params, extras = started(objective, IMAGES)
    mask, other = jnp.array([1.0, 1, 1, 0]), np.array(IMAGES)
    other[3] = 9
    evaluate = jax.jit(lambda images: objective.evaluate(params, extras, {"image": images, "mask": mask})["loss"])
    losses = [evaluate(images)[:3] for images in (IMAGES, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0].shape == (3,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(settings="paper"), "settings='paper': expected one of 'small', 'upstream'"),
        (dict(sigreg_loss_kwargs=dict(knots=3)), "sigreg_loss_kwargs='knots': expected one of 'num_slices'"),
        (dict(local_upper_crop_scale=0.3), "local_lower_crop_scale=0.4: expected at most local_upper_crop_scale=0.3"),
        (dict(moving_average_decay=2.0), "moving_average_decay=2.0: expected 0 to 1"),
    ],
)
def test_bad_values_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_objective("lejepa", encoder(), **kwargs)


@pytest.mark.exhaustive  # levjepa's run is a default test
def test_a_run_from_the_command_line(tmp_path):
    arguments = ("--objective-args", "num_classes_K=16", "projection_layers=2")
    assert train(tmp_path, "--steps=4", "--objective=lejepa", *arguments) == 0
    assert records(tmp_path, "eval")[-1]["loss"] > 0


def test_the_loss_falls_on_digits():
    from tests.objectives.views import losses_on_digits

    model = create_model("vit/tiny", num_classes=0, image_size=8, patch_size=(1, 8), channels=1, depth=1)
    losses = losses_on_digits(LeJEPA(model), (8, 8, 1))
    assert np.mean(losses[-3:]) < 0.99 * np.mean(losses[:3])
