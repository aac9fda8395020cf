"""load_torch_file against torch.load, and with damaged and malicious files; only the first part needs torch."""

import argparse
import collections
import copyreg
import os
import pickle
import random
import re
import struct
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vit_jax import torch_file, torch_pickle
from vit_jax.torch_file import load_torch_file

# A small assembler for the pickles that torch.save writes (pickle protocol 2).

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


# Real files.


def assert_same(ours, theirs, torch):
    """Assert the same structure and the same bits as in the result of torch.load."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, np.ndarray)
        assert not ours.flags.writeable
        assert f"torch.{ours.dtype}" == str(theirs.dtype)
        assert ours.shape == tuple(theirs.shape)
        bits = theirs.detach().contiguous().flatten().view(torch.uint8).numpy()
        assert ours.tobytes() == bits.tobytes()
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key], torch)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b, torch)
    elif isinstance(theirs, torch.dtype):
        assert ours == str(theirs)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


def round_trip(tmp_path, content, torch, **kwargs):
    path = tmp_path / "model.pth"
    torch.save(content, path, **kwargs)
    loaded = load_torch_file(path)
    assert_same(loaded, torch.load(path, weights_only=True), torch)
    return loaded


FLOATS = ["float64", "float32", "float16", "bfloat16", "complex64", "complex128"]
FLOATS8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
INTEGERS = ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]


@pytest.mark.parametrize("dtype", FLOATS + FLOATS8 + INTEGERS)
def test_reads_every_dtype_as_torch_does(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    numbers = torch.tensor([[0.0, 1.5, 3.0], [7.0, 0.25, 100.0]]).to(getattr(torch, dtype))
    views = {"all": numbers, "column": numbers[:, 1], "element": numbers[1, 2], "none": numbers[:, :0]}
    round_trip(tmp_path, views | {"dtype": numbers.dtype} if dtype != "bool" else views, torch)


def test_reads_every_layout_as_torch_does(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(2, 3, 4)
    loaded = round_trip(
        tmp_path,
        {
            "base": base,
            "tied": base,
            "transposed": base.permute(2, 0, 1),
            "strided": base[:, ::2, 1:],
            "last row": base[1, 2],
            "windows": base.flatten().unfold(0, 4, 4),
            "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "scalar": torch.tensor(3),
            "empty": torch.empty(0),
            "empty rows": torch.empty(3, 0, 2),
            "parameter": torch.nn.Parameter(torch.randn(3), requires_grad=True),
        },
        torch,
    )
    assert np.shares_memory(loaded["base"], loaded["tied"])
    assert np.shares_memory(loaded["base"], loaded["transposed"])


def test_reads_a_training_checkpoint_as_torch_does(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(),  # an OrderedDict with the attribute _metadata
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),  # holds a Counter
        "rng": torch.get_rng_state(),
        "notes": [
            None,
            True,
            False,
            -1,
            255,
            70_000,
            2**40,
            -(2**70),
            0.1,
            "naïve ☃",
            (),
            (1, (2,)),
            {3: []},
        ],
        "size": torch.Size([1, 2]),
        "many": list(range(2000)),
    }
    loaded = round_trip(tmp_path, checkpoint, torch)
    assert loaded["model"]["1.num_batches_tracked"].dtype == np.int64
    assert loaded["model"]["1.num_batches_tracked"] == 1


def test_reads_a_parameter_with_attributes(tmp_path):
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.randn(2))
    parameter.no_decay = True
    round_trip(tmp_path, {"p": parameter}, torch)


def test_refuses_what_torch_saves_but_numpy_cannot_hold(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    for content, expected in {
        "conj": (torch.ones(2, dtype=torch.complex64).conj(), "resolve_conj"),
        "expanded": (torch.ones(1).expand(5), "shape (5,) expanded from 1 elements"),
        "sparse": (torch.eye(2).to_sparse(), "refers to torch._utils._rebuild_sparse_tensor"),
        "meta": (torch.ones(2, device="meta"), "refers to torch._utils._rebuild_meta_tensor_no_storage"),
        "module": (torch.nn.Linear(1, 1), "refers to torch.nn.modules.linear.Linear"),
    }.values():
        torch.save({"x": content}, path)
        assert expected in refusal(path)


def test_reads_what_torch_saves_in_its_old_format(tmp_path):
    torch = pytest.importorskip("torch")
    path, x = tmp_path / "model.pth", torch.arange(12.0).reshape(3, 4)
    content = dict(x=x, turned=x.t(), row=x[1], half=torch.ones(2).half(), none=torch.ones(0), n=torch.tensor(3))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert_same(load_torch_file(path), torch.load(path), torch)


def test_refuses_the_other_formats_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save([torch.ones(2)], path)
    assert "holds a list, expected a dict" in refusal(path)
    torch.save(torch.ones(2), path)
    assert "holds a ndarray, expected a dict" in refusal(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refuses_torchscript_made_by_torch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    assert "TorchScript" in refusal(path)


def test_damage_to_a_file_made_by_torch_is_noticed(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    assert_damage_is_noticed(path, cuts=range(0, path.stat().st_size, 29))


# Files made by hand.


def test_reads_a_file_made_without_torch(tmp_path):
    body = dict_of(
        model=dict_of(w=tensor(), t=tensor((3, 2), (1, 3)), last=tensor((), (), 5), none=tensor((0, 4), (4, 1))),
        epoch=dump(3),
        tail=tensor((2,), (2,), 3),
    )
    loaded = load_torch_file(save(tmp_path / "any.name", body))
    assert list(loaded) == ["model", "epoch", "tail"]
    assert loaded["epoch"] == 3
    np.testing.assert_array_equal(loaded["model"]["w"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(loaded["model"]["t"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(loaded["tail"], [3, 5])
    assert loaded["model"]["last"].shape == ()
    assert loaded["model"]["last"] == 5
    assert loaded["model"]["none"].shape == (0, 4)
    assert np.shares_memory(loaded["model"]["w"], loaded["tail"])
    assert not loaded["tail"].flags.writeable


def test_reads_typed_and_untyped_storages(tmp_path):
    numbers = np.array([0.5, -2, 96], ml_dtypes.bfloat16)
    eights = np.array([0.5, -2, 96], ml_dtypes.float8_e4m3fn)
    untyped = storage("1", "torch.storage.UntypedStorage", 3) + dump(1) + dump((2,)) + dump((1,)) + dump(False)
    body = dict_of(
        typed=tensor((3,), (1,), kind="torch.BFloat16Storage"),
        untyped=call(
            "torch._utils._rebuild_tensor_v3",
            untyped + call("collections.OrderedDict") + name("torch.float8_e4m3fn"),
        ),
        dtype=name("torch.float16"),
    )
    loaded = load_torch_file(save(tmp_path / "m.pt", body, {"0": numbers.tobytes(), "1": eights.tobytes()}))
    assert loaded["typed"].dtype == ml_dtypes.bfloat16
    assert loaded["typed"].tolist() == [0.5, -2, 96]
    assert loaded["untyped"].dtype == ml_dtypes.float8_e4m3fn
    assert loaded["untyped"].tolist() == [-2, 96]
    assert loaded["dtype"] == "torch.float16"


def test_byteorder_may_be_absent_but_not_big(tmp_path):
    path = save(tmp_path / "m.pt", dict_of(w=tensor()), entries={"byteorder": None})
    np.testing.assert_array_equal(load_torch_file(path)["w"], VALUES.reshape(2, 3))
    assert "has byte order big" in refused(tmp_path, dict_of(w=tensor()), entries={"byteorder": b"big"})


@pytest.mark.parametrize(
    ("layout", "expected"),
    {
        "size beyond": (((7,), (1,)), "storage of 6 elements where a tensor of shape (7,) needs 7"),
        "stride beyond": (((2, 3), (4, 1)), "needs 7"),
        "offset beyond": (((2, 3), (3, 1), 1), "needs 7"),
        "far stride": (((2,), (2**62,)), f"needs {2**62 + 1}"),
        "stride that overflows 64 bits in bytes": (((2,), (2**64 - 1,)), "needs"),
        "size that overflows 64 bits": (((2**32, 2**32, 2**32), (0, 0, 0)), "expanded from 6"),
        "petabytes at stride zero": (((2**50,), (0,)), "expanded from 6"),
        "overlapping rows": (((3, 4), (1, 1)), "expanded from 6"),
        "far offset of nothing": (((0,), (1,), 7), "needs 7"),
        "negative stride": (((2,), (-1,), 1), "not a natural number"),
        "negative offset": (((2,), (1,), -1), "not a natural number"),
        "negative size": (((-2,), (1,)), "not a natural number"),
        "two negative sizes": (((-2, -3), (3, 1)), "not a natural number"),
        "fractional size": (((1.5,), (1,)), "not a natural number"),
        "boolean size": (((True,), (1,)), "not a natural number"),
        "fewer strides": (((2, 3), (1,)), "do not match"),
        "many dimensions": (((1,) * 65, (1,) * 65), "65 dimensions"),
        "huge empty": (((0, 2**62, 2**62), (1, 1, 1)), "damaged"),
    }.values(),
)
def test_a_tensor_must_lie_inside_its_storage(tmp_path, layout, expected):
    assert expected in refused(tmp_path, dict_of(w=tensor(*layout)))


def test_a_tensor_needs_a_storage_and_a_plain_layout(tmp_path):
    rebuild, rest = (
        "torch._utils._rebuild_tensor_v2",
        dump(0) + dump((1,)) + dump((1,)) + dump(False) + dump({}),
    )
    assert "without a storage" in refused(tmp_path, call(rebuild, dump([1.0]) + rest))
    assert "without a storage" in refused(tmp_path, call(rebuild, tensor() + rest))
    assert "resolve_conj" in refused(tmp_path, call(rebuild, storage("0") + rest + dump({"conj": True})))
    rebuild, rest = "torch._utils._rebuild_tensor_v3", storage("0") + rest
    assert "without a storage or dtype" in refused(tmp_path, call(rebuild, rest + dump("float32")))
    assert "without a storage or dtype" in refused(tmp_path, call(rebuild, rest + dump(())))
    rest += name("torch.float32") + dump({"neg": True})
    assert "resolve_neg" in refused(tmp_path, call(rebuild, rest))


def test_storages_must_be_there_and_whole(tmp_path):
    body = dict_of(w=tensor())
    assert "lacks data/0" in refused(tmp_path, body, {})
    assert "storage of 5 elements" in refused(tmp_path, body, {"0": VALUES.tobytes()[:20]})
    assert "damaged" in refused(tmp_path, body, {"0": VALUES.tobytes()[:23]})
    assert "persistent id" in refused(tmp_path, dict_of(w=storage("0", "torch.float32")))
    assert "persistent id" in refused(tmp_path, dict_of(w=dump("0") + PERSISTENT_ID))


def test_zip_files_must_be_as_torch_writes_them(tmp_path):
    body, path = dict_of(w=tensor()), tmp_path / "model.pth"
    assert "compressed" in refused(tmp_path, body, compression=zipfile.ZIP_DEFLATED)
    assert "lacks data.pkl" in refused(tmp_path, body, entries={"data.pkl": None})
    assert "TorchScript" in refused(tmp_path, body, entries={"constants.pkl": b""})
    assert "TorchScript" in refused(tmp_path, body, entries={"code/__torch__.py": b""})

    save(path, body)
    content = path.read_bytes()
    path.write_bytes(content.replace(VALUES.tobytes(), (VALUES + 1).tobytes()))
    assert "Bad CRC-32 for file 'model/data/0'" in refusal(path)


def test_entries_cannot_claim_more_than_the_file_holds(tmp_path):
    path = save(tmp_path / "model.pth", dict_of(w=tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/extra", b"")
        archive.getinfo("model/data/0").file_size = archive.getinfo("model/data/0").compress_size = 2**31
    assert "but claims to hold" in refusal(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it is empty"),
        (b"\xff\xd8\xff\xe0", "was it cut short?"),
        (b"\n <!DOCTYPE html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
        (b"\x93NUMPY\x01\x00", "it is one NumPy array (.npy)"),
        (b"GGUF\x03", "it is a GGUF file"),
        (b"\x1f\x8b\x08", "it is a compressed file; unpack it first (gunzip)"),
        (b"model.pth" + bytes(248) + b"ustar\x00", "it is a tar archive"),
        (b'{"weight_map": {}}', "it is JSON text"),
        (pickle.dumps({"x": 1}, 2), "it is a pickle that torch.save did not write"),
        (pickle.dumps({"x": 1}, 5), "it is a pickle that torch.save did not write"),
        (LEGACY_NUMBER + pickle.dumps(1001, 2), "is damaged or incomplete"),
        (b"PK\x03\x04", "is damaged or incomplete (BadZipFile"),
    ],
)
def test_other_files_are_told_by_their_content(tmp_path, content, expected):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    message = refusal(path)
    assert expected in message
    assert message.startswith("is neither a file from torch.save nor a safetensors file") != expected.startswith("is ")


def test_other_files_are_told_by_their_suffix(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    assert "it is an ONNX graph" in refusal(tmp_path / "model.onnx")


def test_other_archives_are_told_by_what_they_hold(tmp_path):
    np.savez(tmp_path / "model.npz", **{"head.weight": VALUES})
    message = refusal(tmp_path / "model.npz")
    assert "is a NumPy archive (.npz); pass its arrays: from_torch(model, dict(numpy.load(path)), ...)" in message
    for names, expected in (
        (("config.json", "model.weights.h5"), "is a Keras archive"),
        (("readme.txt", "a\x1b[2J/b"), r"lacks data.pkl and holds readme.txt, a\x1b[2J/b"),
    ):
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
            for entry in names:
                archive.writestr(entry, b"")
        assert expected in refusal(tmp_path / "model.zip")


def test_reads_the_format_of_before_torch_1_6(tmp_path):
    path = save_legacy(tmp_path / "model.pth", dict_of(w=legacy_tensor(), again=legacy_tensor()))
    content = load_torch_file(path)
    np.testing.assert_array_equal(content["w"], VALUES.reshape(2, 3))
    assert not content["w"].flags.writeable
    assert np.shares_memory(content["w"], content["again"])


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (dict(data=VALUES.tobytes()[:-1]), "ends within a storage"),
        (dict(count=5), "another size than its pickle says"),
        (dict(keys=("0", "1")), "storages that are not those of the tensors"),
        (dict(keys=()), "storages that are not those of the tensors"),
        (dict(little_endian=False), "was not saved on a little-endian machine"),
        (dict(body=dict_of(w=legacy_tensor(numel=2**40))), "claims to hold more"),
        (dict(body=dict_of(w=legacy_tensor(dump(("1", 0, 6))))), "a persistent id that is not a storage"),
        (dict(body=dict_of(w=call("os.system", dump("true")))), "refers to os.system"),
    ],
)
def test_refuses_what_is_wrong_in_the_format_of_before_torch_1_6(tmp_path, kwargs, expected):
    body = kwargs.pop("body", dict_of(w=legacy_tensor()))
    assert expected in refusal(save_legacy(tmp_path / "model.pth", body, **kwargs))


def test_a_legacy_file_cut_anywhere_is_refused(tmp_path):
    content = save_legacy(tmp_path / "model.pth", dict_of(w=legacy_tensor())).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        refusal(tmp_path / "cut.pth")


def test_the_saved_object_must_be_a_dict(tmp_path):
    assert "holds a list, expected a dict" in refused(tmp_path, dump([1]))
    assert "holds a ndarray, expected a dict" in refused(tmp_path, tensor())


def test_a_path_must_be_a_file(tmp_path):
    assert "is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")
    assert "is a pipe, a device or a socket" in refusal(tmp_path / "pipe.pth")
    assert "is a pipe, a device or a socket" in refusal("/dev/zero")
    with pytest.raises(FileNotFoundError):
        load_torch_file(tmp_path / "missing.pth")


# Damage.


def assert_damage_is_noticed(path, cuts):
    """Files cut short are refused; files with one byte changed are refused or still read the same."""
    content, intact = path.read_bytes(), load_torch_file(path)
    for cut in cuts:
        path.write_bytes(content[:cut])
        refusal(path)

    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        loaded = read_or_refused(path)
        if loaded is not None:  # the damage is to a date, to padding, or to something else of no account
            assert list(loaded) == list(intact)
            assert all(loaded[key].tobytes() == intact[key].tobytes() for key in intact)


def test_damage_to_a_file_made_by_hand_is_noticed(tmp_path):
    path = save(tmp_path / "model.pth", dict_of(w=tensor(), b=tensor((2,), (3,))))
    assert_damage_is_noticed(path, cuts=range(0, path.stat().st_size, 2))


def test_a_pickle_cut_short_or_scrambled_under_a_valid_crc(tmp_path):
    body, rng = dict_of(w=tensor(), list=dump([1, "two", (3,)]), b=tensor((2,), (3,))), random.Random(0)
    for cut in range(len(pickled(body))):
        refused(tmp_path, b"", entries={"data.pkl": pickled(body)[:cut]})
    for _ in range(200):
        scrambled = bytearray(body)
        scrambled[rng.randrange(len(body))] = rng.randrange(256)
        path = save(tmp_path / "model.pth", bytes(scrambled))
        read_or_refused(path)  # may read: another number or name is as good as the first


MALFORMED = {
    "something left over": b"}N",
    "mark left over": b"(}",
    "nothing": b"",
    "pop of an empty stack": b"0",
    "get of an empty memo": b"h\x07",
    "tuple without mark": b"t",
    "two from a stack of one": b"N\x86",
    "key without a value": b"}" + MARK + dump("a") + dump(1) + dump("b") + b"u",
    "item of a number": b"K\x01K\x02K\x03s",
    "append to a tuple": b")Na",
    "append to an array": tensor() + b"Na",
    "set item of an array": tensor() + dump(0) + dump(1.0) + b"s",
    "new object": name("collections.OrderedDict") + b")\x81",
    "state of an array": tensor() + dump((1, (2,), None, False, b"")) + BUILD,
    "call with a list": name("collections.OrderedDict") + b"]R",
    "call with too many": call("torch.Size", dump((1,)) + dump((1,))),
    "copy in the call": call("collections.OrderedDict", dump([("a", 1)])),
    "call of a deep tuple": b")" + b"\x85" * 200_000 + b")R",
    "deep tuple as a key": b"})" + b"\x85" * 200_000 + b"Ns",
    "array as a key": b"}" + tensor() + b"Ns",
    "memo index that would take gigabytes": b"h\x01r\xff\xff\xff\xff",
    "string that would take gigabytes": b"X\xff\xff\xff\xffabc",
    "text that is not UTF-8": b"X\x02\x00\x00\x00\xff\xff",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_pickles(tmp_path, body):
    refused(tmp_path, body)


@pytest.mark.parametrize("what", [dump("os.system"), name("torch.float32"), name("torch.FloatStorage"), b"]"])
def test_only_admitted_functions_are_called(tmp_path, what):
    assert "a call of something that is not a function" in refused(tmp_path, what + b")R")


# Time and memory.


def test_storages_of_the_old_format_are_looked_at_once(tmp_path, monkeypatch):
    lengths = 0

    class Counting(bytearray):
        def __len__(self):
            nonlocal lengths
            lengths += 1
            return super().__len__()

    monkeypatch.setattr(torch_file, "bytearray", Counting, raising=False)
    keys = [str(i) for i in range(300)]
    body = dict_of(**{key: legacy_storage(numel=0).replace(dump("0"), dump(key)) for key in keys})
    path = save_legacy(tmp_path / "model.pth", body, keys=keys, count=0, data=struct.pack("<q", 0) * (len(keys) - 1))
    assert len(load_torch_file(path)) == len(keys)
    assert len(keys) <= lengths <= 5 * len(keys)


def test_integer_keys_that_may_collide_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MOST_INTEGER_KEYS", 5)
    dict_with = lambda keys: b"}" + b"".join(dump(key) + b"Ns" for key in keys)
    colliding = [i * sys.hash_info.modulus for i in range(1, 7)]
    path = save(tmp_path / "model.pth", dict_of(a=dict_with(range(100)), b=dict_with(colliding[:5])))
    assert {key: len(value) for key, value in load_torch_file(path).items()} == {"a": 100, "b": 5}
    message = "has dicts with more than 5 integer keys that do not count up from 0"
    assert message in refused(tmp_path, dict_with(colliding))
    assert message in refused(tmp_path, dict_of(a=dict_with(colliding[:3]), b=dict_with(colliding[:3])))


def test_memo_numbers_do_not_pass_the_count_of_values(tmp_path):
    assert load_torch_file(save(tmp_path / "a.pth", dict_of(a=dump("one") + b"q\x15"))) == {"a": "one"}
    assert "memo number beyond" in refused(tmp_path, dict_of(a=dump("one") + b"r\xff\xff\xff\x00"))


def test_objects_that_take_more_memory_than_bytes_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MOST_OBJECTS", 100)
    assert len(load_torch_file(save(tmp_path / "a.pth", dict_of(a=dump(list(range(1000))))))["a"]) == 1000
    for body in (b"]" * 101, b"}" * 101, b"(" * 101, b")" + b"\x85" * 101, dict_of(a=b"](" + tensor() * 20 + b"e")):
        assert "holds more than 100 containers and tensors" in refused(tmp_path, body)


def test_tensors_share_memory_within_reason(tmp_path):
    values = np.zeros(50_000, np.float32)
    aliases = lambda count: dict_of(**{str(i): tensor((50_000,), (1,)) for i in range(count)})
    path = save(tmp_path / "model.pth", aliases(50), {"0": values.tobytes()})
    assert len(load_torch_file(path)) == 50  # as a block that is used by many layers
    assert "more than 100 times its size" in refused(tmp_path, aliases(150), {"0": values.tobytes()})


@pytest.mark.parametrize("opcode", [b"X\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\xff"])
def test_no_memory_is_taken_for_what_a_pickle_only_claims(tmp_path, opcode):
    path = save_legacy(tmp_path / "model.pth", opcode + b"abc")
    tracemalloc.start()
    try:
        assert "damaged" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("depth", [1, 400_000])
def test_the_keys_of_the_old_format_are_strings(tmp_path, depth):
    path = save_legacy(tmp_path / "model.pth", dict_of(w=legacy_tensor()))
    deep = pickled(b"])" + b"\x85" * depth + b"a")  # its hash overflows the C stack
    path.write_bytes(path.read_bytes().replace(pickle.dumps(["0"], 2), deep))
    assert "storages that are not those of the tensors" in refusal(path)


# Malice.


class Call:
    """Pickled as a call: a plain unpickler runs function(*args)."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def evil_pickles(marker) -> dict:
    """Pickles with which a plain unpickler creates the directory `marker`, and the error message for each."""
    shell, code, path = f"mkdir {marker}", f"__import__('os').mkdir({str(marker)!r})", dump(str(marker))
    mkdir = call("builtins.getattr", call("builtins.__import__", dump("os")), dump("mkdir"))
    return {
        "os.system": (
            pickle.dumps({"w": Call(os.system, shell)}, 2),
            f"refers to {os.system.__module__}.system",
        ),
        "os.mkdir": (pickled(call("os.mkdir", path)), "refers to os.mkdir"),
        "eval": (pickle.dumps(Call(eval, code), 2), "refers to __builtin__.eval"),
        "exec, protocol 0": (pickle.dumps(Call(exec, code), 0), "refers to __builtin__.exec"),
        "eval, protocol 4": (pickle.dumps(Call(eval, code), 4), "uses pickle's FRAME"),
        "STACK_GLOBAL": (
            pickled(dump("os") + dump("mkdir") + b"\x93" + MARK + path + TUPLE + REDUCE),
            "uses pickle's STACK_GLOBAL",
        ),
        "subprocess": (pickled(call("subprocess.call", dump(shell.split()))), "refers to subprocess.call"),
        "getattr": (pickled(mkdir + MARK + path + TUPLE + REDUCE), "refers to builtins.getattr"),
        "INST": (pickled(MARK + path + b"ios\nmkdir\n"), "uses pickle's INST"),
        "OBJ": (pickled(MARK + name("os.mkdir") + path + b"o"), "refers to os.mkdir"),
        "inside what is admitted": (
            pickled(call("collections.OrderedDict", dict_of(w=call("os.mkdir", path)))),
            "refers to os.mkdir",
        ),
    }


