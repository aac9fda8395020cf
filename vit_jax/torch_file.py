"""Read weights files of PyTorch without torch: .safetensors, and .pth and .pt, both zip and older than torch 1.6.

Threat model: the file is untrusted. Reading it must not run code, access memory outside its tensors, change anything
that outlives the call, or take more time or memory than a fixed multiple of the file's size. `torch_pickle.py` reads
the pickle inside a .pth.

Source: the formats that torch.save writes. Since torch 1.6, a zip file with data.pkl (pickle protocol 2) and one entry
per storage. Before, a sequence of pickles, the first three of which are a header, then for each storage the number of
its elements and its bytes.
"""

import io
import json
import mmap
import os
import stat
import sys
import zipfile
from pathlib import Path

import numpy as np

from vit_jax.printable import printable
from vit_jax.torch_pickle import AGAIN, DTYPES, STORAGES, Refused, malformed, unpickle

_SAFETENSORS_DTYPES = {code: np.dtype(dtype) for _, _, code, dtype in DTYPES if code}

_BEFORE_TORCH_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number of such files
_UNPACK = "a compressed file; unpack it first"
_OTHERS = (  # magic bytes, their offset, what the file is and what to do about it
    (b"version https://git-lfs", 0, "a Git LFS pointer instead of the file itself; run git lfs pull"),
    (b"<", 0, "a web page (HTML or XML), such as a server's error message; download the file again"),
    (b"\x89HDF", 0, "an HDF5 file (.h5, as Keras writes it); save the weights in torch"),
    (b"\x93NUMPY", 0, "one NumPy array (.npy); from_torch takes a dict of arrays"),
    (b"GGUF", 0, "a GGUF file, whose weights are quantised; save the weights in torch"),
    (b"\x1f\x8b", 0, f"{_UNPACK} (gunzip)"),
    (b"BZh", 0, f"{_UNPACK} (bunzip2)"),
    (b"\xfd7zXZ", 0, f"{_UNPACK} (unxz)"),
    (b"\x28\xb5\x2f\xfd", 0, f"{_UNPACK} (unzstd)"),
    (b"7z\xbc\xaf", 0, f"{_UNPACK} (7z x)"),
    (b"ustar", 257, "a tar archive; unpack it first (tar xf)"),
    (b"\x80", 0, "a pickle that torch.save did not write; load it where it came from and save the weights in torch"),
    (b"{", 0, "JSON text, such as a configuration or the index of sharded weights; name the file with the weights"),
)
_OTHER_SUFFIXES = {  # of formats without magic bytes
    ".onnx": "an ONNX graph; save the weights in torch",
    ".pb": "a TensorFlow graph; save the weights in torch",
    ".tflite": "a TensorFlow Lite graph; save the weights in torch",
    ".index": "part of a TensorFlow checkpoint; save the weights in torch",
    ".msgpack": "Flax's msgpack; its variables need no conversion (flax.serialization.msgpack_restore)",
}


def load_torch_file(path: str | os.PathLike) -> dict:
    """Read a .pth, .pt or .safetensors file. The format is recognised by the content, not by the name.

    Returns:
        The saved dict, nested as it was saved, with a read-only numpy array for each tensor. Tensors that shared
            storage share memory; those of a .safetensors file are views of the file, which must not be overwritten
            meanwhile. An OrderedDict or a Counter becomes a dict, a dtype its name ("torch.float16").

    Raises:
        ValueError: if the file has another format, is damaged, or contains anything but tensors, numbers, strings and
            plain containers. The message is one line that names the path.
        OSError: if the file cannot be opened.
    """
    reason = _irregular(path)
    if reason is None:
        with open(path, "rb") as file:
            try:
                content = _read(file)
                if not isinstance(content, dict):
                    raise Refused(f"holds a {type(content).__name__}, expected a dict of tensors")
                return content
            except Refused as error:
                reason = str(error)
            except Exception as error:  # damage can raise any error in zipfile, pickletools, numpy or safetensors
                reason = f"is damaged or incomplete ({type(error).__name__}: {printable(error, 200)}); {AGAIN}"
    raise ValueError(f"{printable(os.fspath(path), 1000)}: {reason}")


