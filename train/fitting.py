"""Fit loaded variables into a model: keep those of equal shape, resample positions, and leave out the others."""

import math
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import numpy as np

from vit_jax.pretrained.positions import resample_positions

Path = tuple[str, ...]  # of a variable, such as ("params", "transformer", "attn_0", "to_out", "kernel")
Grid = tuple[int, int]  # rows and columns of patches

POSITIONS = "pos_embedding"  # the parameter with learned positions of patches in most models
# Names of the parameters that `load_pretrained` resamples to another image size.
RESAMPLED_LEAVES = (POSITIONS, "pos_embed", "relative_position_bias_table")
LISTED = 20  # misfits in an error message


class Fitted(NamedTuple):
    """Variables that fit into a model, and the paths of those that were resampled."""

    variables: dict[Path, Any]
    resampled: frozenset[Path]


def fit(
    loaded: Mapping[Path, Any], wanted: Mapping[Path, Any], *, head: Set[Path], old: Grid | None, new: Grid | None
) -> Fitted:
    """Fit `loaded` variables into those that a model has.

    Args:
        loaded: Arrays by path.
        wanted: The variables of the model, which may be abstract.
        head: Paths of the head, which may differ in shape and is then left out.
        old: The grid of patches that the loaded positions are for; None: a square.
        new: The grid of the model; None: positions are not resampled.

    Raises:
        ValueError: If other variables differ in shape; the message lists them.
    """
    variables, resampled, misfits = {}, set(), []
    for path, value in loaded.items():
        if path not in wanted:
            continue
        shape = wanted[path].shape
        is_other_grid = path[-1] == POSITIONS and (value.shape != shape or (None not in (old, new) and old != new))
        if is_other_grid and (positions := _resampled(value, shape, old, new)) is not None:
            variables[path] = positions
            resampled.add(path)
        elif value.shape == shape:
            variables[path] = value
        elif path not in head:
            misfits.append(f"{'/'.join(path[1:])} is {value.shape} there and {shape} here")
    if misfits:
        more = [f"and {len(misfits) - LISTED} more"] if len(misfits) > LISTED else []
        raise ValueError("; ".join([*misfits[:LISTED], *more]))
    return Fitted(variables, frozenset(resampled))


def square(count: int) -> Grid | None:
    """The square grid of `count` patches, if there is one."""
    side = math.isqrt(max(0, count))
    return (side, side) if side and side**2 == count else None


def _resampled(value: Any, shape: tuple[int, ...], old: Grid | None, new: Grid | None) -> Any | None:
    """Positions (..., n, d) at another resolution; those before the patches, such as a class token's, stay.

    None if they cannot be resampled to `shape`.
    """
    if new is None or len(shape) < 2 or value.shape[-1] != shape[-1]:
        return None
    before = shape[-2] - math.prod(new)
    count = value.shape[-2] - before
    old = old if old is not None and math.prod(old) == count else square(count)
    if not 0 <= before < math.prod(new) or old is None:
        return None
    rows = np.asarray(value, np.float32).reshape(-1, shape[-1])
    patches = np.asarray(resample_positions(rows[None, before:], old, new))[0]
    return np.concatenate([rows[:before], patches]).reshape(shape)
