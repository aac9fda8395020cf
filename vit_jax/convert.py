r"""Weights of torch models in, weights for torch models out.

The engine knows no model. A Flax leaf's path says where torch keeps it, and a model's file lists the exceptions:

    TORCH_RULES = ((r"attn_(\d+)/to_out", r"layers.\1.0.to_out.0"), ...)     # (Flax path pattern, torch key)

or, where keys depend on the arguments, `torch_rules(model)` returns such a table.

A rule replaces a run of whole path segments; rules are tried in order, and what one has replaced no other sees.
The rest keeps its name: "/" becomes ".", and a last `kernel`, `scale` or `embedding` becomes `weight`. Read in this
one direction the table serves both ways, because every Flax leaf asks for exactly one torch key.

Only kernels are laid out differently, and all in one way, be they of Dense, Conv (grouped or not, of any rank) or
ConvTranspose(transpose_kernel=True): torch's first two axes come last in Flax, and swapped.

Three more names are read from a model's file, where upstream has such tensors, or had other keys:

    TORCH_FORMER_KEYS = ((r"(.*)\.norm\.1\.(\w+)", r"\1.norm1.\2"), ...)   # (pattern of an older file's key, torch key)
    TORCH_ALIASES = ((r"encoder\.(\w+)", r"decoder.\1"), ...)   # (torch key pattern, second key) of tied tensors
    def torch_constants(model) -> dict[str, np.ndarray]: ...    # buffers that the model computes for itself

Each of these names is looked for in the file of the model's class, then in those of its bases.
A submodule that the user passed in (`transformer=`, or one of a tuple) is named by the tables of its own file.
"""

import os
import re
import sys
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.printable import printable
from vit_jax.state_dict import check_names, list_mismatches, named_state_dict, select

__all__ = ("from_torch", "select", "to_torch")

_ARRAYS = np.ndarray | jax.Array | jax.ShapeDtypeStruct
_TORCH_LEAF = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "embedding"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

# Kinds of mismatches, in the order in which an error lists them.
_EMPTY = "Flax leaves that are left empty"
_MISFIT = "Flax leaves that cannot take their torch key"
_MISSING = "torch keys that are missing"
_DIFFERENT = "torch keys that differ from what they derive from"
_LEFT_OVER = "torch keys that are left over"


def from_torch(model: nn.Module, state_dict: Mapping[str, Any] | str | os.PathLike, *inputs, **kwargs) -> dict:
    """Flax variables for `model` with the weights of its torch twin.

    `state_dict` maps torch's keys to numpy arrays or tensors, or is the path of a .pth, .pt or .safetensors file,
    which is read without torch and without running its pickle. `inputs` and `kwargs` are what the model's call takes:
    of arrays only shape and dtype matter, everything else (flags, numbers, strings, None) is passed on as it is, on its
    own or inside lists, tuples and dicts. Values take the dtype of the Flax leaf that they fill.

    Raises ValueError for a file that cannot be read, where `select` must first pick the weights out of a checkpoint,
    and, listing both sides, unless every torch key is used exactly once and every Flax leaf is filled exactly once with
    its own shape.
    """
    source, state_dict = named_state_dict(state_dict)
    targets = flatten_dict(_abstract_variables(model, inputs, kwargs))
    keys = {path: _torch_key(model, path) for path in targets}
    check_names(source, state_dict, type(model).__name__, set(keys.values()))
    state = {_current_key(model, key): _to_numpy(source, key, value) for key, value in state_dict.items()}

    variables, problems = {}, []
    for path, target in targets.items():
        key, leaf = keys[path], f"Flax leaf {'/'.join(path)} {target.shape}"
        if key not in state:
            problems.append((_EMPTY, f"{leaf} is left empty: there is no torch key {key}"))
            continue
        value = _from_torch_layout(path, state[key])
        if value.shape != target.shape:
            problems.append((_MISFIT, f"{leaf} cannot take torch key {key} {printable(state[key].shape)}"))
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            problems.append((_MISFIT, f"{leaf} cannot take torch key {key} of type {printable(value.dtype)}"))
        else:
            # A copy, as torch may change its tensor later. jnp.array would compile a program for every shape.
            variables[path] = jax.device_put(np.array(value, target.dtype))

    counters, derived = _counters(keys), _derived(model, keys.values())
    for key in state.keys() - set(keys.values()) - counters - derived.keys():
        problems.append((_LEFT_OVER, f"torch key {printable(key)} {printable(state[key].shape)} is left over"))
    for key, origin in derived.items():
        value = state.get(origin) if isinstance(origin, str) else origin
        if key not in state:
            problems.append((_MISSING, f"there is no torch key {key}, which upstream stores beside its parameters"))
        elif value is not None and not _agree(state[key], value):
            differs = origin if isinstance(origin, str) else "its formula"
            problems.append((_DIFFERENT, f"torch key {key} differs from {differs}"))
    if problems:
        raise ValueError(list_mismatches(source, type(model).__name__, problems))
    return unflatten_dict(variables)


