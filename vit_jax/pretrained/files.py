"""Reads and writes published weights on disk: a folder with config.json and the weights, or a single file of weights.

Threat model: that of `vit_jax.torch_file`; folders and all files in them are untrusted. Links may not leave the folder.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax.pretrained.json_files import CONFIG, check_is_inside, check_is_regular, load_json
from vit_jax.printable import printable
from vit_jax.state_dict import select
from vit_jax.torch_file import load_torch_file

WEIGHTS = "model.safetensors"

_INDEX = ".index.json"
_PREFERRED = (
    WEIGHTS,
    f"{WEIGHTS}{_INDEX}",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    f"pytorch_model.bin{_INDEX}",
    "open_clip_pytorch_model.bin",
)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
_NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")

# What wraps a whole network: torch.compile, data parallelism, Lightning, self-supervised trainers.
_WRAPPERS = ("_orig_mod.", "module.", "model.", "backbone.", "student.", "teacher.", "timm_model.")
_DEEPEST = 4  # most wrappers of a network, and most dicts around a state dict


def weights_name(source: str, names: Collection[str]) -> str:
    """Choose the file to load from the files of a folder or repository: safetensors first, then pickles, then .npz.

    Args:
        source: name of the folder in error messages.
        names: names of its files.

    Raises:
        ValueError: if none of the files has weights, or several have and none has a usual name.
    """
    for name in _PREFERRED:
        if name in names:
            return name
    for suffix in _SUFFIXES:
        found = sorted(name for name in names if name.endswith(suffix) and "/" not in name and name not in _NO_WEIGHTS)
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(printable(name, 60) for name in found[:5]) + (", ..." if found[5:] else "")
            raise ValueError(f"{source} has {len(found)} files of weights; choose one by its path or weights=: {some}")
    some = ", ".join(printable(name, 40) for name in sorted(names)[:8]) or "no files"
    raise ValueError(f"{source} has no weights in a known format ({', '.join(_SUFFIXES)}): it has {some}")


def is_index(name: str) -> bool:
    """Whether a file is the index of weights in several files."""
    return name.endswith(_INDEX)


def shard_names(index: str | os.PathLike) -> list[str]:
    """The files that an index lists, all of them plain names.

    Raises:
        ValueError: if the index is damaged, or has a name that is not one of a file beside it.
    """
    return sorted(set(_weight_map(Path(index)).values()))


def _weight_map(index: Path) -> dict[str, str]:
    shown = printable(index, 1000)
    listed = load_json(index).get("weight_map")
    if not listed:
        raise ValueError(f"{shown} has no weight_map: expected the index of weights in several files")
    suffix = Path(index.name.removesuffix(_INDEX)).suffix
    for key, name in listed.items():
        is_plain = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name, re.ASCII)
        if not is_plain or Path(name).suffix != suffix:
            raise ValueError(
                f"{shown} lists {printable(name)!r} for {printable(key)}: expected a {suffix} file beside it"
            )
    return listed


def load_weights(path: str | os.PathLike, weights: str | None = None, prefix: str = "") -> dict[str, np.ndarray]:
    """Read a state dict without running code: safetensors, PyTorch's .bin, .pth and .pt, and .npz.

    A dict that contains the only state dict of a checkpoint is opened ("model", "state_dict", ...), and a prefix that
    wraps all names is removed ("module.", "_orig_mod.", ...).

    Args:
        path: a folder, a file of weights, or an index ("model.safetensors.index.json") of several.
        weights: name of the file in the folder; default: see `weights_name`.
        prefix: take only names that begin with it, and remove it, as `vit_jax.convert.select` does ("teacher.").

    Returns:
        Read-only arrays by name. Those of safetensors are views of the file, which must not be changed meanwhile.

    Raises:
        ValueError: if there are no weights in a known format, or the file is damaged or contains several state dicts.
        OSError: if a file cannot be read.
    """
    path, place = Path(path), None
    if path.is_dir():
        place, path = path, path / (weights or weights_name(printable(path, 1000), os.listdir(path)))
    elif is_index(path.name):
        place = path.parent
    if place:
        check_is_inside(place, path)
    state = _sharded(path) if is_index(path.name) else _file(path)
    shown = printable(path, 1000)
    try:
        state = select(state, prefix) if prefix else state
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error
    return _unwrapped(shown, state)


def _file(path: Path) -> dict[str, Any]:
    return _npz(path) if path.suffix == ".npz" else load_torch_file(path)


def _sharded(index: Path) -> dict[str, np.ndarray]:
    places = _weight_map(index)
    state = {}
    for name in shard_names(index):
        shard = index.parent / name
        if not os.path.lexists(shard):
            raise ValueError(f"{printable(shard, 1000)} is missing, which {index.name} lists; download it again")
        check_is_inside(index.parent, shard)
        part = load_torch_file(shard)
        wanted = {key for key, place in places.items() if place == name}
        if absent := wanted - part.keys():
            raise ValueError(f"{printable(shard, 1000)} has no {printable(min(absent))!r}, which {index.name} lists")
        state |= {key: part[key] for key in wanted}
    return state


def _npz(path: Path) -> dict[str, np.ndarray]:
    shown = printable(path, 1000)
    check_is_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            claimed, actual = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if claimed > 10 * actual:  # compressed weights take more than half of their size
            raise ValueError(f"it has {actual} bytes but claims to hold {claimed}")
        with np.load(path, allow_pickle=False) as archive:
            state = {key: archive[key] for key in archive.files}
    except OSError:
        raise
    except Exception as error:  # damage can raise any error in zipfile and numpy
        reason = f"{type(error).__name__}: {printable(error, 200)}"
        raise ValueError(f"{shown}: is no NumPy archive, or a damaged one ({reason}); download it again") from error
    for key, array in state.items():
        if array.dtype == "V2":  # as numpy writes bfloat16
            array = state[key] = array.view(jnp.bfloat16)
        if not (array.dtype == jnp.bfloat16 or array.dtype.kind in "biufc"):
            raise ValueError(f"{shown}: holds {printable(key)} as {printable(array.dtype)}, expected numbers")
        array.flags.writeable = False
    return state


def _unwrapped(shown: str, state: Mapping) -> dict[str, np.ndarray]:
    """The arrays of the only state dict in a checkpoint, without the prefixes that all names have."""
    found = dict(_state_dicts(state, "", set()))
    if not found:
        raise ValueError(f"{shown} contains no weights: expected a dict of names to tensors")
    if len(found) > 1:
        some = " or ".join(repr(printable(place, 60)) for place in list(found)[:6])
        raise ValueError(f"{shown} contains {len(found)} state dicts; choose one by prefix={some}")
    (arrays,) = found.values()
    for _ in range(_DEEPEST):
        prefix = next((wrapper for wrapper in _WRAPPERS if all(key.startswith(wrapper) for key in arrays)), "")
        arrays = {key.removeprefix(prefix): value for key, value in arrays.items()}
    return arrays


def _state_dicts(state: Mapping, place: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, dict]]:
    """State dicts in nested dicts, by their place; their names have dots or slashes, other than that of a counter.

    Each dict is read once: dicts that share dicts can hold endless names.
    """
    seen.add(id(state))
    arrays = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, np.ndarray)}
    if any("." in key or "/" in key for key in arrays):
        yield place, arrays
    for key, value in state.items():
        if isinstance(key, str) and isinstance(value, Mapping) and id(value) not in seen and depth < _DEEPEST:
            yield from _state_dicts(value, f"{place}.{key}" if place else key, seen, depth + 1)


def save_folder(folder: str | os.PathLike, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> None:
    """Write config.json and model.safetensors as timm and transformers read them.

    Both are complete before either is in the folder. Other files of the folder are kept.

    Args:
        folder: created with its parents if it does not exist.
        config: content of config.json. For timm: "architecture", "num_classes" and "pretrained_cfg", a dict.
        state: arrays by name.

    Raises:
        ValueError: if the config is not JSON.
        OSError: if the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder = Path(folder)
    try:
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"config cannot be written as JSON: {printable(error, 200)}") from error
    is_new = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = (folder.parent if is_new else folder) / f".{secrets.token_hex(8)}.tmp"
    staged.mkdir()
    try:
        arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
        (staged / CONFIG).write_text(text, encoding="utf-8")
        save_file(arrays, staged / WEIGHTS, metadata={"format": "pt"})  # transformers reads only such files
        (staged / WEIGHTS).chmod((staged / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
        if is_new:
            staged.rename(folder)
        else:
            # Without a config, the folder is refused: weights never meet the config of others.
            with contextlib.suppress(FileNotFoundError):
                (folder / CONFIG).unlink()
            for name in (WEIGHTS, CONFIG):
                (staged / name).replace(folder / name)
    except SafetensorError as error:
        raise OSError(f"{printable(folder, 1000)}: {WEIGHTS} cannot be written: {printable(error, 200)}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
