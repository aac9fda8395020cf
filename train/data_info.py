"""The properties of a dataset that a run stores, some of which are measured on the labels of its training images."""

import numpy as np

from train.build import DataInfo
from train.class_weights import BALANCED, class_weights
from train.config import Config
from train.data import Dataset
from train.data.labels import labels_of
from train.errors import UserError
from vit_jax.printable import printable


def info_of(dataset: Dataset, config: Config) -> DataInfo:
    """The properties of `dataset` for a run of `config`.

    Raises:
        UserError: If numbers cannot be standardised, or `--class-weights` does not fit the classes.
    """
    target, names = config.data.target, dataset.class_names
    info = DataInfo(names, dataset.image_shape, dataset.mean, dataset.std, target, pixels=dataset.pixels)
    labels = labels_of(dataset.train) if target == "regression" or BALANCED in config.class_weights else None
    if target == "regression":
        mean, std = standardisation(labels, names)
        return info._replace(target_mean=mean, target_std=std)
    return info._replace(class_weights=class_weights(config.class_weights, target, names, labels))


def notes_on(info: DataInfo, config: Config) -> list[str]:
    """Lines about how the labels are used, shown at the start of a run."""
    notes = []
    if info.target == "regression":
        columns = zip(info.class_names, info.target_mean, info.target_std, strict=True)
        notes.append(f"standardised {_some([f'{name} (mean {m:.4g}, deviation {s:.4g})' for name, m, s in columns])}")
    if info.class_weights:
        pairs = zip(info.class_names, info.class_weights, strict=True)
        notes.append(f"class weights {_some([f'{name} {weight:.3g}' for name, weight in pairs])}")
    if config.data.sampler == "balanced":
        notes.append("balanced sampler: images of every class are equally frequent in training")
    return notes


def _some(texts: list[str], most: int = 6) -> str:
    """The first `most` texts."""
    return ", ".join([*texts[:most], *([f"and {len(texts) - most} more"] if len(texts) > most else [])])


def standardisation(numbers: np.ndarray, names: tuple[str, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column of numbers (n, m).

    Raises:
        UserError: If a column is constant, or contains a number that is not finite.
    """
    numbers = numbers.astype(np.float64)
    for name, column in zip(names, numbers.T, strict=True):
        if not np.isfinite(column).all():
            raise UserError(f"column {printable(name)} of the training images has a number that is not finite")
        if np.ptp(column) == 0:
            raise UserError(f"column {printable(name)} is {column[0]:g} for every training image: nothing to learn")
    return tuple(numbers.mean(axis=0).tolist()), tuple(numbers.std(axis=0).tolist())
