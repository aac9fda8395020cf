"""Read the arrays of an .npz file, or of a folder of .npy files, without pickles and without trusting their headers."""

import functools
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.progress

from train.errors import UserError, one_line_errors
from train.memory import host_memory, in_words
from vit_jax.images.npy import read_header

CHUNK = 2**26  # bytes to read at once


class Stored(NamedTuple):
    """An array in a file, of which only the header has been read."""

    path: str
    member: str | None  # of an .npz file
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    offset: int

    @property
    def name(self) -> str:
        return f"{self.member.removesuffix('.npy')} of {self.path}" if self.member else self.path


def stored_arrays(root: Path) -> dict[str, Stored]:
    """The arrays of a file or folder by name. Raises UserError if one is damaged, or has Python objects."""
    with one_line_errors(f"{root} cannot be read"):
        if root.is_dir():
            files = sorted(file for file in root.iterdir() if file.suffix == ".npy" and not file.name.startswith("."))
            return {file.stem: _header_of_file(file) for file in files}
        _check_regular(root)
        with zipfile.ZipFile(root) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename.removesuffix(".npy"): _header_of_member(archive, info, root) for info in members}


def _header_of_file(path: Path) -> Stored:
    with one_line_errors(f"{path} cannot be read"):
        _check_regular(path)
        with path.open("rb") as file:
            header, offset = read_header(file), file.tell()
        stored = Stored(str(path), None, *header, offset)
        _check_length(stored, path.stat().st_size)
        return stored


def _header_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, root: Path) -> Stored:
    with one_line_errors(f"{info.filename.removesuffix('.npy')} of {root} cannot be read"):
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("its compression is not that of numpy")
        with archive.open(info) as file:
            header, offset = read_header(file), file.tell()
        stored = Stored(str(root), info.filename, *header, offset)
        _check_length(stored, info.file_size)
        return stored


def _check_regular(path: Path) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")


def _check_length(stored: Stored, size: int) -> None:
    if stored.dtype.hasobject:
        raise ValueError("its elements are Python objects, which are not read: expected numbers or text")
    needed = math.prod(stored.shape) * stored.dtype.itemsize
    if needed > size - stored.offset:
        raise ValueError(f"it is truncated: {size - stored.offset:,} of {needed:,} bytes")


@functools.lru_cache(maxsize=8)  # in each process that reads images
def mapped(stored: Stored) -> np.ndarray:
    """The array of a .npy file, read on access."""
    order = "F" if stored.by_columns else "C"
    return np.memmap(stored.path, stored.dtype, "r", stored.offset, stored.shape, order)


def loaded(stored: Stored) -> np.ndarray:
    """The whole array in memory."""
    with one_line_errors(f"{stored.name} cannot be read"):
        if not stored.member:
            return np.array(mapped(stored)) if math.prod(stored.shape) else np.zeros(stored.shape, stored.dtype)
        size = math.prod(stored.shape) * stored.dtype.itemsize
        if size > host_memory():
            raise UserError(f"{stored.name} needs {in_words(size)} of memory: store it as .npy in a folder")
        with zipfile.ZipFile(stored.path) as archive, archive.open(stored.member) as file:
            file.read(stored.offset)
            chunks = [min(CHUNK, size - start) for start in range(0, size, CHUNK)]
            shown = rich.progress.track(chunks, f"Reading {stored.name}", disable=len(chunks) < 4)
            content = b"".join(file.read(chunk) for chunk in shown)
        order = "F" if stored.by_columns else "C"
        return np.frombuffer(content, stored.dtype).reshape(stored.shape, order=order)