def to_torch(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict, as numpy arrays, that upstream's `load_state_dict(strict=True)` takes: `from_torch` undone.

    `variables` are those of `model`: `params`, and `batch_stats` where it has them.
    """
    flat = flatten_dict({name: variables[name] for name in ("params", "batch_stats") if name in variables})
    keys = {path: _torch_key(model, path) for path in flat}
    state = {keys[path]: np.array(_to_torch_layout(path, np.asarray(value)), order="C") for path, value in flat.items()}
    state |= {key: np.zeros((), np.int64) for key in _counters(keys)}
    for key, origin in _derived(model, keys.values()).items():
        state[key] = np.array(state[origin] if isinstance(origin, str) else origin)
    return state


def _abstract_variables(model: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> dict:
    """Shapes and dtypes of what `model.init` makes for these inputs. Arrays are traced, nothing else is."""
    leaves, structure = jax.tree.flatten((inputs, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)}

    def init(key: jax.Array, arrays: dict[int, Any]) -> dict:
        args, keywords = structure.unflatten([arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        return model.init(key, *args, **keywords)

    return jax.eval_shape(init, jax.random.key(0), arrays)


def _from_torch_layout(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (0, 1), (-1, -2)) if path[-1] == "kernel" and value.ndim > 1 else value


def _to_torch_layout(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (-1, -2), (0, 1)) if path[-1] == "kernel" else value


def _torch_key(model: nn.Module, path: tuple[str, ...]) -> str:
    """Torch's key for the Flax leaf at `path`, which begins with the collection."""
    collection, first, *rest = path
    if rest and isinstance(inner := _submodules(model).get(first), nn.Module):
        return f"{_renamed(model, first)}.{_torch_key(inner, (collection, *rest))}"
    *stem, leaf = _renamed(model, "/".join(path[1:])).split("/")
    return ".".join([*stem, _TORCH_LEAF.get((collection, leaf), leaf)])


def _renamed(model: nn.Module, name: str) -> str:
    """The path `name` after the rules of `model`."""
    for pattern, key in _rules(model):
        name = re.sub(rf"(?:^|(?<=/)){pattern}(?=/|$)", key, name)
    return name


def _current_key(model: nn.Module, key: str) -> str:
    """Torch's key of today for one of a file that may be older."""
    for pattern, current in _named(model, "TORCH_FORMER_KEYS"):
        key = re.sub(f"^{pattern}$", current, key)
    return key


def _counters(keys: Mapping[tuple[str, ...], str]) -> set[str]:
    """Torch's batch counters, one beside each running mean. Nothing reads them unless momentum is None."""
    return {
        key.removesuffix("running_mean") + "num_batches_tracked"
        for path, key in keys.items()
        if path[0] == "batch_stats" and key.endswith("running_mean")
    }


def _derived(model: nn.Module, keys: Collection[str]) -> dict[str, str | np.ndarray]:
    """Torch keys that no leaf asks for: the key that each is a copy of, or its value."""
    derived = {
        re.sub(pattern, alias, key): key
        for pattern, alias in _named(model, "TORCH_ALIASES")
        for key in keys
        if re.fullmatch(pattern, key)
    }
    if constants := _named(model, "torch_constants", None):
        derived |= constants(model)
    for path, inner in _submodules(model).items():
        name = _renamed(model, path)
        own = [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")]
        for key, origin in _derived(inner, own).items():
            derived[f"{name}.{key}"] = f"{name}.{origin}" if isinstance(origin, str) else origin
    return derived


def _submodules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that were passed to the constructor of `model`, by argument; of several, "argument_0" is the first."""
    modules = {name: value for name, value in vars(model).items() if isinstance(value, nn.Module) and name != "parent"}
    for name, value in vars(model).items():
        if isinstance(value, tuple):
            modules |= {f"{name}_{i}": module for i, module in enumerate(value) if isinstance(module, nn.Module)}
    return modules


def _rules(model: nn.Module) -> tuple[tuple[str, str], ...]:
    file = next((file for file in _files(model) if {"TORCH_RULES", "torch_rules"} & vars(file).keys()), None)
    return file.torch_rules(model) if hasattr(file, "torch_rules") else getattr(file, "TORCH_RULES", ())


def _named(model: nn.Module, name: str, default: Any = ()) -> Any:
    """The value of `name` in the nearest module that defines it, by the class of `model` and its bases."""
    return next((vars(file)[name] for file in _files(model) if name in vars(file)), default)


def _files(model: nn.Module) -> list[ModuleType]:
    """The files in which the class of `model` and its bases stand."""
    return [sys.modules[base.__module__] for base in type(model).__mro__]


def _to_numpy(source: str, key: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor; it has no numpy() for bfloat16, which float32 holds exactly
        value = value.detach().cpu()
        value = value.float().numpy().astype(jnp.bfloat16) if str(value.dtype) == "torch.bfloat16" else value
    if not hasattr(value, "__array__"):
        raise ValueError(f"{source}: {printable(key)!r} holds a {type(value).__name__}, expected a tensor")
    return np.asarray(value)


def _agree(value: np.ndarray, expected: np.ndarray) -> bool:
    """Whether both are equal but for rounding: that of float32 arithmetic, or of the type that `value` is stored in."""
    stored = float(jnp.finfo(value.dtype).eps) if jnp.issubdtype(value.dtype, jnp.floating) else 0.0
    as_float = lambda array: np.asarray(array).astype(np.float64)
    return value.shape == expected.shape and np.allclose(
        as_float(value), as_float(expected), rtol=max(1e-5, stored), atol=1e-6
    )
