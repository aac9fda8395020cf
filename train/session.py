"""Claim the workdir of a run, open its files, and restore or create its state."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from train.cluster.processes import is_lead, together
from train.data import Skipped, train_batches
from train.data.placement import on_every_device
from train.distill.cached_logits import cached_logits
from train.initial import started_from
from train.program import init_inputs, prepare_training
from train.run import checkpoint
from train.run.clock import DeviceClock
from train.run.failures import disk_trouble, memory_trouble
from train.run.records import Metrics, TrainLog
from train.run.trackers import tracking
from train.run.workdir import Claim, claim
from train.setup import Setup, announced, compile_train_step
from train.sharding import replicated
from train.step import TrainState


@dataclasses.dataclass
class Session:
    """Everything that the training loop uses. Only `state` is replaced, by every step.

    Attributes:
        image_rows: The training images, as rows, if they are kept on the devices.
    """

    setup: Setup
    claimed: Claim
    checkpoints: ocp.CheckpointManager
    metrics: Metrics
    log: TrainLog
    clock: DeviceClock
    batches: Any
    skipped: Skipped
    train_step: Callable | None
    frozen: PyTree
    teacher_logits: np.ndarray | None
    image_rows: jax.Array | None
    state: TrainState

    @property
    def start(self) -> int:
        """The step after which the run continues; 0 if it is new."""
        return self.claimed.start

    @property
    def workdir(self) -> epath.Path:
        """The claimed folder."""
        return self.claimed.workdir


@contextlib.contextmanager
def start(setup: Setup) -> Iterator[Session]:
    """Context in which the workdir is claimed, and the state is restored from its last good checkpoint or created.

    Args:
        setup: The checked and compiled run.

    Raises:
        UserError: If the workdir cannot be claimed.
        Stopped: For errors of the disk or of device memory, also within the context.
    """
    config, dataset, progress = setup.config, setup.dataset, setup.progress
    with (
        disk_trouble(config.workdir),
        closing(claimed_by(setup)) as claimed,
        progress,
        checkpoint.closing(checkpoint.open_checkpoints(claimed.workdir, config.keep)) as checkpoints,
        tracking(config, claimed.workdir, progress.warn) as send,
        closing(Metrics(claimed.workdir, claimed.start, progress.warn, send)) as metrics,
        closing(training_batches(setup, claimed.start)) as batches,
        closing(DeviceClock()) as clock,
        together(),
        memory_trouble(config.workdir),
    ):
        begun = f"continues after step {claimed.start:,}" if claimed.start else "new"
        progress.message(f"{'workdir':<12} {claimed.workdir} ({begun})")
        progress.begin(claimed.start)
        train_step = setup.train_step
        if train_step is None and claimed.start < setup.total:  # the last checkpoint was damaged
            with announced(progress):
                train_step = compile_train_step(setup.program, setup.frozen, config, setup.mesh, setup.image_bytes)
        state, window = first_state(setup, claimed, checkpoints, metrics)
        frozen, logits = placed_teacher(setup, claimed.workdir)
        is_kept = setup.image_bytes and claimed.start < setup.total
        image_rows = on_every_device(dataset.train.images, setup.mesh) if is_kept else None
        # The host copies of the teacher and of the initial weights are no longer needed.
        setup = setup._replace(frozen={}, initial=None)
        sizes = config.batch_size, config.log_steps
        log = TrainLog(metrics, progress, setup.program.schedule, *sizes, window, clock.lap)
        yield Session(
            setup=setup,
            claimed=claimed,
            checkpoints=checkpoints,
            metrics=metrics,
            log=log,
            clock=clock,
            batches=batches,
            skipped=Skipped(dataset.eval, "evaluation", progress.warn),
            train_step=train_step,
            frozen=frozen,
            teacher_logits=logits,
            image_rows=image_rows,
            state=state,
        )


def claimed_by(setup: Setup) -> Claim:
    """Claim the workdir for the run. Raises UserError if that is not possible."""
    init = setup.initial.report if setup.initial else None
    return claim(setup.config, setup.info, init, fingerprints=setup.fingerprints, extensions=setup.extensions)


def training_batches(setup: Setup, start: int) -> Any:
    """The endless training batches of the run, after step `start`."""
    config = setup.config
    views, repeats, warn = config.distill.views, config.augment.repeats, setup.progress.warn
    order = dict(views=views, start=start, warn=warn, repeats=repeats, indices=setup.image_bytes > 0)
    return train_batches(setup.dataset, config.data, config.batch_size, config.seed, **order)


def first_state(
    setup: Setup, claimed: Claim, checkpoints: ocp.CheckpointManager, metrics: Metrics
) -> tuple[TrainState, tuple]:
    """The state to start from, and the metrics of steps not yet in a training record (`Position.window`)."""
    if not claimed.start:
        state = setup.program.new_state(*init_inputs(setup.config, setup.info))
        return started_from(state, setup.initial) if setup.initial else state, ()
    state, position = checkpoint.restore(checkpoints, claimed.start, setup.program.state)
    if is_lead() and metrics.records < position.records:
        lost = f"{position.records - metrics.records:,} of {position.records:,} records"
        file = claimed.workdir / "metrics.jsonl"
        setup.progress.warn(f"warning: {file} has lost {lost}; the run itself has not")
    return state, position.window


def placed_teacher(setup: Setup, workdir: epath.Path) -> tuple[PyTree, np.ndarray | None]:
    """Put the teacher's variables on all devices, or read or compute its cached logits.

    Returns:
        The variables and None; with cached logits, {} and the logits. Without a teacher, {} and None.
    """
    frozen = jax.device_put(setup.frozen, replicated(setup.mesh))
    if not setup.config.distill.cache:
        return frozen, None
    prepare = prepare_training(setup.config, setup.info)
    variables = frozen["teacher"]
    return {}, cached_logits(workdir, setup.config, setup.dataset, setup.teacher, variables, prepare, setup.mesh)
