"""Write files of torch.save byte by byte, and check how load_torch_file refuses them.

Pickles are assembled from opcodes of protocol 2, which torch.save uses.
"""

import pickle
import re
import struct
import zipfile

import numpy as np
import pytest

from vit_jax.torch_file import load_torch_file

FLOATS = ["float64", "float32", "float16", "bfloat16", "complex64", "complex128"]
FLOATS8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
INTEGERS = ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]

MARK, TUPLE, REDUCE, BUILD, PERSISTENT_ID = b"(", b"t", b"R", b"b", b"Q"


def dump(value) -> bytes:
    """The opcodes that push a plain value: a pickle without PROTO and STOP."""
    return pickle.dumps(value, 2)[2:-1]


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(dotted: str, *args: bytes) -> bytes:
    return name(dotted) + MARK + b"".join(args) + TUPLE + REDUCE


def storage(key, kind="torch.FloatStorage", numel=6) -> bytes:
    return MARK + dump("storage") + name(kind) + dump(key) + dump("cpu") + dump(numel) + TUPLE + PERSISTENT_ID


def tensor(size=(2, 3), stride=(3, 1), offset=0, *, key="0", kind="torch.FloatStorage") -> bytes:
    layout = dump(offset) + dump(size) + dump(stride)
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(key, kind) + layout + dump(False) + hooks)


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def dict_of(**items: bytes) -> bytes:
    return b"}" + b"".join(dump(key) + value + b"s" for key, value in items.items())


VALUES = np.arange(6, dtype=np.float32)
RAW = VALUES.tobytes()


def save(path, body: bytes, storages=None, *, entries=None, compression=zipfile.ZIP_STORED):
    """Write a pickle and its storages, {key: bytes}, like torch.save; `entries` replaces zip entries."""
    storages = {"0": VALUES.tobytes()} if storages is None else storages
    contents = {"data.pkl": pickled(body), "byteorder": b"little", "version": b"3\n"}
    contents |= {f"data/{key}": data for key, data in storages.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry, content in (contents | (entries or {})).items():
            if content is not None:
                archive.writestr(f"model/{entry}", content)
    return path


LEGACY_NUMBER = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


def save_legacy(path, body: bytes, *, keys=("0",), count=6, data=RAW, little_endian=True):
    """Write a pickle and its storage in the format before torch 1.6."""
    head = dict(protocol_version=1001, little_endian=little_endian, type_sizes=dict(short=2, int=4, long=4))
    pickles = (pickle.dumps(1001, 2), pickle.dumps(head, 2), pickled(body), pickle.dumps(list(keys), 2))
    path.write_bytes(b"".join([LEGACY_NUMBER, *pickles, struct.pack("<q", count), data]))
    return path


def legacy_storage(view: bytes = dump(None), **kwargs) -> bytes:
    """A persistent id before torch 1.6, which ends with a view of the storage or None."""
    return storage("0", **kwargs).removesuffix(TUPLE + PERSISTENT_ID) + view + TUPLE + PERSISTENT_ID


def legacy_tensor(*args, **kwargs) -> bytes:
    layout = dump(0) + dump((2, 3)) + dump((3, 1)) + dump(False) + call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", legacy_storage(*args, **kwargs) + layout)


def refusal(path) -> str:
    """The message of the ValueError for `path`: one line that names the path."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: ") as error:
        load_torch_file(path)
    message = str(error.value)
    assert message.isprintable()  # so without line breaks
    return message.removeprefix(f"{path}: ")


def read_or_refused(path) -> dict | None:
    try:
        return load_torch_file(path)
    except ValueError:
        refusal(path)


def refused(tmp_path, body: bytes, *args, **kwargs) -> str:
    return refusal(save(tmp_path / "model.pth", body, *args, **kwargs))