@pytest.mark.parametrize("case", evil_pickles("marker"))
def test_a_pickle_runs_nothing(tmp_path, case):
    marker = tmp_path / "marker"
    evil, reason = evil_pickles(marker)[case]
    message = refused(tmp_path, b"", entries={"data.pkl": evil})
    assert reason in message
    assert "no code was run" in message
    assert not marker.exists()

    pickle.loads(evil)
    assert marker.exists()  # so the pickle does harm elsewhere


def test_a_registered_extension_is_not_reached(tmp_path):
    """pickle reads a registered extension from a cache, without calling find_class."""
    copyreg.add_extension("os", "mkdir", 0x7F)
    try:
        assert pickle.loads(b"\x82\x7f.") is os.mkdir
        marker = tmp_path / "marker"
        for code in (b"\x82\x7f", b"\x83\x7f\x00", b"\x84\x7f\x00\x00\x00"):
            assert "uses pickle's EXT" in refused(tmp_path, code + MARK + dump(str(marker)) + TUPLE + REDUCE)
        assert not marker.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 0x7F)


@pytest.mark.parametrize("target", ["collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.float32"])
def test_a_pickle_changes_nothing_that_outlives_it(tmp_path, target):
    state = {"__defaults__": (0,), "fromkeys": 1, "polluted": 1}
    assert "attributes set on" in refused(tmp_path, name(target) + dump(state) + BUILD)
    assert "attributes set on" in refused(tmp_path, name(target) + dump((None, state)) + BUILD)
    assert "other than a list or dict" in refused(tmp_path, name(target) + dump("polluted") + dump(1) + b"s")
    assert not hasattr(collections.OrderedDict, "polluted")
    filled = call("collections.OrderedDict") + dump("polluted") + dump(1) + b"s"
    assert load_torch_file(save(tmp_path / "a.pth", filled)) == {"polluted": 1}
    assert load_torch_file(save(tmp_path / "a.pth", call("collections.OrderedDict"))) == {}


