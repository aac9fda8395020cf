"""The optimizer step and the evaluation step, for any objective. Both are pure functions, to be jitted."""

from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from train.optim.averages import Average
from train.partial import EVERYTHING, Partial
from vit_jax.objectives.protocol import Objective


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, or the shapes or shardings of it. `ema` is an average of `params`, or None."""

    step: PyTree
    params: PyTree
    extras: PyTree
    opt_state: PyTree
    ema: PyTree

    @property
    def eval_params(self) -> PyTree:
        """The parameters that evaluation uses."""
        return self.params if self.ema is None else self.ema


def abstract_params(objective: Objective, partial: Partial, key: Array, images: Array) -> PyTree:
    """Shapes of the parameters of a run."""
    return jax.eval_shape(lambda key, images: partial.extended(objective.init(key, images)[0], key), key, images)


def init_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: Array,
    images: Array,
    *,
    ema: bool,
    partial: Partial = EVERYTHING,
) -> TrainState:
    """A state at step 0. `images` (b, H, W, c) are used only for their shape; `ema` adds an average of parameters."""
    params, extras = objective.init(key, images)
    params = partial.extended(params, key)
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, extras, optimizer.init(partial.trained(params)), average)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[Array, Mapping[str, Array]], tuple[Array, Array]],
    *,
    dtype: str = "float32",
    accumulate: int = 1,
    average: Average | None = None,
    partial: Partial = EVERYTHING,
    gather: Callable[[PyTree], PyTree] = lambda params: params,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Create the optimizer step.

    Args:
        objective: The loss and its model.
        optimizer: The optimizer.
        prepare: Function from (key, batch) to images (b, H, W, c) and targets (b, k).
        dtype: Data type of matrix products. Parameters, gradients and losses are always float32.
        accumulate: Number of slices in which a batch is processed, one after the other, before one update. Every slice
            starts from the same extras, and the new extras are the mean over slices. DINO's centre and a running mean
            are then those of the whole batch; a running variance is the mean of the variances of the slices, by which
            the slices were normalised.
        average: The average of the trained parameters, if the state has one; see `make_average`.
        partial: The part of the parameters that is trained.
        gather: Changes the sharding of parameters from between steps to during a step.

    Returns:
        The function (state, batch, frozen, seed=0) -> (state, metrics). `batch` has uint8 "image" (b, H, W, c),
        "label" (b,) or (b, k), and optionally a teacher's logits as "teacher" (b, k). `frozen` has variables that no
        step changes, such as a teacher's. Random numbers depend only on `seed` and the number of the step.
    """

    def loss_of(trained, params, extras, frozen, batch, key):
        params = gather(cast(partial.merged(partial.joined(trained, params)), dtype))
        batch = {**batch, "image": batch["image"].astype(dtype)}
        rngs = {"dropout": key, "objective": jax.random.fold_in(key, 0)}
        loss, (metrics, new) = objective.loss(
            params, {**extras, **cast(frozen, dtype)}, batch, rngs, not partial.evaluates
        )
        return loss, (metrics, {**extras, **new})  # an objective in evaluation need not return extras

    gradients_of = jax.value_and_grad(loss_of, has_aux=True)

    def train_step(state, batch, frozen, seed=0):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        prepare_key, dropout_key = jax.random.split(key)
        images, targets = prepare(prepare_key, batch)
        given = {"teacher": batch["teacher"]} if "teacher" in batch else {}
        batch = objective.with_totals({"image": images, "target": targets, **given})
        trained = partial.trained(state.params)

        if accumulate == 1:
            (_, (metrics, extras)), grads = gradients_of(
                trained, state.params, state.extras, frozen, batch, dropout_key
            )
        else:

            def one_slice(extras, inputs):
                (_, (metrics, new)), grads = gradients_of(trained, state.params, state.extras, frozen, *inputs)
                return add_share(extras, state.extras, new, accumulate), (metrics, grads)

            slices = jax.tree.map(lambda x: slice_batch(x, accumulate), batch)
            keys = jax.random.split(dropout_key, accumulate)
            extras, stacked = jax.lax.scan(one_slice, state.extras, (slices, keys))
            metrics, grads = jax.tree.map(lambda x: x.mean(axis=0), stacked)

        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = objective.constrained(optax.apply_updates(trained, updates))
        params = partial.joined(trained, state.params)
        extras = objective.updated(partial.merged(params), extras)
        ema = state.ema
        if ema is not None:
            ema = partial.joined(average(partial.trained(ema), trained, opt_state, state.step), params)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, extras, opt_state, ema), metrics

    return train_step


def make_eval_step(
    objective: Objective,
    prepare: Callable[[Mapping[str, Array]], tuple[Array, Array]],
    *,
    dtype: str = "float32",
    partial: Partial = EVERYTHING,
    gather: Callable[[PyTree], PyTree] = lambda params: params,
) -> Callable[[PyTree, PyTree, Mapping[str, Array]], dict[str, Array]]:
    """Create the evaluation step.

    Args:
        objective: The metrics and their model.
        prepare: Function from a batch to images (b, H, W, c) and targets (b, k).
        dtype: Data type of matrix products.
        partial: The part of the parameters that is trained.
        gather: Changes the sharding of parameters from between steps to during a step.

    Returns:
        The function (params, extras, batch) -> sums of the metrics over the examples whose `batch["mask"]` is 1, and
        the number of these examples as "count". If the objective has `metrics_of_all`, also "all": "outputs" and
        "targets" (b, k), and the mask.
    """

    def eval_step(params, extras, batch):
        images, targets = prepare(batch)
        examples = {"image": images.astype(dtype), "target": targets, "mask": batch["mask"]}
        metrics = dict(objective.evaluate(gather(cast(partial.merged(params), dtype)), extras, examples))
        whole = {}
        if objective.metrics_of_all:
            whole["all"] = {"outputs": metrics.pop("outputs"), "targets": targets, "mask": batch["mask"]}
        sums = {name: jnp.sum(value * batch["mask"]) for name, value in metrics.items()}
        return {**sums, "count": batch["mask"].sum(), **whole}

    return eval_step


def cast(tree: PyTree, dtype: str) -> PyTree:
    """Cast the floating-point leaves of `tree` to `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def add_share(total: PyTree, old: PyTree, new: PyTree, slices: int) -> PyTree:
    """`total` plus 1 / `slices` of the change from `old` to `new`; for integers, such as counters, `new` itself.

    A value that no slice changes, such as an average of the parameters, remains exactly the same.
    """

    def add(total: Array, old: Array, new: Array) -> Array:
        return total + (new - old) / slices if jnp.issubdtype(new.dtype, jnp.floating) else new

    return jax.tree.map(add, total, old, new)


def slice_batch(x: Array, slices: int) -> Array:
    """Reshape (b, ...) to (slices, b / slices, ...); every slice has examples from every device's share of b."""
    return jnp.moveaxis(x.reshape(x.shape[0] // slices, slices, *x.shape[1:]), 1, 0)
