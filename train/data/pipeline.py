"""Batches for training and evaluation, built with Grain: order, decoding, crops, and the share of each process.

The order is one endless sequence of positions, the same for any number of processes; of P processes each takes every
P-th position. The example at a position depends only on the seed, so iterators resume exactly.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import numpy as np
from absl import flags

from train.config import Data
from train.data.dataset import Dataset, warn
from train.data.labels import labels_of
from train.data.order import Balanced, Shuffled, sample_at
from train.data.skipped import Skipped
from train.data.sources import ArraySource, Source, as_array, read
from train.data.transforms import (
    INTERPOLATION,
    Shape,
    evaluation_crop,
    evaluation_of,
    opened,
    pixels_of,
    random_crop,
    simple_crop,
)
from train.data.workers import Watched, die_with_parent
from train.errors import UserError
from vit_jax.images import OpenImage, Pixels

CHUNK = 16  # most images in a message of a worker process

Warn = Callable[[str], None]
Crop = Callable[[np.ndarray | OpenImage, np.random.Generator], np.ndarray]


def train_batches(
    dataset: Dataset,
    config: Data,
    batch_size: int,
    seed: int,
    views: int = 0,
    start: int = 0,
    warn: Warn = warn,
    repeats: int = 1,
    *,
    indices: bool = False,
) -> grain.DatasetIterator:
    """Endless batches of training images, reshuffled every epoch, or with `config.sampler` balanced by class.

    Args:
        dataset: The dataset.
        config: Its preprocessing.
        batch_size: Images per batch, over all processes.
        seed: Seed of the order and the crops, 0 or more.
        views: Number of fixed views of every image, which epochs use in turn: the crop of a view is always the same. 0:
            a new crop in every epoch.
        start: Number of batches to skip, which takes no time. A batch depends only on its position, so this resumes
            exactly, with any number of workers.
        warn: Receives a line about unreadable images; readable ones replace them.
        repeats: Number of consecutive times that each image comes, each with a crop of its own (repeated augmentation).
        indices: Give "index", int32 (b,), in place of "image": for images kept on the devices (see `need_no_crop`).

    Returns:
        An iterator over {"image": (b, h, w, c) of the dataset's type, "label": int32 (b,), or float32 (b, k) for labels
        and numbers}, where b is this process's share of `batch_size`; with `views` also "sample": int32 (b,), view *
        number of examples + example. `set_state` resumes exactly from the JSON-serialisable `get_state()` of an
        iterator with as many workers. Close the iterator to end its worker processes.

    Raises:
        UserError: If an argument is out of range or, later, if too many images are unreadable.
    """
    if seed < 0:
        raise UserError(f"seed is {seed}: expected 0 or more")
    examples = len(dataset.train)
    balanced = config.sampler == "balanced"
    order = Balanced(labels_of(dataset.train), seed) if balanced else Shuffled(examples, seed)
    sample = functools.partial(sample_at, order, examples, max(1, views), repeats)
    samples = grain.MapDataset.range(examples).seed(seed).repeat().map_with_index(sample)
    share, first = _share(batch_size), start * batch_size
    batches = _train_batches(dataset, config, samples, share, seed, views, first, warn, indices=indices)
    return _iterate(batches, dataset.train, config)


def view_batches(dataset: Dataset, config: Data, batch_size: int, seed: int, views: int) -> Iterator[dict]:
    """Yield every view of every training example once, in the order of "sample" (see `train_batches`).

    It supports a single process. The last batch may be smaller.
    """
    samples = grain.MapDataset.range(views * len(dataset.train)).seed(seed)
    batches = _train_batches(dataset, config, samples, batch_size, seed, views)
    with contextlib.closing(_iterate(batches, dataset.train, config)) as iterator:
        yield from iterator


def _train_batches(
    dataset: Dataset,
    config: Data,
    samples: grain.MapDataset,
    share: int,
    seed: int,
    views: int,
    first: int = 0,
    warn: Warn = warn,
    *,
    indices: bool = False,
) -> grain.IterDataset:
    source, size = dataset.train, dataset.image_shape[:2]
    if need_no_crop(dataset, config):
        return _gathered(source, samples, share, first, with_sample=views > 0, indices=indices)
    interpolation = config.interpolation or INTERPOLATION
    may_scale = lambda image: image if config.scaled_decoding else pixels_of(image)
    if config.random_crop == "simple":
        crop = lambda image, rng: simple_crop(may_scale(image), size, rng, interpolation)
    else:
        crop = lambda image, rng: random_crop(may_scale(image), size, config.min_crop, rng, interpolation)
    view_seed = seed if views else None
    batches = _decoded(source, samples, crop, share, config.workers, view_seed, first)
    skipped = Skipped(source, "training", warn)

    def counted(batch):
        unreadable = batch.pop("unreadable")
        skipped.add(unreadable[unreadable >= 0].tolist())
        return batch

    return batches.map(counted)


def eval_batches(
    dataset: Dataset, config: Data, batch_size: int, skipped: Skipped | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield every evaluation example once, in order.

    Args:
        dataset: The dataset.
        config: Its preprocessing.
        batch_size: Images per batch, over all processes.
        skipped: Counts unreadable images; None: a new counter.

    Yields:
        Batches as from `train_batches`, with "mask": float32 (b,), which is 0 for unreadable images and for the padding
        of the last batch. All batches have the same shape, and all processes yield the same number of batches.
    """
    source, size = dataset.eval, dataset.image_shape[:2]
    indices = grain.MapDataset.range(len(source)).seed(0)
    share = _share(batch_size)
    preprocessing = evaluation_of(config, dataset.image_shape, dataset.mean)
    if _is_ready(source, size, preprocessing.crop_pct):
        batches = _gathered(source, indices, share)
    else:
        crop = lambda image, rng: evaluation_crop(image, preprocessing, dataset.mean)
        batches = _decoded(source, indices, crop, share, config.workers)
    skipped = skipped or Skipped(source, "evaluation", warn)
    with contextlib.closing(_iterate(batches, source, config)) as iterator:
        for _ in range(0, len(source), batch_size):
            batch = next(iterator, None) or _no_examples(dataset)
            unreadable = batch.pop("unreadable", np.full(len(batch["label"]), -1))
            skipped.add(unreadable[unreadable >= 0].tolist())
            yield _padded(batch, share, unreadable < 0)


