r"""Loads weights of torch models, and exports weights for torch models.

This file knows no model. The path of a Flax leaf says where torch keeps its tensor, and the model's class lists the
exceptions, as pairs of a pattern of the Flax path and the torch key:

    class Model(nn.Module):
        ...
        torch_rules = ((r"attn_(\d+)/to_out", r"layers.\1.0.to_out.0"), ...)

If the keys depend on the model's arguments, `torch_rules` is a method that returns such pairs.

A pattern matches whole segments of a path. Rules are tried in order; no rule sees what an earlier one has replaced.
Whatever no rule replaces keeps its name: "/" becomes ".", and a last `kernel`, `scale` or `embedding` becomes `weight`.
The rules serve both directions, because every Flax leaf asks for exactly one torch key.

Only kernels have another layout, the same for Dense, Conv (of any rank, grouped or not) and
ConvTranspose(transpose_kernel=True): torch's first two axes come last in Flax, swapped.

A class may have four more attributes. The first two are pairs too, or methods that return them:

    torch_former_keys   pairs (pattern of a key in older files, torch key of today)
    torch_aliases       pairs (pattern of a torch key, second key under which upstream stores the same tensor)
    torch_constants     a method without arguments: torch key to the value of a buffer that the model computes itself
    torch_layout        an object for files whose tensors are not one for each leaf: its method `read` turns the state
                        dict of a file into one with a tensor for each leaf, and `write` does the inverse

Classes inherit and override all of them as any other attribute. A module that is an argument of the model
(`transformer=`, or one of a tuple) goes by those of its own class.
"""

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.printable import printable
from vit_jax.state_dict import check_names, list_mismatches, named_state_dict, select

__all__ = ("from_torch", "select", "to_torch", "torch_key")

_ARRAYS = np.ndarray | jax.Array | jax.ShapeDtypeStruct
_TORCH_LEAF = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "embedding"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

# Kinds of mismatches. An error message lists them in alphabetical order.
_EMPTY = "Flax leaves that are left empty"
_MISFIT = "Flax leaves that cannot take their torch key"
_MISSING = "torch keys that are missing"
_DIFFERENT = "torch keys that differ from what they derive from"
_LEFT_OVER = "torch keys that are left over"


def from_torch(model: nn.Module, state_dict: Mapping[str, Any] | str | os.PathLike, *inputs, **kwargs) -> dict:
    """Convert a torch state dict to Flax variables for `model`.

    Values are cast to the dtype of the Flax leaf that they fill.

    Args:
        model: the Flax counterpart of the torch model.
        state_dict: mapping of torch keys to numpy arrays or tensors, or the path of a .pth, .pt or .safetensors file,
            which is read without torch and without executing its pickle.
        *inputs (Any): inputs of the model's call. Of arrays only shape and dtype matter; other values (flags, numbers,
            strings, None), also inside lists, tuples and dicts, are passed on unchanged.
        **kwargs (Any): keyword arguments of the model's call, treated as `inputs` are.

    Raises:
        ValueError: if a file cannot be read; if the weights are nested in a checkpoint, so that `select` is needed
            first; or unless every torch key fills exactly one Flax leaf of the same shape and no leaf is left empty.
            The message lists the mismatches of both sides.
    """
    source, state_dict = named_state_dict(state_dict)
    targets = flatten_dict(_abstract_variables(model, inputs, kwargs))
    keys = {path: torch_key(model, path) for path in targets}
    check_names(source, state_dict, type(model).__name__, set(keys.values()))
    state = {_current_key(model, key): _to_numpy(source, key, value) for key, value in state_dict.items()}
    if hasattr(model, "torch_layout"):
        state = model.torch_layout.read(state)

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
    """Convert Flax variables to the state dict that upstream's `load_state_dict(strict=True)` takes.

    This is the inverse of `from_torch`.

    Args:
        model: the model that the variables belong to.
        variables: its `params`, and its `batch_stats` if it has any. Other collections are ignored.

    Returns:
        Numpy arrays by torch key.
    """
    flat = flatten_dict({name: variables[name] for name in ("params", "batch_stats") if name in variables})
    keys = {path: torch_key(model, path) for path in flat}
    state = {keys[path]: np.array(_to_torch_layout(path, np.asarray(value)), order="C") for path, value in flat.items()}
    state |= {key: np.zeros((), np.int64) for key in _counters(keys)}
    for key, origin in _derived(model, keys.values()).items():
        state[key] = np.array(state[origin] if isinstance(origin, str) else origin)
    return model.torch_layout.write(state) if hasattr(model, "torch_layout") else state


