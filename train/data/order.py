"""The endless order of training examples: shuffled or balanced by class, and with repeated augmentation.

An order is a function from a position to the index of an example and the lap, which counts how often the example has
come before. It depends only on its seed, so that any position can be resumed from.
"""

import functools
from collections.abc import Callable

import numpy as np

Order = Callable[[int], tuple[int, int]]


class Shuffled:
    """Each example once in every epoch, in an order that is new in every epoch.

    Args:
        examples: Number of examples.
        seed: The seed, 0 or more.
    """

    def __init__(self, examples: int, seed: int):
        self.examples, self.seed = examples, seed

    def __call__(self, position: int) -> tuple[int, int]:
        """The example at a position, and its lap, which is the epoch."""
        epoch, place = divmod(position, self.examples)
        return int(_of_epoch(self.examples, self.seed, epoch)[place]), epoch


@functools.lru_cache(maxsize=2)  # a batch, and threads that prefetch, may span two epochs
def _of_epoch(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch. Grain's own shuffle takes 25 microseconds per example, more than everything else here."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


class Balanced:
    """An order of examples in which every class is equally frequent.

    Of k classes, each k consecutive positions have one example of every class, in random order. The examples of a class
    follow each other in random order, each once before any comes again.

    Args:
        labels: The class of each example, int (n,).
        seed: The seed, 0 or more.
    """

    def __init__(self, labels: np.ndarray, seed: int):
        self.seed = seed
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __call__(self, position: int) -> tuple[int, int]:
        """The example at a position, and its lap, which is the round through its class."""
        visit, place = divmod(position, len(self.members))
        index = int(_of_class(len(self.members), (self.seed, 0, visit))[place])
        members = self.members[index]
        lap, step = divmod(visit, len(members))
        return int(members[_of_class(len(members), (self.seed, 1 + index, lap))[step]]), lap


@functools.lru_cache(maxsize=4096)  # the latest order of each class; with more classes, orders are drawn again
def _of_class(count: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def sample_at(order: Order, examples: int, views: int, repeats: int, position: int, _row: int = 0) -> int:
    """The sample (view * `examples` + example) at a position.

    With repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335) each example of the order takes `repeats`
    consecutive positions. An epoch, which has as many positions as there are examples, then has 1 / `repeats` of them.
    Differs from DeiT's sampler: the next epoch continues with other examples (DeiT: draws from all of them again), and
    groups may extend over the end of an epoch.

    Args:
        order: The order of the examples.
        examples: Number of examples.
        views: Number of fixed views, which the times that an example comes use in turn.
        repeats: Number of consecutive positions of an example.
        position: Position in the endless sequence of samples.
    """
    turn, repeat = divmod(position, repeats)
    example, lap = order(turn)
    return example + examples * ((lap * repeats + repeat) % views)