def image_to_input(
    path: str | os.PathLike, image_shape: Shape, config: Data, mean: Sequence[float], pixels: Pixels = "uint8"
) -> np.ndarray:
    """Read one image file as in evaluation: `pixels` of `image_shape` (height, width, channels)."""
    with opened(path, image_shape[2], str(path), pixels) as image:
        return evaluation_crop(image, evaluation_of(config, image_shape, mean), mean)


def _share(batch_size: int) -> int:
    if batch_size < 1 or batch_size % jax.process_count():
        raise UserError(f"batch size {batch_size}: expected a positive multiple of the {jax.process_count()} processes")
    return batch_size // jax.process_count()


def need_no_crop(dataset: Dataset, config: Data) -> bool:
    """Whether the training images are in memory, and need no crop and no resizing."""
    size = dataset.image_shape[:2]
    return config.random_crop != "simple" and _is_ready(dataset.train, size, config.min_crop)


def _is_ready(source: Source, size: tuple[int, int], crop: float) -> bool:
    """Whether images in memory need no crop and no resizing."""
    return isinstance(source, ArraySource) and source.images.shape[1:3] == size and crop == 1


def _own(dataset: grain.MapDataset, first: int = 0) -> grain.MapDataset:
    """This process's positions of the global order, starting at `first`."""
    return dataset[first + jax.process_index() :: jax.process_count()]


