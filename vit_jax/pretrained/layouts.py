"""How publishers' state dicts become the canonical form of `VisionTransformer`, and back, as data.

A layout is a tuple of operations on a state dict. `read` applies them in order, `write` undoes them in reverse order.
Keys are templates: "blocks.{i}.gamma_{n}" matches keys with anything but a dot in place of {i} and {n}. An operation
does nothing to keys that it does not find.

The canonical form has timm's names, in which layouts of the same network differ: queries, keys and values in one map,
the gate and value of SwiGLU in one map, positions of patches alone, frequencies of each block, LayerScale as `gamma`.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

State = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rename:
    """The key `source` is `canonical` here."""

    source: str
    canonical: str

    def read(self, state: State) -> State:
        return {_renamed(key, self.source, self.canonical): value for key, value in state.items()}

    def write(self, state: State) -> State:
        return {_renamed(key, self.canonical, self.source): value for key, value in state.items()}


@dataclasses.dataclass(frozen=True)
class Join:
    """The arrays `parts`, of equal size, are one array `whole` here, one after the other along the first axis."""

    parts: tuple[str, ...]
    whole: str

    def read(self, state: State) -> State:
        state = dict(state)
        for names in _matches(state, self.parts[0]):
            keys = [part.format(**names) for part in self.parts]
            if len({np.shape(state.get(key)) for key in keys}) == 1:
                state[self.whole.format(**names)] = np.concatenate([state.pop(key) for key in keys])
        return state

    def write(self, state: State) -> State:
        state = dict(state)
        for names in _matches(state, self.whole):
            pieces = np.split(state.pop(self.whole.format(**names)), len(self.parts))
            state |= {part.format(**names): piece for part, piece in zip(self.parts, pieces, strict=True)}
        return state


@dataclasses.dataclass(frozen=True)
class Unstack:
    """The array `source` holds, along `axis`, an array for each block, which is `canonical` here, with {i} counting."""

    source: str
    canonical: str
    axis: int = 0

    def read(self, state: State) -> State:
        state = dict(state)
        if self.source in state:
            arrays = np.moveaxis(state.pop(self.source), self.axis, 0)
            state |= {self.canonical.format(i=i): array for i, array in enumerate(arrays)}
        return state

    def write(self, state: State) -> State:
        numbers = sorted(int(names["i"]) for names in _matches(state, self.canonical))
        arrays = [state[self.canonical.format(i=i)] for i in numbers]
        if not arrays:
            return state
        state = {key: value for key, value in state.items() if _match(key, self.canonical) is None}
        return state | {self.source: np.stack(arrays, axis=self.axis)}


@dataclasses.dataclass(frozen=True)
class TrailingAxes:
    """The arrays `key` have `added` more axes of length 1 at their end here; with a negative number, fewer."""

    key: str
    added: int

    def read(self, state: State) -> State:
        return self._changed(state, self.added)

    def write(self, state: State) -> State:
        return self._changed(state, -self.added)

    def _changed(self, state: State, added: int) -> State:
        state = dict(state)
        for names in _matches(state, self.key):
            key = self.key.format(**names)
            shape = np.shape(state[key])
            if added > 0:
                state[key] = state[key].reshape(shape + (1,) * added)
            elif shape[added:] == (1,) * -added:  # otherwise `from_torch` reports that shapes differ
                state[key] = state[key].reshape(shape[:added])
        return state


@dataclasses.dataclass(frozen=True)
class UnpackHeads:
    """The array `whole` holds, for each head in turn, `widths[i]` rows of what is `parts[i]` here."""

    whole: str
    parts: tuple[str, ...]
    widths: tuple[int, ...]

    def read(self, state: State) -> State:
        state = dict(state)
        for names in _matches(state, self.whole):
            array = state[self.whole.format(**names)]
            if array.ndim == 0:  # the counter of a batch norm
                pieces = [array] * len(self.parts)
            elif len(array) % sum(self.widths):
                continue  # `from_torch` reports that keys differ
            else:
                heads = array.reshape(-1, sum(self.widths), *array.shape[1:])
                pieces = np.split(heads, np.cumsum(self.widths)[:-1], axis=1)
                pieces = [piece.reshape(-1, *array.shape[1:]) for piece in pieces]
            del state[self.whole.format(**names)]
            state |= {part.format(**names): piece for part, piece in zip(self.parts, pieces, strict=True)}
        return state

    def write(self, state: State) -> State:
        state = dict(state)
        for names in _matches(state, self.parts[0]):
            pieces = [state.pop(part.format(**names)) for part in self.parts]
            if pieces[0].ndim:
                shape = pieces[0].shape[1:]
                heads = [piece.reshape(-1, rows, *shape) for piece, rows in zip(pieces, self.widths, strict=True)]
                pieces = [np.concatenate(heads, axis=1).reshape(-1, *shape)]
            state[self.whole.format(**names)] = pieces[0]
        return state


@dataclasses.dataclass(frozen=True)
class Biases:
    """The table `key`, (heads, distances), is (distances, heads) here and multiplied by `factor` in the network."""

    key: str
    factor: float

    def read(self, state: State) -> State:
        return state | {key: (state[key] / self.factor).T for key in self._keys(state)}

    def write(self, state: State) -> State:
        return state | {key: (state[key] * self.factor).T for key in self._keys(state)}

    def _keys(self, state: State) -> list[str]:
        return [self.key.format(**names) for names in _matches(state, self.key)]


@dataclasses.dataclass(frozen=True)
class PrefixPositions:
    """The table `positions` begins with positions of the first `tokens`. Here they are added to these tokens.

    `write` adds zeros to the table instead, since it cannot know which part of a token was its position.
    """

    positions: str
    tokens: tuple[str, ...]

    def read(self, state: State) -> State:
        tokens = [token for token in self.tokens if token in state]
        arrays = [state[key] for key in (self.positions, *tokens) if key in state]
        if self.positions not in state or any(array.ndim != 3 for array in arrays):
            return state
        table, read = state[self.positions], dict(state)
        for token in tokens:
            rows, table = np.split(table, [state[token].shape[1]], axis=1)
            if rows.shape != state[token].shape:
                return state  # `from_torch` reports that shapes differ
            read[token] = state[token] + rows
        return read | {self.positions: table}

    def write(self, state: State) -> State:
        if self.positions not in state:
            return state
        table = state[self.positions]
        zeros = [np.zeros_like(state[token]) for token in self.tokens if token in state]
        return state | {self.positions: np.concatenate([*zeros, table], axis=1)}


Operation = Rename | Join | Unstack | TrailingAxes | UnpackHeads | Biases | PrefixPositions


@dataclasses.dataclass(frozen=True)
class Layout:
    """Operations from a publisher's state dict to the canonical form."""

    operations: tuple[Operation, ...]

    def read(self, state: Mapping[str, np.ndarray]) -> State:
        """Bring a publisher's state dict to the canonical form."""
        state = dict(state)
        for operation in self.operations:
            state = operation.read(state)
        return state

    def write(self, state: Mapping[str, np.ndarray]) -> State:
        """Bring a state dict in canonical form to that of the publisher."""
        state = dict(state)
        for operation in reversed(self.operations):
            state = operation.write(state)
        return state


