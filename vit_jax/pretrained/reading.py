"""Further operations on state dicts, which publishers' files need and which are only read; see `layouts.py`."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np

from vit_jax.pretrained.layouts import TIMM, Join, Operation, PrefixPositions, Rename, State


@dataclasses.dataclass(frozen=True)
class Drop:
    """Keys that match the regular expression `pattern` belong to another network, or hold constants."""

    pattern: str

    def read(self, state: State) -> State:
        return {key: value for key, value in state.items() if not re.fullmatch(self.pattern, key)}


@dataclasses.dataclass(frozen=True)
class Undo:
    """`operation` in the other direction."""

    operation: Operation

    def read(self, state: State) -> State:
        return self.operation.write(state)


@dataclasses.dataclass(frozen=True)
class AddAxes:
    """The array `key` has `ndim` axes here, new ones first."""

    key: str
    ndim: int

    def read(self, state: State) -> State:
        if self.key not in state:
            return state
        value = state[self.key]
        return state | {self.key: value.reshape((1,) * (self.ndim - value.ndim) + value.shape)}


@dataclasses.dataclass(frozen=True)
class Projection:
    """The matrix `source` is the head here, whose bias is zero. `transposed`: its axes are (input, output)."""

    source: str
    transposed: bool = False

    def read(self, state: State) -> State:
        if self.source not in state:
            return state
        state = dict(state)
        matrix = state.pop(self.source)
        matrix = matrix.T if self.transposed else matrix
        return state | {"head.weight": matrix, "head.bias": np.zeros(len(matrix), matrix.dtype)}


@dataclasses.dataclass(frozen=True)
class FlatPatches:
    """The matrix `key` embeds square patches of three channels that are flattened as (height, width, channels)."""

    key: str

    def read(self, state: State) -> State:
        if self.key not in state or state[self.key].ndim != 2:
            return state
        matrix = state[self.key]
        side = math.isqrt(matrix.shape[1] // 3)
        return state | {self.key: matrix.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)}


@dataclasses.dataclass(frozen=True)
class FromFlax:
    """Names and axes are Flax's. An attention's queries, keys, values and `out` have an axis for its heads."""

    def read(self, state: State) -> State:
        return dict(_from_flax(key, value) for key, value in state.items())


def _from_flax(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    *path, leaf = key.split("/")
    if value.dtype == "V2":  # numpy's files know no bfloat16
        value = value.view(jnp.bfloat16)
    if path and path[-1] == "out" and value.ndim == 3:
        value = value.reshape(-1, value.shape[-1])
    elif path and path[-1] in ("query", "key", "value"):
        value = value.reshape(*value.shape[:-2], -1)
    if leaf == "kernel":
        value = np.moveaxis(value, (-1, -2), (0, 1))
    return ".".join([*path, {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)]), value


Reader = Operation | Drop | Undo | AddAxes | Projection | FlatPatches | FromFlax


@dataclasses.dataclass(frozen=True)
class Published:
    """A publisher's layout.

    Args:
        signs: keys that each of its files has.
        operations: what brings it to the canonical form.
        prefixes: beginnings of the keys in its files. What has no prefix in a file with one is another network.
        beside: keys without the prefix that belong to the network nevertheless.
        needs: those of them that each file has.
        foreign: keys, with or without the prefix, that only files of other layouts have.
        as_timm: whether the rest is as in timm's file of the same network.
    """

    signs: tuple[str, ...]
    operations: tuple[Reader, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    beside: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    as_timm: bool = False

    def prefix_in(self, keys: Collection[str]) -> str | None:
        """The prefix of a file with these `keys`, or None if it has another layout."""
        for prefix in self.prefixes:
            if all(prefix + key in keys for key in self.signs) and all(key in keys for key in self.needs):
                foreign = any(prefix + key in keys or key in keys for key in self.foreign)
                return None if foreign else prefix
        return None

    def below_prefix(self, state: Mapping[str, np.ndarray]) -> State:
        """The part of `state` that belongs to the network, without the prefix."""
        prefix = self.prefix_in(state)
        if not prefix:
            return dict(state)
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return inside | {key: state[key] for key in self.beside if key in state}


def rename(*pairs: tuple[str, str]) -> tuple[Rename, ...]:
    """Operations that rename the keys of `pairs` (source, canonical)."""
    return tuple(Rename(source, canonical) for source, canonical in pairs)


def join(parts: tuple[str, ...], whole: str) -> tuple[Join, ...]:
    """Operations that make one linear layer `whole` of `parts`, weights and biases."""
    return tuple(Join(tuple(f"{part}.{p}" for part in parts), f"{whole}.{p}") for p in ("weight", "bias"))


POOL = ("attn_pool.q", "attn_pool.k", "attn_pool.v")
POOL_KEYS_AND_VALUES = join(POOL[1:], "attn_pool.kv")
CLASS_POSITION = PrefixPositions("pos_embed", ("cls_token",))
(POSITIONS,) = TIMM["prefix_positions"]  # of class token, distillation token and registers