def test_the_attributes_of_a_state_dict_are_dropped(tmp_path):
    body = call("collections.OrderedDict") + dump({"_metadata": {}, "__class__": 1, "items": 2}) + BUILD
    loaded = load_torch_file(save(tmp_path / "a.pth", body))
    assert type(loaded) is dict
    assert loaded == {}
    assert not hasattr(loaded, "_metadata")


def test_a_forbidden_class_is_named_in_one_short_printable_line(tmp_path):
    message = refused(tmp_path, dict_of(w=tensor(), args=dump(argparse.Namespace(lr=0.1))))
    assert message.startswith("refers to argparse.Namespace, which no weights file needs; no code was run")
    message = refused(tmp_path, b"cos\n\x1b[2J" + b"x" * 10_000 + b"\n")
    assert len(message) < 500
    assert "\x1b" not in message


# safetensors.


def safetensors_file(path):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = {
        dtype: np.array([[0, 1, 2], [3, 4, 5]]).astype(getattr(ml_dtypes, dtype, None) or dtype)
        for dtype in FLOATS + FLOATS8 + INTEGERS
        if dtype != "complex128"  # not in the format
    }
    tensors |= {"empty": np.empty((0, 3), np.float32), "scalar": np.array(7)}
    numpy.save_file(tensors, path, metadata={"format": "np"})
    return path, tensors


def test_reads_every_dtype_of_safetensors(tmp_path):
    path, tensors = safetensors_file(tmp_path / "unclear.bin")
    loaded = load_torch_file(path)
    assert loaded.keys() == tensors.keys()
    for key, array in tensors.items():
        assert loaded[key].dtype == array.dtype
        assert loaded[key].shape == array.shape
        assert loaded[key].tobytes() == array.tobytes()
        assert not loaded[key].flags.writeable


def test_safetensors_cut_short_or_scrambled(tmp_path):
    path, _ = safetensors_file(tmp_path / "model.safetensors")
    content, rng = path.read_bytes(), random.Random(0)
    for cut in range(9, len(content), 9):
        path.write_bytes(content[:cut])
        assert "damaged or incomplete" in refusal(path)
    for _ in range(150):  # the format has no checksum: a changed number reads as that number
        scrambled = bytearray(content)
        scrambled[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(scrambled)
        read_or_refused(path)


def test_safetensors_of_an_unknown_dtype(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    header = b'{"w":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x00\x00")
    assert "holds w as F8_E8M0" in refusal(path)


def test_safetensors_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x01")
    assert "pip install safetensors" in refusal(path)