_ATTENTION = "blocks.{i}.attn"
_QKV = tuple(f"{_ATTENTION}.{name}_proj" for name in "qkv")
TIMM = {
    "prefix_positions": (PrefixPositions("pos_embed", ("cls_token", "dist_token", "reg_token")),),
    "gamma": (Rename("blocks.{i}.gamma_{n}", "blocks.{i}.ls{n}.gamma"),),
    "split_qkv": (
        Join(tuple(f"{key}.weight" for key in _QKV), f"{_ATTENTION}.qkv.weight"),
        Join(tuple(f"{key}.bias" for key in _QKV), f"{_ATTENTION}.qkv.bias"),
        Rename(f"{_ATTENTION}.q_proj.bias", f"{_ATTENTION}.q_bias"),  # where keys have no bias
        Rename(f"{_ATTENTION}.v_proj.bias", f"{_ATTENTION}.v_bias"),
    ),
    "split_swiglu": (Join(("blocks.{i}.mlp.fc1_g.{p}", "blocks.{i}.mlp.fc1_x.{p}"), "blocks.{i}.mlp.fc1.{p}"),),
    "mixed_rotary": (Unstack("rope.freqs", f"{_ATTENTION}.freqs", axis=1),),
}


def timm_layout(parts: tuple[str, ...]) -> Layout:
    """The layout of a file of timm's that differs from the canonical form in these `parts`, keys of `TIMM`."""
    return Layout(tuple(operation for part in parts for operation in TIMM[part]))


def _match(key: str, template: str) -> dict[str, str] | None:
    """The parts of `key` in place of the names of `template`, or None if it does not match."""
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", re.escape(template))
    match = re.fullmatch(pattern, key)
    return match and match.groupdict()


def _matches(state: State, template: str) -> list[dict[str, str]]:
    return [names for key in state if (names := _match(key, template)) is not None]


def _renamed(key: str, old: str, new: str) -> str:
    names = _match(key, old)
    return key if names is None else new.format(**names)