def _irregular(path: str | os.PathLike) -> str | None:
    """The reason not to open `path`, or None for a regular file. Reading a pipe, for example, may never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return None
    kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
    return f"is {kind}, expected a .pth, .pt or .safetensors file"


def _read(file):
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if head.startswith(_BEFORE_TORCH_1_6):
        return _read_legacy(file)
    suffix = Path(file.name).suffix.lower()
    other = _other(head, suffix)
    if head[8:9] == b"{" or (suffix == ".safetensors" and other is None):  # 8 bytes of length, then JSON
        return _read_safetensors(file)
    hint = "; was it cut short?" if other is None else f": it is {other}"
    raise Refused(f"is neither a file from torch.save nor a safetensors file{hint}")


def _other(head: bytes, suffix: str) -> str | None:
    """Description of a file of another format, recognised by its first bytes or its suffix, or None."""
    if not head:
        return f"empty; {AGAIN}"
    if suffix in _OTHER_SUFFIXES:
        return _OTHER_SUFFIXES[suffix]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((words for magic, at, words in _OTHERS if magic in (head[at:][: len(magic)], text[: len(magic)])), None)


def _read_safetensors(file) -> dict:
    try:
        from safetensors import safe_open
    except ImportError:
        raise Refused("needs the safetensors package: pip install safetensors") from None

    with safe_open(file.name, framework="np"):  # checks the header
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
    content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[8 + header_size :]
    arrays = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        dtype = _SAFETENSORS_DTYPES.get(tensor["dtype"])
        if dtype is None:
            code = printable(tensor["dtype"])
            raise Refused(f"holds {printable(name)} as {code}, which has no numpy form; cast it first")
        start, end = tensor["data_offsets"]
        arrays[name] = np.frombuffer(content[start:end], dtype).reshape(tensor["shape"])
    return arrays


def _read_zip(file):
    archive = zipfile.ZipFile(file)
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}  # without "<root>/"
    _check_is_from_torch(entries, archive.namelist())
    claimed, actual = sum(entry.file_size for entry in archive.infolist()), file.seek(0, io.SEEK_END)
    if claimed > actual:  # as in a zip bomb, whose entries overlap
        raise Refused(f"has {actual} bytes but claims to hold {claimed}; {AGAIN}")

    def read(name: str) -> bytes:
        if name not in entries:
            raise Refused(f"lacks {printable(name)}, which torch.save(state_dict, path) writes; {AGAIN}")
        if entries[name].compress_type != zipfile.ZIP_STORED:
            raise Refused("has compressed entries, which torch.save never writes; zip it again with zip -0")
        return archive.read(entries[name])  # checks the CRC as well

    byteorder = read("byteorder").decode() if "byteorder" in entries else "little"
    if byteorder != sys.byteorder:
        raise Refused(f"has byte order {printable(byteorder)}; re-save it on a {sys.byteorder}-endian machine")

    storages = {}

    def load_storage(persistent_id) -> np.ndarray:
        match persistent_id:
            case ("storage", str(kind), str(key), _, _) if kind in STORAGES:
                if key not in storages:
                    storages[key] = read(f"data/{key}")
                return np.frombuffer(storages[key], STORAGES[kind])
        raise malformed("a persistent id that is not a storage")

    return unpickle(read("data.pkl"), actual, load_storage)


def _check_is_from_torch(entries: dict, names: list[str]) -> None:
    """Raise Refused, naming the format, for a zip file that torch.save did not write."""
    if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
        raise Refused(
            "is a TorchScript archive; save its weights in torch: "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    if "data.pkl" in entries:
        return
    if names and all(name.endswith(".npy") for name in names):
        raise Refused("is a NumPy archive (.npz); pass its arrays: from_torch(model, dict(numpy.load(path)), ...)")
    if any(name.endswith(".weights.h5") for name in names):
        raise Refused("is a Keras archive (.keras); save the weights in torch")
    inside = ", ".join(printable(name, 40) for name in names[:3])
    raise Refused(f"is a zip archive that torch.save did not write: it lacks data.pkl and holds {inside or 'nothing'}")


class _Bounded:
    """A file that never reads past its end: `file.read(count)` allocates `count` bytes before it reads."""

    def __init__(self, file, size: int):
        self._file, self._size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        return self._file.read(count if count < 4096 else min(count, self._size - self.tell()))


def _read_legacy(file):
    """Read the format before torch 1.6.

    Storages follow the pickle that refers to them, so tensors are views of memory that is filled afterwards.
    """
    room = file.seek(0, io.SEEK_END)
    file.seek(0)
    pickles = _Bounded(file, room)
    _, _, head = (unpickle(pickles, room, _no_storage) for _ in range(3))
    if type(head) is not dict or head.get("little_endian") is not (sys.byteorder == "little"):
        raise Refused(f"was not saved on a {sys.byteorder}-endian machine; re-save it on one")

    storages, itemsizes, free = {}, {}, room

    def load_storage(persistent_id) -> np.ndarray:
        nonlocal free
        match persistent_id:
            case ("storage", str(kind), str(key), _, int(count), None) if kind in STORAGES and count >= 0:
                dtype = STORAGES[kind]
                if key not in storages:
                    free -= count * dtype.itemsize
                    if free < 0:
                        raise Refused(f"has {room} bytes but claims to hold more; {AGAIN}")
                    storages[key], itemsizes[key] = bytearray(count * dtype.itemsize), dtype.itemsize
                return np.frombuffer(memoryview(storages[key]).toreadonly(), dtype)
        raise malformed("a persistent id that is not a storage")

    content = unpickle(pickles, room, load_storage)
    keys = unpickle(pickles, room, _no_storage)
    # Check the types first: hashing or comparing a deeply nested tuple overflows the C stack.
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise malformed("a list of storages that are not those of the tensors")
    for key in keys:
        count = file.read(8)  # the number of elements, which the pickle contains too
        if int.from_bytes(count, sys.byteorder) * itemsizes[key] != len(storages[key]):
            raise malformed("a storage of another size than its pickle says")
        if file.readinto(storages[key]) != len(storages[key]):
            raise Refused(f"ends within a storage; {AGAIN}")
    return content


def _no_storage(persistent_id):
    raise malformed("a storage in the head")
