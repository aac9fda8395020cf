"""The whole story of a run."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from train.build import CLASSIFIERS, DataInfo, build_objective, objective_name
from train.capacity import check_compiled, check_memory
from train.cluster.preemption import Preemption
from train.cluster.processes import is_lead, together
from train.config import Config
from train.data import Dataset, Skipped, eval_batches, load_dataset, train_batches
from train.distill.cached_logits import cached_logits, with_teacher, with_views
from train.distill.teacher import fingerprint_of_weights, load_teacher
from train.errors import Diverged, Preempted
from train.initial import load_initial, started_from
from train.program import build_program, init_inputs, prepare_training
from train.run import checkpoint
from train.run.curves import draw_curves
from train.run.progress import Progress
from train.run.records import Metrics, TrainLog, check_finite
from train.run.report import describe
from train.run.workdir import as_begun, claim, disk_trouble, last_usable_checkpoint, memory_trouble
from train.sharding import check_batch, make_mesh, replicated, sufficient_batch, to_devices
from train.step import TrainState
from train.validation import validate


def fit(config: Config, preemption: Preemption | None = None) -> dict[str, float]:
    """Train, evaluate and checkpoint as `config` says; continue where its workdir stands. Returns the last evaluation.

    Raises UserError for a config that cannot run, Stopped for what ends a run midway (Diverged for a loss that is not
    finite), and Preempted once all is saved after `preemption` has asked to leave.
    """
    preemption = preemption or Preemption()
    validate(config)
    config = with_views(config)
    mesh = make_mesh(config.mesh)
    check_batch("--batch-size", config.batch_size, mesh, config.optim.accumulate)
    check_batch("--eval-batch-size", config.eval_batch_size, mesh)
    dataset = load_dataset(config.data, labels=objective_name(config) in CLASSIFIERS)
    info = as_begun(config, DataInfo(dataset.class_names, dataset.image_shape, dataset.mean, dataset.std))
    steps_per_epoch = len(dataset.train) / config.batch_size
    total = config.steps or max(1, round(config.epochs * steps_per_epoch))
    teacher, frozen = load_teacher(config, info)
    fingerprints = {**dataset.fingerprints, **({"teacher": fingerprint_of_weights(frozen)} if teacher else {})}
    objective = build_objective(config, info, teacher, total)

    eval_every = max(1, round(config.eval_epochs * steps_per_epoch))
    program = build_program(config, info, mesh, objective, total, steps_per_epoch)
    check_memory(config, info, program, mesh)

    # Acquire the workdir after all user input has been validated, so that a mistake creates none.
    initial = load_initial(config, objective, info, program.state)
    init = initial.report if initial else None
    with (
        disk_trouble(config.workdir),
        closing(claim(config, info, init, fingerprints=fingerprints)) as claimed,
        Progress(claimed.start, total) as progress,
        checkpoint.closing(checkpoint.open_checkpoints(claimed.workdir, config.keep)) as checkpoints,
        closing(Metrics(claimed.workdir, claimed.start, progress.warn)) as metrics,
        closing(training_batches(dataset, config, claimed.start, progress.warn)) as batches,
        together(),
        memory_trouble(config.workdir),
    ):
        workdir, start = claimed.workdir, claimed.start
        window = ()
        if start:
            state, (window, recorded) = checkpoint.restore(checkpoints, start, program.state)
            if is_lead() and metrics.records < recorded:
                lost = f"{recorded - metrics.records:,} of {recorded:,} records"
                progress.warn(f"warning: {workdir / 'metrics.jsonl'} has lost {lost}; the run itself has not")
        else:
            state = program.new_state(*init_inputs(config, info))
            state = started_from(state, initial) if initial else state
        frozen = jax.device_put(frozen, replicated(mesh))
        teacher_logits = None
        if config.distill.cache:
            prepare = prepare_training(config, info)
            teacher_logits = cached_logits(workdir, config, dataset, teacher, frozen["teacher"], prepare, mesh)
            frozen = {}

        for line in describe(config, dataset, state, mesh, total, eval_every, start, init):
            progress.message(line)
        if start < total:
            train_step = compile_step(program.train_step, state, program.batch, frozen, progress)
            check_compiled(train_step, config, mesh)
        log = TrainLog(metrics, progress, program.schedule, config.batch_size, config.log_steps, window)
        skipped = Skipped(dataset.eval, "evaluation", progress.warn)

        def evaluated(step):
            """The evaluation of the state after `step`, on record; None where SIGTERM came in between."""
            result = evaluate(program.eval_step, state, dataset, config, mesh, skipped, preemption.asked)
            if result:
                check_finite(result["loss"], f"in the evaluation at step {step}")
                metrics.write(step, "eval", result)
                progress.message(f"step {step}/{total}  evaluation: {show(result)}")
            return result

        def is_due(step):
            return step % eval_every == 0 or step == total

        preemption.saves = True  # from here on, a signal saves the run
        result = None
        try:
            if start and is_due(start) and not checkpoints.metrics(start):
                result = evaluated(start)
                if result is None:
                    raise Preempted(f"step {start}/{total} had been saved; {CONTINUES}", preemption.signal)
            for step in range(start + 1, total + 1):
                batch = with_teacher(next(batches), teacher_logits)
                state, values = train_step(state, to_devices(batch, mesh), frozen)
                log.add(step, values)
                if is_due(step):
                    log.flush()
                    result = evaluated(step)
                leaves = preemption.reached(step) and (step < total or result is None)
                if is_due(step) or leaves or (config.save_steps and step % config.save_steps == 0):
                    window = log.pause()
                    check_parameters(state.params, step)
                    metrics.publish()
                    claimed.check()
                    position = checkpoint.Position(tuple(window), metrics.records)
                    checkpoint.save(checkpoints, step, state, position, result if is_due(step) else None)
                if is_due(step):
                    log.restart_clock()
                if leaves:
                    checkpoint.finish(checkpoints)
                    raise Preempted(f"saved after step {step}/{total}; {CONTINUES}", preemption.signal)
        except Diverged as error:
            checkpoint.finish(checkpoints)
            raise Diverged(f"{error}. {last_usable_checkpoint(workdir)}. {ADVICE}") from None
        if result is None:  # the run had been finished before
            result = evaluate(program.eval_step, state, dataset, config, mesh, skipped, lambda: False)
        checkpoint.finish(checkpoints)
        metrics.publish()
        best = checkpoints.best_step()
        progress.message(
            f"done: {show(result)} on {int(result['examples']):,} {config.data.eval_split or 'evaluation'} images "
            f"after {total:,} steps; best at step {best:,}: {show(checkpoints.metrics(best))}"
        )
        if is_lead():
            progress.message(f"see {draw_curves(workdir)} and {workdir / 'metrics.jsonl'}")
    return result


def compile_step(train_step: Callable, state: TrainState, batch: PyTree, frozen: PyTree, progress: Progress) -> Any:
    """The step compiled ahead of the first batch, so that a user sees what the wait is for."""
    progress.message("compiling    the training step ...")
    since = time.perf_counter()
    compiled = train_step.lower(state, batch, frozen).compile()
    progress.message(f"compiled     in {time.perf_counter() - since:.1f} s")
    return compiled


def training_batches(dataset: Dataset, config: Config, start: int, warn: Callable[[str], None]) -> Any:
    """The endless batches of the run after step `start`."""
    return train_batches(dataset, config.data, config.batch_size, config.seed, config.distill.views, start, warn)


def evaluate(
    eval_step: Callable,
    state: TrainState,
    dataset: Dataset,
    config: Config,
    mesh: Mesh,
    skipped: Skipped,
    asked: Callable[[], bool],
) -> dict[str, float] | None:
    """Means over the evaluation split, each example once, and their number as "examples"; None if `asked` to leave."""
    sums = []
    size = sufficient_batch(config.eval_batch_size, len(dataset.eval), mesh)
    for batch in eval_batches(dataset, config.data, size, skipped):
        if asked():
            return None
        sums.append(eval_step(state.eval_params, state.extras, to_devices(batch, mesh)))
    sums = jax.device_get(sums)
    totals = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    count = totals.pop("count")
    return {name: total / count for name, total in totals.items()} | {"examples": count}


@jax.jit
def all_finite(tree: PyTree) -> jax.Array:
    """Whether every number in `tree` is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def check_parameters(params: PyTree, step: int) -> None:
    """Raises Diverged for a parameter that is no finite number: such a state is not worth a checkpoint."""
    if not all_finite(params):
        raise Diverged(f"a parameter is not finite after step {step}")


def show(result: dict[str, float]) -> str:
    """An evaluation in words."""
    accuracy = f", accuracy {result['accuracy']:.2%}" if "accuracy" in result else ""
    return f"loss {result['loss']:.4f}{accuracy}"


CONTINUES = "the same command continues from there"
ADVICE = (
    "Try a smaller --optim.lr, more --optim.warmup-epochs, a smaller --optim.clip-norm, or --dtype=float32, "
    "in a new --workdir"
)
