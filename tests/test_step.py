"""One step: its update, precision, randomness, accumulation, moving average and frozen variables."""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.objectives.starts import started
from tests.runs import assert_same, flat
from tests.test_models import variables_of
from train.build import DataInfo, build_objective
from train.config import Augment, Config, Optim
from train.optim import make_average, make_optimizer, moving_average
from train.planning import lowered
from train.program import abstract_seed, build_program
from train.sharding import make_mesh
from train.step import add_share, init_state, make_eval_step, make_train_step, slice_batch
from vit_jax import create_model
from vit_jax.layers import BatchNorm, Dense
from vit_jax.objectives import create_objective
from vit_jax.objectives.classify import Classify
from vit_jax.objectives.distill import Distill

SIZES = dict(image_size=8, patch_size=4, num_classes=5, channels=1, dim=16, depth=1, heads=2, dim_head=8, mlp_dim=24)
RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(RNG.integers(0, 256, (16, 8, 8, 1), np.uint8)),
    "label": jnp.asarray(RNG.integers(0, 5, 16, np.int32)),
}


def prepare(key, batch):
    return batch["image"] / 255 - 0.5, jax.nn.one_hot(batch["label"], 5)


def noisy(key, batch):
    images, targets = prepare(key, batch)
    return images + jax.random.normal(key, images.shape), targets


def set_up(objective=None, optimizer=None, prepare=prepare, average=None, **options):
    """A state and the jitted training step."""
    objective = objective or Classify(create_model("vit", **SIZES))
    optimizer = optimizer or optax.adam(1e-2)
    images = jnp.zeros((1, 8, 8, 1))
    start = started(objective, images)
    with mock.patch.object(type(objective), "init", return_value=start):  # whose random numbers compile slowly
        state = init_state(objective, optimizer, jax.random.key(1), images, ema=average is not None)
    return state, jax.jit(make_train_step(objective, optimizer, prepare, average=average, **options))


def dropping():
    return Classify(create_model("vit", **SIZES, dropout=0.2))


def distilling():
    teacher = create_model("vit", **SIZES)
    frozen = {"teacher": variables_of(teacher, jnp.zeros((1, 8, 8, 1)), {})}
    return Distill(create_model("vit", **SIZES), teacher), frozen


def test_step_is_the_gradient_of_the_mean_loss_through_the_optimizer():
    model = create_model("vit", **SIZES)
    state, step = set_up(Classify(model), optax.sgd(0.1))
    images, targets = prepare(None, BATCH)

    def loss_of(params):
        logits = model.apply({"params": params}, images)
        return -(targets * jax.nn.log_softmax(logits)).sum() / 16, logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(state.params)
    new, metrics = step(state, BATCH, {})
    assert int(new.step) == 1
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == BATCH["label"]))
    expected = jax.tree.map(lambda p, g: np.asarray(p) - np.float32(0.1) * np.asarray(g), state.params, grads)
    for got, want in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_repeated_steps_lower_the_loss_without_compiling_again():
    traces, losses = [], []

    def traced(key, batch):
        traces.append(key)
        return prepare(key, batch)

    state, step = set_up(prepare=traced)
    for _ in range(10):
        state, metrics = step(state, BATCH, {})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert len(traces) == 1


# Precision


