"""Files that load_torch_file cannot read: it says what they are, or what is wrong in them."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from tests.torch_files import (
    LEGACY_NUMBER,
    PERSISTENT_ID,
    VALUES,
    call,
    dict_of,
    dump,
    legacy_tensor,
    name,
    refusal,
    refused,
    save,
    save_legacy,
    storage,
    tensor,
)
from vit_jax.torch_file import load_torch_file


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
