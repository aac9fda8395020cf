"""The targets of all examples of a source, and the order of a sampler that balances classes."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import rich.progress

from train.data.sources import Source, as_array, read


def labels_of(source: Source) -> np.ndarray:
    """The targets of all examples, int32 (n,) or float32 (n, k). A source without `labels` is read, images included."""
    if (labels := getattr(source, "labels", None)) is not None:
        return as_array(labels)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda index: read(source, index)[1], range(len(source)))
        return as_array(list(rich.progress.track(found, "Reading labels", total=len(source))))


class Balanced:
    """An endless order of examples in which every class is equally frequent.

    Of k classes, each k consecutive positions have one example of every class, in random order. The examples of a class
    follow each other in random order, each once before any comes again. The order depends only on `seed`.

    Args:
        labels: The class of each example, int (n,).
        seed: The seed, 0 or more.
        views: Number of views, which the rounds through a class use in turn (see `train_batches`).
    """

    def __init__(self, labels: np.ndarray, seed: int, views: int):
        self.examples, self.seed, self.views = len(labels), seed, views
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __call__(self, position: int, _row: int) -> int:
        """The sample (view * number of examples + example) at a position."""
        visit, place = divmod(position, len(self.members))
        index = int(_shuffled(len(self.members), (self.seed, 0, visit))[place])
        members = self.members[index]
        lap, step = divmod(visit, len(members))
        example = members[_shuffled(len(members), (self.seed, 1 + index, lap))[step]]
        return int(example) + self.examples * (lap % self.views)


@functools.lru_cache(maxsize=4096)  # the latest order of each class; with more classes, orders are drawn again
def _shuffled(count: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
