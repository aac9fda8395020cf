"""A teacher's logits for every view of every training image, computed once and stored in the workdir."""

import atexit
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import rich.progress
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from train.config import Config
from train.data import Dataset, view_batches
from train.data.fingerprint import changes, read_fingerprints, write_fingerprints
from train.distill.teacher import fingerprint_of_weights
from train.errors import UserError
from train.run.files import is_remote, open_regular
from train.sharding import replicated, sufficient_batch, to_devices
from train.step import cast
from vit_jax.objectives.distill import Teacher

FILE = "teacher_logits.npy"
FINGERPRINTS = "teacher_logits.json"  # of the images and the teacher


def with_views(config: Config) -> Config:
    """`config` with at least one fixed view if the teacher's logits are cached.

    Raises UserError if they are cached in a run of several processes.
    """
    if not config.distill.cache:
        return config
    if jax.process_count() > 1:
        raise UserError(f"--distill.cache supports a single process; this run has {jax.process_count()}")
    return dataclasses.replace(config, distill=dataclasses.replace(config.distill, views=config.distill.views or 1))


def cached_logits(
    workdir: os.PathLike | str,
    config: Config,
    dataset: Dataset,
    teacher: Teacher,
    variables: PyTree,
    prepare: Callable,
    mesh: Mesh,
) -> np.ndarray:
    """Read a teacher's logits from a workdir, or compute and store them. Without fingerprints they are computed again.

    Args:
        workdir: The workdir.
        config: Config of the run.
        dataset: The training images.
        teacher: The teacher.
        variables: Its variables.
        prepare: Function from (key, batch) to the student's images and targets; see `train.program.prepare_training`.
        mesh: Devices that compute the logits.

    Returns:
        Logits (views * examples, k), float32, in the order of "sample" (see `train.data.train_batches`).

    Raises:
        UserError: If the stored logits are damaged, or belong to other images or another teacher.
    """
    path = epath.Path(workdir) / FILE
    fingerprints = {"train": dataset.fingerprints["train"], "teacher": fingerprint_of_weights(variables)}
    shape = (config.distill.views * len(dataset.train), len(dataset.class_names))
    is_known = (path.parent / FINGERPRINTS).exists()
    if is_known and (found := changes(read_fingerprints(path.parent / FINGERPRINTS), fingerprints)):
        raise UserError(f"{path} belongs to other images or another teacher ({found}): delete it to compute them again")
    local = Path(workdir) / FILE
    if is_remote(path):  # random access needs a local copy
        local = Path(tempfile.mkdtemp()) / FILE
        atexit.register(shutil.rmtree, local.parent, ignore_errors=True)
        if path.exists():
            path.copy(local)
    if not (path.exists() and is_known):
        part = local.with_suffix(".part")
        part.unlink(missing_ok=True)
        os.close(open_regular(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        table = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        reserve(part)

        def logits_of(variables, batch):
            images, _ = prepare(None, batch)
            return teacher.apply(cast(variables, config.dtype), images.astype(config.dtype)).astype(np.float32)

        logits_of = jax.jit(logits_of, out_shardings=replicated(mesh))
        size = sufficient_batch(config.eval_batch_size, shape[0], mesh)
        batches = view_batches(dataset, config.data, size, config.seed, config.distill.views)
        steps = -(-shape[0] // size)
        for batch in rich.progress.track(batches, total=steps, description=f"teacher, into {path}"):
            count = len(batch["sample"])
            batch = {name: _padded(rows, size) for name, rows in batch.items()}
            table[batch["sample"][:count]] = np.asarray(logits_of(variables, to_devices(batch, mesh)))[:count]
        table.flush()
        part.replace(local)
        if is_remote(path):
            epath.Path(local).copy(path, overwrite=True)
        write_fingerprints(path.parent / FINGERPRINTS, fingerprints)
    return _loaded(local, shape)


def _loaded(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Memory-map the table in a file. Raises UserError for a damaged one."""
    try:
        os.close(open_regular(path))  # raises OSError for links and pipes
        table = np.load(path, mmap_mode="r")
        if (table.shape, table.dtype) == (shape, np.float32):
            return table
        trouble = f"it holds {table.dtype} {table.shape}, not float32 {shape}"
    except (EOFError, OSError, ValueError) as error:
        trouble = " ".join(str(error).split())
    raise UserError(f"{path} is damaged ({trouble}): delete it to compute the teacher's logits again")


def reserve(file: Path) -> None:
    """Allocate the disk space of a sparse file: if the disk fills up, a write to the memory map kills the process."""
    if hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as content:
            os.posix_fallocate(content.fileno(), 0, file.stat().st_size)


def with_teacher(batch: Mapping[str, np.ndarray], logits: np.ndarray | None) -> Mapping[str, np.ndarray]:
    """`batch`, with the teacher's logits for its samples if they are cached."""
    return batch if logits is None else {**batch, "teacher": logits[batch["sample"]]}


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Pad `rows` to `size` with copies of the first row, so that all batches have one shape."""
    return np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])