def _gathered(
    source: ArraySource,
    samples: grain.MapDataset,
    share: int,
    first: int = 0,
    *,
    with_sample: bool = False,
    indices: bool = False,
) -> grain.IterDataset:
    """Batches from memory, with one indexing operation each: a Python call per example would be slow."""

    def gather(samples):
        rows = np.asarray(samples) % len(source)
        sample = {"sample": np.asarray(samples, np.int32)} if with_sample else {}
        image = {"index": rows.astype(np.int32)} if indices else {"image": source.images[rows]}
        return {**image, "label": source.labels[rows], **sample}

    inline = grain.ReadOptions(num_threads=0)
    # Batches of one leave no remainder. If a remainder is kept, Grain rounds their number up, which overflows here.
    batches = _own(samples, first).batch(share, batch_fn=gather, drop_remainder=share == 1)
    return batches.to_iter_dataset(inline)


def _decoded(
    source: Source,
    indices: grain.MapDataset,
    crop: Crop,
    share: int,
    workers: int,
    view_seed: int | None = None,
    first: int = 0,
) -> grain.IterDataset:
    """Batches of examples that threads or worker processes decode in advance.

    Batches also have "unreadable", int (b,): the index of an example that another one replaces, otherwise -1.

    Crops depend on the position in the global order; with a `view_seed`, on the sample.
    """
    examples = indices.random_map(functools.partial(_example, source, crop, view_seed))
    examples = _own(examples, first)  # after the map, whose random numbers depend on positions
    ahead = 2 * share
    if workers and not isinstance(source, ArraySource):
        return _by_workers(examples, share, workers, ahead)
    # Images in memory need no decoding: threads would only compete for the interpreter lock.
    threads = 0 if isinstance(source, ArraySource) else min(os.cpu_count(), ahead)
    return examples.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=ahead)).batch(share)


def _by_workers(examples: grain.MapDataset, share: int, workers: int, ahead: int) -> grain.IterDataset:
    """Batches of examples that worker processes make, and send in chunks: a message for each would cost 1.4 ms.

    Workers take turns at chunks, so that the order does not depend on their number. `ahead` examples wait for use.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which must have been parsed
    size = max(size for size in range(1, min(CHUNK, share) + 1) if share % size == 0)
    # Batches of one: see `_gathered`.
    chunks = examples.batch(size, drop_remainder=size == 1).to_iter_dataset(grain.ReadOptions(num_threads=0))
    each = -(-ahead // (size * workers))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=each)
    return chunks.mp_prefetch(options, worker_init_fn=die_with_parent).batch(share // size, batch_fn=_joined)


def _joined(chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _iterate(batches: grain.IterDataset, source: Source, config: Data) -> grain.DatasetIterator:
    """An iterator that does not wait for dead workers."""
    in_workers = config.workers and not isinstance(source, ArraySource)
    return Watched(iter(batches)) if in_workers else iter(batches)


def _example(
    source: Source, crop: Crop, view_seed: int | None, sample: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    index, example = sample % len(source), {}
    if view_seed is not None:
        rng = np.random.default_rng((view_seed, sample))
        example["sample"] = np.asarray(sample, np.int32)
    image, label, used = read(source, index, lambda image: crop(image, rng))
    return {
        "image": image,
        "label": as_array(label),
        "unreadable": np.asarray(-1 if used == index else index),
        **example,
    }


def _no_examples(dataset: Dataset) -> dict[str, np.ndarray]:
    """The batch of a process without a share of the last examples."""
    label = as_array(read(dataset.eval, 0)[1])
    return {"image": np.zeros((0, *dataset.image_shape), dataset.pixels), "label": label[None][:0]}


def _padded(batch: dict[str, np.ndarray], size: int, mask: np.ndarray) -> dict[str, np.ndarray]:
    pad = lambda rows: np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))
    return {
        "image": pad(batch["image"]),
        "label": pad(batch["label"]),
        "mask": pad(mask.astype(np.float32)),
    }
