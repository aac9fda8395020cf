"""Prepare a run before its workdir is written: validate, load data and weights, compile, and check the memory."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from jax.sharding import Mesh
from jax.stages import Compiled
from jaxtyping import PyTree

from train.build import CLASSIFIERS, DataInfo, build_objective, objective_name
from train.capacity import check_compiled, check_memory, local_bytes
from train.config import Config
from train.data import Dataset, load_dataset
from train.data.fingerprint import Fingerprint
from train.data.placement import kept_on_devices, note_on_placement
from train.data_info import info_of, notes_on
from train.distill.cached_logits import with_views
from train.distill.teacher import fingerprint_of_weights, load_teacher, with_feature_dim
from train.extension import described, extensions_of, length, with_former_length
from train.initial import Initial, load_initial
from train.optim import Extension
from train.program import Program, abstract_eval_batch, abstract_frozen, abstract_seed, build_program
from train.published import with_published
from train.run.description import describe
from train.run.failures import memory_trouble
from train.run.progress import Progress
from train.run.workdir import as_begun, check_continues, is_finished
from train.sharding import check_batch, make_mesh, sufficient_batch
from train.small_data import notes_on_length, with_length
from train.validation import validate
from vit_jax.objectives.distill import Teacher


class Setup(NamedTuple):
    """A checked and compiled run.

    Attributes:
        image_bytes: Bytes of the training images on each device; 0 if every step transfers its images.
        frozen: The teacher's variables, {} without a teacher.
        total: Number of steps.
        extensions: How the run became longer.
        eval_every: Number of steps between evaluations.
        train_step: The compiled training step; None if the workdir has a checkpoint of the last step.
    """

    config: Config
    dataset: Dataset
    info: DataInfo
    fingerprints: Mapping[str, Fingerprint]
    mesh: Mesh
    image_bytes: int
    teacher: Teacher | None
    frozen: PyTree
    initial: Initial | None
    program: Program
    total: int
    extensions: tuple[Extension, ...]
    eval_every: int
    progress: Progress
    train_step: Compiled | None
    eval_step: Compiled

    def is_due(self, step: int) -> bool:
        """Whether there is an evaluation after `step`."""
        return step % self.eval_every == 0 or step == self.total


def prepare(config: Config) -> Setup:
    """Validate `config`, load data and weights, and compile the steps. No files are written.

    Args:
        config: The settings.

    Raises:
        UserError: If the run cannot start, cannot continue in its workdir, or does not fit into memory.
        Stopped: If memory runs out while the steps are compiled.
    """
    config = with_published(config)
    validate(config)
    config = with_views(config)
    mesh = make_mesh(config.mesh)
    if config.batch_size is not None:
        check_batch("--batch-size", config.batch_size, mesh, config.optim.accumulate)
    check_batch("--eval-batch-size", config.eval_batch_size, mesh)
    dataset = load_dataset(config.data, labels=objective_name(config) in CLASSIFIERS)
    images = len(dataset.train)
    open_config, config = config, with_length(config, images, mesh)
    check_batch("--batch-size", config.batch_size, mesh, config.optim.accumulate)
    info = as_begun(config, info_of(dataset, config))
    notes = (*dataset.notes, *notes_on(info, config), *notes_on_length(open_config, config, images))
    image_bytes = dataset.train.images.nbytes if kept_on_devices(dataset, config.data, mesh) else 0
    notes += (note_on_placement(dataset),) if image_bytes else ()
    dataset = dataclasses.replace(dataset, notes=notes)
    requested, config = config, with_former_length(config)  # a run in the workdir may become longer
    begun, steps_per_epoch = length(config, images)
    eval_every = max(1, round(config.eval_epochs * steps_per_epoch))

    teacher, frozen = load_teacher(config, info)
    config = with_feature_dim(config, teacher, info)
    fingerprints = {**dataset.fingerprints, **({"teacher": fingerprint_of_weights(frozen)} if teacher else {})}
    check_continues(config, info, fingerprints)
    extensions = extensions_of(requested, config, images)
    total = extensions[-1].total if extensions else begun
    objective = build_objective(config, info, teacher, total)
    program = build_program(config, info, mesh, objective, begun, steps_per_epoch, extensions)
    check_memory(config, info, program, mesh)
    initial = load_initial(config, objective, info, program.state)

    progress = Progress(0, total)
    report = initial.report if initial else None
    for line in describe(config, dataset, program.state.params, program.trained, mesh, total, eval_every, report):
        progress.message(line)
    if extensions:
        progress.message(f"extended     {described(config, images, extensions)}")
    finished = is_finished(config.workdir, total)
    with memory_trouble(config.workdir), contextlib.nullcontext() if finished else announced(progress):
        train_step = None if finished else compile_train_step(program, frozen, config, mesh, image_bytes)
        eval_step = compile_eval_step(program, frozen, config, len(dataset.eval), info, mesh, image_bytes)
    return Setup(
        config=config,
        dataset=dataset,
        info=info,
        fingerprints=fingerprints,
        mesh=mesh,
        image_bytes=image_bytes,
        teacher=teacher,
        frozen=frozen,
        initial=initial,
        program=program,
        total=total,
        extensions=extensions,
        eval_every=eval_every,
        progress=progress,
        train_step=train_step,
        eval_step=eval_step,
    )


@contextlib.contextmanager
def announced(progress: Progress) -> Iterator[None]:
    """Context that tells the user that steps are compiled, and how long it took."""
    progress.message("compiling    the training step ...")
    since = time.perf_counter()
    yield
    progress.message(f"compiled     in {time.perf_counter() - since:.1f} s")


def compile_train_step(program: Program, frozen: PyTree, config: Config, mesh: Mesh, image_bytes: int = 0) -> Compiled:
    """Compile the training step. Raises UserError if it and `image_bytes` need more memory than a device has."""
    frozen = {} if config.distill.cache else abstract_frozen(frozen, mesh)
    step = compile_step(program.train_step, program.state, program.batch, frozen, abstract_seed(mesh))
    check_compiled(step, f"a training step of --batch-size {config.batch_size}", config, mesh, image_bytes)
    return step


def compile_eval_step(
    program: Program, frozen: PyTree, config: Config, examples: int, info: DataInfo, mesh: Mesh, image_bytes: int = 0
) -> Compiled:
    """Compile the evaluation step. Raises UserError if it and `image_bytes` need more memory than a device has."""
    size = sufficient_batch(config.eval_batch_size, examples, mesh)
    passed = (program.state.eval_params, program.state.extras)
    step = compile_step(program.eval_step, *passed, abstract_eval_batch(size, info, mesh))
    frozen = {} if config.distill.cache else abstract_frozen(frozen, mesh)
    kept = image_bytes + local_bytes((program.state, frozen)) - local_bytes(passed)  # also there during an evaluation
    check_compiled(step, f"an evaluation step of {size} images", config, mesh, kept)
    return step


def compile_step(step: Callable, *arguments: PyTree) -> Compiled:
    """Compile a jitted `step` for abstract arguments."""
    return step.lower(*arguments).compile()