def _abstract_variables(model: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> dict:
    """Shapes and dtypes of the variables that `model.init` creates for these inputs. Only arrays are traced."""
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


def torch_key(model: nn.Module, path: tuple[str, ...]) -> str:
    """Return the torch key of the Flax leaf at `path`, whose first part is the collection.

    For a model with a `torch_layout` it is the key in the state dict that `torch_layout.read` returns.
    """
    collection, first, *rest = path
    if rest and isinstance(inner := _submodules(model).get(first), nn.Module):
        return f"{_renamed(model, first)}.{torch_key(inner, (collection, *rest))}"
    *stem, leaf = _renamed(model, "/".join(path[1:])).split("/")
    return ".".join([*stem, _TORCH_LEAF.get((collection, leaf), leaf)])


def _renamed(model: nn.Module, name: str) -> str:
    """Apply the rules of `model` to the path `name`."""
    for pattern, key in _table(model, "torch_rules"):
        name = re.sub(rf"(?:^|(?<=/)){pattern}(?=/|$)", key, name)
    return name


def _current_key(model: nn.Module, key: str) -> str:
    """The current torch key for a `key` that may come from an older file."""
    for pattern, current in _table(model, "torch_former_keys"):
        key = re.sub(f"^{pattern}$", current, key)
    return key


def _counters(keys: Mapping[tuple[str, ...], str]) -> set[str]:
    """Keys of torch's batch counters, one for each running mean. Torch reads them only if momentum is None."""
    return {
        key.removesuffix("running_mean") + "num_batches_tracked"
        for path, key in keys.items()
        if path[0] == "batch_stats" and key.endswith("running_mean")
    }


def _derived(model: nn.Module, keys: Collection[str]) -> dict[str, str | np.ndarray]:
    """Torch keys without a Flax leaf of their own. Each is mapped to the key that it copies, or to its value."""
    derived = {
        re.sub(pattern, alias, key): key
        for pattern, alias in _table(model, "torch_aliases")
        for key in keys
        if re.fullmatch(pattern, key)
    }
    if hasattr(model, "torch_constants"):
        derived |= model.torch_constants()
    for path, inner in _submodules(model).items():
        name = _renamed(model, path)
        own = [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")]
        for key, origin in _derived(inner, own).items():
            derived[f"{name}.{key}"] = f"{name}.{origin}" if isinstance(origin, str) else origin
    return derived


def _submodules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules passed to the constructor of `model`, by argument name; those of a tuple are "argument_0" and so on."""
    modules = {name: value for name, value in vars(model).items() if isinstance(value, nn.Module) and name != "parent"}
    for name, value in vars(model).items():
        if isinstance(value, tuple):
            modules |= {f"{name}_{i}": module for i, module in enumerate(value) if isinstance(module, nn.Module)}
    return modules


def _table(model: nn.Module, name: str) -> tuple[tuple[str, str], ...]:
    """The pairs that the class of `model` has as `name`, or that its method `name` returns."""
    table = getattr(model, name, ())
    return table() if callable(table) else table


def _to_numpy(source: str, key: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor; it has no numpy() for bfloat16, which float32 holds exactly
        value = value.detach().cpu()
        value = value.float().numpy().astype(jnp.bfloat16) if str(value.dtype) == "torch.bfloat16" else value
    if not hasattr(value, "__array__"):
        raise ValueError(f"{source}: {printable(key)!r} holds a {type(value).__name__}, expected a tensor")
    return np.asarray(value)


def _agree(value: np.ndarray, expected: np.ndarray) -> bool:
    """Whether both are equal up to rounding, of float32 arithmetic or of the dtype in which `value` is stored."""
    stored = float(jnp.finfo(value.dtype).eps) if jnp.issubdtype(value.dtype, jnp.floating) else 0.0
    as_float = lambda array: np.asarray(array).astype(np.float64)
    return value.shape == expected.shape and np.allclose(
        as_float(value), as_float(expected), rtol=max(1e-5, stored), atol=1e-6
    )