def equations(jaxpr):
    """All equations, including those of nested jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("distill", [False, True])
def test_bfloat16_multiplies_matrices_in_bfloat16_only(accumulate, distill):
    objective, frozen = distilling() if distill else (dropping(), {})
    state, step = set_up(objective, dtype="bfloat16", accumulate=accumulate, average=moving_average(0.9))
    products = [
        [v.aval.dtype for v in equation.invars]
        for equation in equations(jax.make_jaxpr(step)(state, BATCH, frozen).jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    # A block has six (qkv, scores, values, out, two of the feed-forward), each with two more in the backward pass.
    assert len(products) >= 6 * 3
    assert {dtype for pair in products for dtype in pair} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(("model", "least"), [("vit/tiny", 75), ("cct/tiny", 45)])
def test_the_lowered_step_has_no_product_in_float32(model, least):
    """For the trainer's whole program, including augmentation."""
    info = DataInfo(tuple("01234"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    augment = Augment(crop_padding=4, flip=True, mixup=0.2, randaugment_layers=2, erasing=0.2)
    config = Config(model=model, batch_size=8, dtype="bfloat16", augment=augment)
    mesh = make_mesh(devices=jax.devices()[:1])
    text = lowered(build_program(config, info, mesh, build_objective(config, info), 10, 10.0)).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution)\b.* : \((.*?)\) ->", text)
    assert len(products) >= least
    assert all("bf16" in operands and "f32" not in operands for operands in products)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_bfloat16_keeps_masters_gradients_moments_and_losses_in_float32(accumulate):
    seen = []
    watch = optax.stateless(lambda updates, _: seen.append(updates) or updates)
    optimizer = optax.chain(watch, optax.adam(1e-2))
    state, step = set_up(optimizer=optimizer, dtype="bfloat16", accumulate=accumulate, average=moving_average(0.9))
    new, metrics = step(state, BATCH, {})
    for tree in (seen[0], new.params, new.ema, new.opt_state, metrics):
        dtypes = {x.dtype for x in jax.tree.leaves(tree)} - {jnp.dtype("int32")}
        assert dtypes == {jnp.dtype("float32")}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)

    _, exact = set_up(optimizer=optimizer, average=moving_average(0.9))[1](state, BATCH, {})
    assert metrics["loss"] != exact["loss"]
    assert metrics["loss"] == pytest.approx(float(exact["loss"]), rel=0.02)


# Accumulation


