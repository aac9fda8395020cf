"""Weights files of PyTorch read without torch: .pth and .pt, as zip files or of before torch 1.6, and .safetensors.

Threat model: the file comes from a stranger, and reading it must not run code, reach memory outside its
tensors, change anything that outlives the call, or allocate more than a fixed multiple of the file's size.
So the pickle in a .pth is read by a small interpreter of its own, to which a global is a name and no object.

Source: the formats as torch.save writes them: data.pkl in pickle protocol 2, and one zip entry per storage; before
torch 1.6, pickles one behind the other (three of them a head), then the bytes of each storage behind their number.
"""

import io
import math
import pickletools
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

_DTYPES = (  # torch dtype, torch storage class, safetensors code, numpy dtype
    ("float64", "DoubleStorage", "F64", np.float64),
    ("float32", "FloatStorage", "F32", np.float32),
    ("float16", "HalfStorage", "F16", np.float16),
    ("bfloat16", "BFloat16Storage", "BF16", ml_dtypes.bfloat16),
    ("float8_e4m3fn", None, "F8_E4M3", ml_dtypes.float8_e4m3fn),
    ("float8_e5m2", None, "F8_E5M2", ml_dtypes.float8_e5m2),
    ("float8_e4m3fnuz", None, "F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
    ("float8_e5m2fnuz", None, "F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
    ("complex128", "ComplexDoubleStorage", None, np.complex128),
    ("complex64", "ComplexFloatStorage", "C64", np.complex64),
    ("int64", "LongStorage", "I64", np.int64),
    ("int32", "IntStorage", "I32", np.int32),
    ("int16", "ShortStorage", "I16", np.int16),
    ("int8", "CharStorage", "I8", np.int8),
    ("uint64", None, "U64", np.uint64),
    ("uint32", None, "U32", np.uint32),
    ("uint16", None, "U16", np.uint16),
    ("uint8", "ByteStorage", "U8", np.uint8),
    ("bool", "BoolStorage", "BOOL", np.bool_),
)
_TORCH_DTYPES = {f"torch.{name}": np.dtype(dtype) for name, _, _, dtype in _DTYPES}
_STORAGES = {f"torch.{storage}": np.dtype(dtype) for _, storage, _, dtype in _DTYPES if storage}
_STORAGES["torch.storage.UntypedStorage"] = np.dtype(np.uint8)
_SAFETENSORS_DTYPES = {code: np.dtype(dtype) for _, _, code, dtype in _DTYPES if code}

_BEFORE_TORCH_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # such files begin with this pickled number
_AGAIN = "fetch or save it again"
_NO_NEED = (
    "a weights file has no need of; nothing was run. If you trust its source, load it in torch and save the "
    "weights alone: torch.save(model.state_dict(), path)"
)


class _Refused(Exception):
    """What is wrong with the file and what to do about it, in one line."""


def load_torch_file(path) -> dict:
    """Reads a .pth, .pt or .safetensors file; its content, not its name, decides which of them it is.

    Returns the saved dict, nested as it was saved, with a read-only numpy array for each tensor; tensors that
    shared storage share memory. OrderedDict and Counter become dict, a dtype its name ("torch.float16").

    Raises ValueError, one line that names the path, if it is no such file, is damaged, or holds anything but
    tensors, numbers, strings and plain containers; OSError if it cannot be opened.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a directory, expected a .pth, .pt or .safetensors file")
    with open(path, "rb") as file:
        try:
            content = _read(file)
            if not isinstance(content, dict):
                raise _Refused(f"holds a {type(content).__name__}, expected a dict of tensors")
            return content
        except _Refused as error:
            reason = str(error)
        except Exception as error:  # damage may surface anywhere in zipfile, pickletools, numpy, safetensors
            reason = f"is damaged or incomplete ({type(error).__name__}: {_quote(error)}); {_AGAIN}"
    raise ValueError(f"{path}: {reason}")


def _quote(text) -> str:
    """What the file says, fit for an error message: one line, printable, not too long."""
    return ascii(str(text))[1:-1][:200]


def _read(file):
    head = file.read(len(_BEFORE_TORCH_1_6))
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if head[8:9] == b"{" or Path(file.name).suffix == ".safetensors":  # 8 bytes of length, then JSON
        return _read_safetensors(file)
    if head == _BEFORE_TORCH_1_6:
        return _read_legacy(file)
    raise _Refused(
        "is neither a file from torch.save nor a safetensors file; was it cut short, or was a web page "
        "or a Git LFS pointer saved in its place?"
    )


def _read_safetensors(file) -> dict:
    try:
        from safetensors import deserialize
    except ImportError:
        raise _Refused("needs the safetensors package: pip install safetensors") from None

    arrays = {}
    for name, tensor in deserialize(file.read()):
        dtype = _SAFETENSORS_DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise _Refused(f"holds {_quote(name)} as {tensor['dtype']}, which has no numpy form; cast it first")
        arrays[name] = np.frombuffer(memoryview(tensor["data"]).toreadonly(), dtype).reshape(tensor["shape"])
    return arrays


def _read_zip(file):
    archive = zipfile.ZipFile(file)
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}  # without "<root>/"
    if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
        raise _Refused(
            "is a TorchScript archive; save its weights in torch: "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    claimed, actual = sum(entry.file_size for entry in archive.infolist()), file.seek(0, io.SEEK_END)
    if claimed > actual:  # as in a zip bomb, whose entries overlap
        raise _Refused(f"has {actual} bytes but claims to hold {claimed}; {_AGAIN}")

    def read(name: str) -> bytes:
        if name not in entries:
            raise _Refused(f"lacks {_quote(name)}, which torch.save(state_dict, path) writes; {_AGAIN}")
        if entries[name].compress_type != zipfile.ZIP_STORED:
            raise _Refused("has compressed entries, which torch.save never writes; zip it again with zip -0")
        return archive.read(entries[name])  # checks the CRC as well

    byteorder = read("byteorder").decode() if "byteorder" in entries else "little"
    if byteorder != sys.byteorder:
        raise _Refused(f"has byte order {_quote(byteorder)}; re-save it on a {sys.byteorder}-endian machine")

    storages = {}

    def load_storage(persistent_id) -> np.ndarray:
        match persistent_id:
            case ("storage", str(kind), str(key), _, _) if kind in _STORAGES:
                if key not in storages:
                    storages[key] = read(f"data/{key}")
                return np.frombuffer(storages[key], _STORAGES[kind])
        raise _malformed("a persistent id that is not a storage")

    return _unpickle(read("data.pkl"), load_storage)


def _read_legacy(file):
    """Storages follow the pickle that refers to them, so tensors get memory that is filled afterwards."""
    room = file.seek(0, io.SEEK_END)
    file.seek(0)
    no_storage = lambda persistent_id: _refuse("a storage in the head")
    _, _, head = (_unpickle(file, no_storage) for _ in range(3))
    if type(head) is not dict or head.get("little_endian") is not (sys.byteorder == "little"):
        raise _Refused(f"was not saved on a {sys.byteorder}-endian machine; re-save it on one")

    storages, itemsizes = {}, {}

    def load_storage(persistent_id) -> np.ndarray:
        match persistent_id:
            case ("storage", str(kind), str(key), _, int(count), None) if kind in _STORAGES and count >= 0:
                dtype = _STORAGES[kind]
                if key not in storages:
                    if sum(map(len, storages.values())) + count * dtype.itemsize > room:
                        raise _Refused(f"has {room} bytes but claims to hold more; {_AGAIN}")
                    storages[key], itemsizes[key] = bytearray(count * dtype.itemsize), dtype.itemsize
                return np.frombuffer(memoryview(storages[key]).toreadonly(), dtype)
        raise _malformed("a persistent id that is not a storage")

    content = _unpickle(file, load_storage)
    keys = _unpickle(file, no_storage)
    if type(keys) is not list or len(keys) != len(storages) or set(keys) != storages.keys():
        raise _malformed("a list of storages that are not those of the tensors")
    for key in keys:
        count = file.read(8)  # of elements, as the pickle has told
        if int.from_bytes(count, sys.byteorder) * itemsizes[key] != len(storages[key]):
            raise _malformed("a storage of another size than its pickle says")
        if file.readinto(storages[key]) != len(storages[key]):
            raise _Refused(f"ends within a storage; {_AGAIN}")
    return content


def _refuse(problem: str):
    raise _malformed(problem)


def _malformed(problem: str) -> _Refused:
    return _Refused(f"has a malformed pickle ({problem}); {_AGAIN}")


def _unpickle(pickled, load_storage):
    """The value of a pickle (bytes, or a file at its start) as torch.save writes it.

    Opcodes can only build new containers and fill them.
    """
    stack, outer_stacks, memo = [], [], {}
    for opcode, arg, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(arg)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = _pop(stack, int(opcode.name[-1]))
                stack.append(tuple(items))
            case "MARK":
                outer_stacks.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, outer_stacks.pop()
                stack.append(tuple(items))
            case "APPEND" | "SETITEM":
                items = _pop(stack, 1 if opcode.name == "APPEND" else 2)
                _fill(stack[-1], items)
            case "APPENDS" | "SETITEMS":
                items, stack = stack, outer_stacks.pop()
                _fill(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "BINPERSID":
                stack.append(load_storage(stack.pop()))
            case "GLOBAL":
                stack.append(_admit(arg.replace(" ", ".", 1)))
            case "REDUCE":
                name, args = _pop(stack, 2)
                stack.append(_call(name, args))
            case "BUILD":  # sets attributes: the _metadata of a state_dict(), which no array depends on
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise _malformed("attributes set on something other than an OrderedDict")
            case "STOP":
                if len(stack) != 1 or outer_stacks:
                    raise _malformed("an end before all is put together")
                return stack.pop()
            case _:
                raise _Refused(f"uses pickle's {opcode.name}, which {_NO_NEED}")


def _pop(stack: list, count: int) -> list:
    return [stack.pop() for _ in range(count)][::-1]


def _fill(container, items: list):
    """Appends `items` to a list, or sets them, keys and values in turn, in a dict."""
    if type(container) is list:
        container.extend(items)
    elif type(container) is dict:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # hashing a deeply nested tuple overflows the C stack
                raise _malformed("a dict key that is neither a string nor an integer")
            container[key] = value
    else:
        raise _malformed("items put into something other than a list or dict")


def _admit(name: str) -> str:
    if name not in _FUNCTIONS and name not in _STORAGES and name not in _TORCH_DTYPES:
        raise _Refused(f"refers to {_quote(name)}, which {_NO_NEED}")
    return name


def _call(name, args):
    if not isinstance(name, str) or name not in _FUNCTIONS or type(args) is not tuple:
        raise _malformed("a call of something that is not a function")
    return _FUNCTIONS[name](*args)


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> np.ndarray:
    """A view of the 1-D array `storage`; `offset` and `stride` count elements."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise _malformed("a tensor without a storage")
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise _malformed("a tensor whose size and stride do not match")
    if len(size) > 64:  # numpy's limit, which also keeps the arithmetic below cheap
        raise _Refused(f"holds a tensor of {len(size)} dimensions, expected at most 64")
    if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise _malformed("a tensor whose size, stride or offset is not a natural number")
    if metadata:
        raise _Refused("holds a lazily conjugated or negated tensor; save its resolve_conj().resolve_neg()")

    count = math.prod(size)  # in Python's integers, which cannot overflow
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else offset
    if end > storage.size:
        raise _Refused(f"has a storage of {storage.size} elements where a tensor of shape {size} needs {end}; {_AGAIN}")
    if count > storage.size:
        raise _Refused(f"holds a tensor of shape {size} expanded from {storage.size} elements; save its clone()")
    itemsize = storage.itemsize
    return np.ndarray(size, storage.dtype, storage, offset * itemsize, [step * itemsize for step in stride])


def _untyped_tensor(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> np.ndarray:
    """The form for dtypes that have no storage class; `storage` holds bytes."""
    if not isinstance(storage, np.ndarray) or not isinstance(dtype, str) or dtype not in _TORCH_DTYPES:
        raise _malformed("a tensor without a storage or dtype")
    return _tensor(storage.view(_TORCH_DTYPES[dtype]), offset, size, stride, metadata=metadata)


_FUNCTIONS = {  # none copies an argument: a pickle may pass one large object to very many calls
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _untyped_tensor,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, requires_grad, hooks, state: data,
    "torch.Size": lambda size: size,
    "collections.Counter": lambda counts: counts,
    "collections.OrderedDict": lambda: {},  # noqa: PIE807 (dict itself would take, and copy, an argument)
}
