"""Read the pickle inside a weights file of PyTorch without executing it.

The file is untrusted: reading it must not run code, access memory outside its tensors, or change anything that outlives
the call, and its time and memory must be bounded by the file's size. Python's unpickler guarantees none of this, so a
small interpreter reads the pickle here. It treats a global as a name, not an object, and accepts only the opcodes that
torch.save writes.
"""

import math
import pickletools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.printable import printable

DTYPES = (  # torch dtype, torch storage class, safetensors code, numpy dtype
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
_TORCH_DTYPES = {f"torch.{name}": np.dtype(dtype) for name, _, _, dtype in DTYPES}
STORAGES = {f"torch.{storage}": np.dtype(dtype) for _, storage, _, dtype in DTYPES if storage}
STORAGES["torch.storage.UntypedStorage"] = np.dtype(np.uint8)

AGAIN = "fetch or save it again"
_NO_NEED = (
    "no weights file needs; no code was run. If you trust its source, load it in torch and save only the "
    "weights: torch.save(model.state_dict(), path)"
)

# Containers, tensors and marks: a single byte of the file can create an object of a kilobyte.
MOST_OBJECTS = 1_000_000
# Other than the keys 0, 1, 2, ...: integers whose hashes collide make a dict take quadratic time.
MOST_INTEGER_KEYS = 10_000
# Bytes of tensors per byte of the file: tensors can share memory, and a caller may copy each of them.
MOST_ALIASES = 100


class Refused(Exception):
    """A file is not read. The message is one line: the reason, and what to do about it."""


def malformed(problem: str) -> Refused:
    """Error for a pickle that torch.save cannot have written."""
    return Refused(f"has a malformed pickle ({problem}); {AGAIN}")


def unpickle(pickled, room: int, load_storage: Callable[[Any], np.ndarray]) -> Any:
    """Return the value of a pickle that torch.save has written.

    The accepted opcodes can only create containers and fill them.

    Args:
        pickled (bytes or file): bytes, or a file at the position where the pickle starts. The file is read up to the
            end of the pickle.
        room: size of the whole file in bytes, which limits the memory of the result.
        load_storage: function from a persistent id to a 1-D array.

    Raises:
        Refused: if the pickle contains anything that torch.save does not write, or exceeds a limit.
    """
    stack, outer_stacks, memo, budget = [], [], [], _Budget(room)
    for opcode, arg, position in pickletools.genops(pickled):
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
                budget.add_object()
                stack.append([])
            case "EMPTY_DICT":
                budget.add_object()
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                budget.add_object()
                items = _pop(stack, int(opcode.name[-1]))
                stack.append(tuple(items))
            case "MARK":
                budget.add_object()
                outer_stacks.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, outer_stacks.pop()
                stack.append(tuple(items))
            case "APPEND" | "SETITEM":
                items = _pop(stack, 1 if opcode.name == "APPEND" else 2)
                _fill(stack[-1], items, budget)
            case "APPENDS" | "SETITEMS":
                items, stack = stack, outer_stacks.pop()
                _fill(stack[-1], items, budget)
            case "BINPUT" | "LONG_BINPUT":
                if arg > position:  # torch.save counts values up, though not always from 0
                    raise malformed("a memo number beyond the count of values")
                memo.extend([None] * (arg + 1 - len(memo)))  # in a dict, colliding numbers take quadratic time
                memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "BINPERSID":
                budget.add_object()
                stack.append(load_storage(stack.pop()))
            case "GLOBAL":
                stack.append(_admit(arg.replace(" ", ".", 1)))
            case "REDUCE":
                budget.add_object()
                name, args = _pop(stack, 2)
                stack.append(_call(name, args))
                budget.add_bytes(stack[-1])
            case "BUILD":  # sets attributes: the _metadata of a state_dict(), which no array depends on
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise malformed("attributes set on something other than an OrderedDict")
            case "STOP":
                if len(stack) != 1 or outer_stacks:
                    raise malformed("it ends with values left on the stack")
                return stack.pop()
            case _:
                raise Refused(f"uses pickle's {opcode.name}, which {_NO_NEED}")


class _Budget:
    """Limits on the objects that a pickle may create, so that a small file cannot take much time or memory."""

    def __init__(self, room: int):
        self._objects, self._integer_keys, self._bytes = MOST_OBJECTS, MOST_INTEGER_KEYS, MOST_ALIASES * room

    def add_object(self) -> None:
        self._objects -= 1
        if self._objects < 0:
            raise Refused(f"holds more than {MOST_OBJECTS:,} containers and tensors, too many for a weights file")

    def add_integer_key(self) -> None:
        self._integer_keys -= 1
        if self._integer_keys < 0:
            raise Refused(f"has dicts with more than {MOST_INTEGER_KEYS:,} integer keys that do not count up from 0")

    def add_bytes(self, value: Any) -> None:
        self._bytes -= value.nbytes if isinstance(value, np.ndarray) else 0
        if self._bytes < 0:
            raise Refused(
                f"holds tensors of more than {MOST_ALIASES} times its size, which share memory; save their clone()"
            )


def _pop(stack: list, count: int) -> list:
    return [stack.pop() for _ in range(count)][::-1]


def _fill(container, items: list, budget: _Budget):
    """Append `items` to a list, or set them in a dict, as alternating keys and values."""
    if type(container) is list:
        container.extend(items)
    elif type(container) is dict:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # hashing a deeply nested tuple overflows the C stack
                raise malformed("a dict key that is neither a string nor an integer")
            if isinstance(key, int) and key != len(container):
                budget.add_integer_key()
            container[key] = value
    else:
        raise malformed("items put into something other than a list or dict")


def _admit(name: str) -> str:
    if name not in _FUNCTIONS and name not in STORAGES and name not in _TORCH_DTYPES:
        raise Refused(f"refers to {printable(name)}, which {_NO_NEED}")
    return name


def _call(name, args):
    if not isinstance(name, str) or name not in _FUNCTIONS or type(args) is not tuple:
        raise malformed("a call of something that is not a function")
    return _FUNCTIONS[name](*args)


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> np.ndarray:
    """A view of the 1-D array `storage`; `offset` and `stride` count elements."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise malformed("a tensor without a storage")
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise malformed("a tensor whose size and stride do not match")
    if len(size) > 64:  # numpy's limit, which also keeps the arithmetic below cheap
        raise Refused(f"holds a tensor of {len(size)} dimensions, expected at most 64")
    if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise malformed("a tensor whose size, stride or offset is not a natural number")
    if metadata:
        raise Refused("holds a lazily conjugated or negated tensor; save its resolve_conj().resolve_neg()")

    count = math.prod(size)  # in Python's integers, which cannot overflow
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else offset
    if end > storage.size:
        raise Refused(
            f"has a storage of {storage.size} elements where a tensor of shape {printable(size)} "
            f"needs {printable(end)}; {AGAIN}"
        )
    if count > storage.size:
        raise Refused(
            f"holds a tensor of shape {printable(size)} expanded from {storage.size} elements; save its clone()"
        )
    itemsize = storage.itemsize
    return np.ndarray(size, storage.dtype, storage, offset * itemsize, [step * itemsize for step in stride])


def _untyped_tensor(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> np.ndarray:
    """A tensor of a dtype that has no storage class; `storage` contains bytes."""
    if not isinstance(storage, np.ndarray) or not isinstance(dtype, str) or dtype not in _TORCH_DTYPES:
        raise malformed("a tensor without a storage or dtype")
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
