"""The training loop. `fit` is a whole run: prepare, start, run."""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from train.build import DataInfo
from train.cluster.preemption import Preemption
from train.cluster.processes import is_lead
from train.config import Config
from train.data import Dataset, Skipped, eval_batches
from train.data.placement import with_images
from train.distill.cached_logits import with_teacher
from train.errors import Diverged, Preempted
from train.run import checkpoint
from train.run.clock import bottleneck
from train.run.ending import write_ending
from train.run.failures import last_usable_checkpoint
from train.run.records import check_finite
from train.scores import NAMES, chosen_by, metrics_of_all, show
from train.session import Session, start
from train.setup import prepare
from train.sharding import sufficient_batch, to_devices
from train.step import TrainState


def fit(config: Config, preemption: Preemption | None = None) -> dict[str, float]:
    """Train, evaluate and save checkpoints; a run that is already in the workdir continues.

    Args:
        config: The settings.
        preemption: The request to save and exit, if there can be one.

    Returns:
        Metrics of the last evaluation.

    Raises:
        UserError: If the run cannot start.
        Stopped: If the run fails later (Diverged: a loss or a parameter is not finite).
        Preempted: If `preemption` requested an exit; everything is saved.
    """
    with start(prepare(config)) as session:
        return run(session, preemption or Preemption())


def run(session: Session, preemption: Preemption) -> dict[str, float]:
    """Run the remaining steps, with evaluations and checkpoints. Returns and raises the same as `fit`."""
    setup, total = session.setup, session.setup.total
    seed = np.uint32(setup.config.seed)
    result = None
    preemption.saves = True  # from here on, there is state that a signal can save
    try:
        if lacks_evaluation(session):
            result = evaluated(session, session.start, preemption)
            if result is None:
                raise Preempted(f"step {session.start}/{total} had been saved; {CONTINUES}", preemption.signal)
        for step in range(session.start + 1, total + 1):
            asked = time.perf_counter()
            batch = to_devices(with_teacher(next(session.batches), session.teacher_logits), setup.mesh)
            batch = with_images(batch, session.image_rows, setup.info.image_shape)
            given = time.perf_counter()
            session.state, values = session.train_step(session.state, batch, session.frozen, seed)
            session.clock.add(asked, given, values)
            session.log.add(step, values)
            if setup.is_due(step):
                session.log.flush()
                result = evaluated(session, step, preemption)
            leaves = preemption.reached(step) and (step < total or result is None)
            if setup.is_due(step) or leaves or is_save_step(setup.config, step):
                save(session, step, result if setup.is_due(step) else None)
            if setup.is_due(step):
                session.log.restart_clock()
            if leaves:
                checkpoint.finish(session.checkpoints)
                raise Preempted(f"saved after step {step}/{total}; {CONTINUES}", preemption.signal)
    except Diverged as error:
        checkpoint.finish(session.checkpoints)
        raise Diverged(f"{error}. {last_usable_checkpoint(session.workdir)}. {ADVICE}") from None
    return finished(session, result, preemption)


def lacks_evaluation(session: Session) -> bool:
    """Whether the run continues from a checkpoint whose evaluation is due but was not finished."""
    at = session.start
    return at > 0 and session.setup.is_due(at) and not session.checkpoints.metrics(at)


def is_save_step(config: Config, step: int) -> bool:
    """Whether `--save-steps` requires a checkpoint after `step`."""
    return config.save_steps > 0 and step % config.save_steps == 0


def evaluated(session: Session, step: int, preemption: Preemption) -> dict[str, float] | None:
    """Evaluate the state after `step`, and record the result; None if an exit is requested before the end."""
    result = evaluation(session, preemption.asked)
    if result:
        check_finite(result["loss"], f"in the evaluation at step {step}")
        session.metrics.write(step, "eval", result)
        session.setup.progress.message(f"step {step}/{session.setup.total}  evaluation: {show(result)}")
    return result