def test_accumulation_is_the_same_update():
    whole, sliced = (set_up(accumulate=n, optimizer=optax.sgd(0.1)) for n in (1, 4))
    (one, metrics), (four, others) = (step(state, BATCH, {}) for state, step in (whole, sliced))
    for got, want in zip(jax.tree.leaves(four.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    for name in metrics:
        assert others[name] == pytest.approx(float(metrics[name]), rel=1e-5)


def test_slices_drop_out_differently():
    """If all slices shared one dropout mask, equal halves of a batch would have equal losses."""
    state, step = set_up(dropping(), accumulate=2)
    twice = {name: jnp.repeat(x[:8], 2, axis=0) for name, x in BATCH.items()}  # both slices are x[:8]
    _, metrics = step(state, twice, {})
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[1]
    images, targets = prepare(None, jax.tree.map(lambda x: x[:8], BATCH))
    batch = {"image": images, "target": targets}
    loss = jax.jit(lambda key: dropping().loss(state.params, {}, batch, {"dropout": key}, True)[0])
    losses = [loss(key) for key in jax.random.split(key, 2)]
    assert float(losses[0]) != pytest.approx(float(losses[1]), rel=1e-4)
    assert metrics["loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dino", pytest.param("es_vit", marks=pytest.mark.exhaustive)])
def test_accumulation_moves_centers_to_the_mean_of_the_whole_batch(name):
    """Every view is the whole image, so that random draws do not differ between slices and the whole batch."""
    same = lambda key, pixels: pixels
    whole = dict(local_lower_crop_scale=1.0, local_upper_crop_scale=1.0, global_lower_crop_scale=1.0)
    sizes = dict(projection_hidden_size=8, num_classes_K=12, bottleneck_dim=4, projection_layers=2, num_local_views=1)
    encoder = create_model("vit", **SIZES | dict(num_classes=0))
    objective = create_objective(name, encoder, augment_fn=same, augment_fn2=same, **whole, **sizes)
    runs = [set_up(objective, optax.sgd(0.1), accumulate=n) for n in (1, 4)]
    (one, _), (four, _) = (step(state, BATCH, {}) for state, step in runs)
    for center in objective.centers:
        assert float(jnp.abs(one.extras[center]["now"]).max()) > 1e-4
        for when in ("now", "next"):
            np.testing.assert_allclose(four.extras[center][when], one.extras[center][when], rtol=1e-4, atol=1e-7)
    assert int(four.extras["step"]) == 1
    decay = objective.decay(jnp.int32(0))
    for path, old in flat(runs[1][0].extras["ema"]).items():
        expected = decay * old + (1 - decay) * flat(four.params)[path]
        np.testing.assert_allclose(flat(four.extras["ema"])[path], expected, rtol=1e-6, atol=1e-7)


class Normed(nn.Module):
    """A batch norm on pixels, and a head."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return Dense(5, name="head")(BatchNorm(name="norm")(x.reshape(x.shape[0], -1), train=train))


def test_accumulation_moves_running_statistics_once_from_the_whole_batch():
    """The mean is updated with the batch's, the variance with the mean of the slices' variances."""
    state, step = set_up(Classify(Normed()), optax.sgd(0.1), accumulate=4)
    start = {"mean": jnp.full(64, 0.5), "var": jnp.full(64, 2.0)}
    new, _ = step(state.replace(extras={"batch_stats": {"norm": start}}), BATCH, {})
    images = np.asarray(prepare(None, BATCH)[0], np.float64).reshape(16, -1)
    slices = np.asarray(slice_batch(jnp.asarray(images), 4))
    got = new.extras["batch_stats"]["norm"]
    np.testing.assert_allclose(got["mean"], 0.9 * 0.5 + 0.1 * images.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(got["var"], 0.9 * 2.0 + 0.1 * slices.var(axis=1).mean(axis=0), rtol=1e-5)


def test_what_no_slice_changes_stays_to_the_last_bit():
    extras = {"average": jnp.asarray(RNG.standard_normal(100), jnp.float32), "count": jnp.int32(7)}
    total = extras
    for _ in range(3):
        total = add_share(total, extras, {**extras, "count": jnp.int32(8)}, 3)
    np.testing.assert_array_equal(total["average"], extras["average"])
    assert int(total["count"]) == 8


def test_slices_draw_from_every_device():
    devices, slices = 8, 4
    batch = np.arange(64)
    parts = np.asarray(slice_batch(jnp.asarray(batch), slices))
    assert parts.shape == (slices, 16)
    assert sorted(parts.ravel()) == list(batch)
    for part in parts:
        np.testing.assert_array_equal(np.bincount(part // (64 // devices)), [2] * devices)


# Randomness


def test_randomness_follows_from_the_seed_and_the_step_alone():
    state, step = set_up(dropping(), prepare=noisy)
    loss = lambda state, seed=0: float(step(state, BATCH, {}, seed)[1]["loss"])
    assert loss(state) == loss(state)
    later = state.replace(step=state.step + 1)
    assert loss(later) == loss(later)
    assert loss(later) != loss(state)
    assert loss(state, seed=1) != loss(state)


def test_runs_with_other_seeds_use_the_same_program():
    info = DataInfo(tuple("01234"), (8, 8, 1), (0.5,), (0.25,))
    mesh = make_mesh(devices=jax.devices()[:1])

    def text(seed):
        options = dict(augment=Augment(flip=True), batch_size=8, seed=seed)
        config = Config("vit", ("patch_size=4", "depth=1", "dropout=0.1"), **options)
        program = build_program(config, info, mesh, build_objective(config, info), 10, 10.0)
        return program.train_step.lower(program.state, program.batch, {}, abstract_seed(mesh)).as_text()

    assert text(0) == text(1)


@pytest.mark.parametrize(("objective", "prepare"), [(dropping, prepare), (None, noisy)])
def test_dropout_and_augmentation_each_change_with_the_step(objective, prepare):
    state, step = set_up(objective and objective(), prepare=prepare)
    first, second = (step(state.replace(step=jnp.int32(n)), BATCH, {})[1]["loss"] for n in (0, 1))
    assert float(first) != pytest.approx(float(second), rel=1e-4)


# Moving average


def test_moving_average_follows_its_formula():
    state, step = set_up(average=moving_average(0.5))
    np.testing.assert_array_equal(jax.tree.leaves(state.ema)[0], jax.tree.leaves(state.params)[0])
    average = flat(state.ema)
    for n in range(12):
        state, _ = step(state, BATCH, {})
        decay = min(0.5, (1 + n) / (10 + n))
        params = flat(state.params)
        average = {path: decay * average[path] + (1 - decay) * params[path] for path in params}
        for path, value in flat(state.ema).items():
            np.testing.assert_allclose(value, average[path], rtol=1e-5, atol=1e-6)
    assert decay == 0.5  # the bound that rises from 0.1 has been passed
    assert state.eval_params is state.ema


def test_schedule_free_training_evaluates_the_average():
    config = Optim(name="schedule_free_adamw", beta1=0.8, clip_norm=0.0)
    objective = Classify(create_model("vit", **SIZES))
    params, _ = started(objective, jnp.zeros((1, 8, 8, 1)))
    optimizer = make_optimizer(config, optax.constant_schedule(1e-2), params)
    state, step = set_up(objective, optimizer, average=make_average(config), accumulate=2)
    total, points = flat(state.params), 0
    for _ in range(3):
        state, _ = step(state, BATCH, {})
        points += 1  # at a constant learning rate, the average is the mean of all z
        z = flat(state.opt_state.z)
        total = {path: z[path] if points == 1 else total[path] + z[path] for path in z}
    for path, averaged in flat(state.eval_params).items():
        np.testing.assert_allclose(averaged, total[path] / points, rtol=1e-4, atol=1e-6)
    assert any(np.abs(averaged - flat(state.params)[path]).max() > 1e-3 for path, averaged in flat(state.ema).items())


def test_without_a_moving_average_evaluation_uses_the_parameters():
    state, _ = set_up()
    assert state.ema is None
    assert state.eval_params is state.params


# Frozen variables


def test_frozen_variables_teach_and_stay_out_of_the_state():
    objective, frozen = distilling()
    state, step = set_up(objective)
    before = flat(frozen)
    new, metrics = step(state, BATCH, frozen)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert not any("teacher" in path for path in flat(new))
    assert_same(flat(frozen), before)
    other = jax.tree.map(lambda x: x + 0.1, frozen)
    assert float(step(state, BATCH, other)[1]["teacher_loss"]) != pytest.approx(
        float(metrics["teacher_loss"]), rel=1e-3
    )


# Evaluation


def test_evaluation_sums_what_the_mask_counts():
    model = create_model("vit", **SIZES, dropout=0.5)
    objective = Classify(model, label_smoothing=0.3)  # evaluation has neither dropout nor smoothing
    params, _ = started(objective, jnp.zeros((1, 8, 8, 1)))
    mask = jnp.asarray([1.0] * 11 + [0.0] * 5)
    step = jax.jit(make_eval_step(objective, functools.partial(prepare, None)))
    sums = step(params, {}, {**BATCH, "mask": mask})

    images, _ = prepare(None, jax.tree.map(lambda x: x[:11], BATCH))
    logits = np.asarray(jax.jit(model.apply)({"params": params}, images), np.float64)
    labels = np.asarray(BATCH["label"][:11])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert sums["count"] == 11
    assert sums["loss"] == pytest.approx(-log_p[np.arange(11), labels].sum(), rel=1e-5)
    assert sums["accuracy"] == (logits.argmax(1) == labels).sum()


def test_evaluation_in_bfloat16_multiplies_in_bfloat16_and_sums_in_float32():
    objective = Classify(create_model("vit", **SIZES))
    params, _ = started(objective, jnp.zeros((1, 8, 8, 1)))
    step = make_eval_step(objective, functools.partial(prepare, None), dtype="bfloat16")
    batch = {**BATCH, "mask": jnp.ones(16)}
    jaxpr = jax.make_jaxpr(step)(params, {}, batch)
    operands = {v.aval.dtype for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general" for v in e.invars}
    assert operands == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(step, params, {}, batch))} == {jnp.dtype("float32")}