def save(session: Session, step: int, result: dict[str, float] | None) -> None:
    """Start to write a checkpoint. `result` is the evaluation at `step`, or None between evaluations."""
    window = session.log.pause()
    check_parameters(session.state.params, step)
    session.metrics.publish()
    session.claimed.check()
    position = checkpoint.Position(tuple(window), session.metrics.records)
    checkpoint.save(session.checkpoints, step, session.state, position, result)


def finished(session: Session, result: dict[str, float] | None, preemption: Preemption) -> dict[str, float]:
    """Finish writing, and show and return the last evaluation."""
    setup = session.setup
    if result is None:  # the run was already finished
        result = evaluation(session, lambda: False)
    checkpoint.finish(session.checkpoints)
    session.metrics.publish()
    preemption.saves = False  # all is saved: a signal need not wait for the report
    best = session.checkpoints.best_step()
    of_best = session.checkpoints.metrics(best)
    metric = chosen_by(of_best)
    setup.progress.message(
        f"done: {show(result)} on {int(result['examples']):,} {setup.config.data.eval_split or 'evaluation'} images "
        f"after {setup.total:,} steps; best at step {best:,} by {NAMES.get(metric, metric)}: {show(of_best)}"
    )
    if (total := session.clock.total).steps:
        said = bottleneck(total, setup.config.batch_size)
        setup.progress.message(f"speed        {said}")
    if is_lead():
        trained = session.start < setup.total
        message = setup.progress.message
        write_ending(session.workdir, setup.config, setup.dataset, trained=trained, message=message)
    return result


def evaluation(session: Session, asked: Callable[[], bool]) -> dict[str, float] | None:
    """Evaluate the state of a session; see `evaluate`."""
    setup = session.setup
    evaluated = (setup.eval_step, session.state, setup.dataset, setup.info, setup.config, setup.mesh)
    return evaluate(*evaluated, session.skipped, asked)


def evaluate(
    eval_step: Callable,
    state: TrainState,
    dataset: Dataset,
    info: DataInfo,
    config: Config,
    mesh: Mesh,
    skipped: Skipped,
    asked: Callable[[], bool],
) -> dict[str, float] | None:
    """Evaluate a state on every example of the evaluation split.

    Args:
        eval_step: The evaluation step, from `train.step.make_eval_step`.
        state: The state.
        dataset: The dataset.
        info: Its properties.
        config: Config of the run.
        mesh: The devices.
        skipped: Counts unreadable images.
        asked: Whether an exit is requested; called before every batch.

    Returns:
        Means of the metrics, and the number of examples as "examples"; None if an exit was requested.
    """
    sums, whole = [], []
    size = sufficient_batch(config.eval_batch_size, len(dataset.eval), mesh)
    for batch in eval_batches(dataset, config.data, size, skipped):
        if asked():
            return None
        found = eval_step(state.eval_params, state.extras, to_devices(batch, mesh))
        if whole:  # of the batch before, while the devices compute this one
            whole[-1] = jax.device_get(whole[-1])
        if "all" in found:
            whole.append(found.pop("all"))
        sums.append(found)
    sums, whole = jax.device_get((sums, whole))
    totals = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    count = totals.pop("count")
    result = {name: total / count for name, total in totals.items()}
    if whole and math.isfinite(result["loss"]):
        rows = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
        real = rows["mask"] > 0
        result |= metrics_of_all(rows["outputs"][real], rows["targets"][real], info)
    return result | {"examples": count}


@jax.jit
def all_finite(tree: PyTree) -> jax.Array:
    """Whether every number in `tree` is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def check_parameters(params: PyTree, step: int) -> None:
    """Raises Diverged if a parameter is not finite, because such a state must not be saved."""
    if not all_finite(params):
        raise Diverged(f"a parameter is not finite after step {step}")


CONTINUES = "the same command continues from there"
ADVICE = (
    "Try a smaller --optim.lr, more --optim.warmup-epochs, a smaller --optim.clip-norm, or --dtype=float32, "
    "in a new --workdir"
)
