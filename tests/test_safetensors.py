"""load_torch_file with safetensors: every dtype, damaged files, and without the library."""

import random
import struct
import sys

import ml_dtypes
import numpy as np
import pytest

from tests.torch_files import FLOATS, FLOATS8, INTEGERS, read_or_refused, refusal
from vit_jax.torch_file import load_torch_file


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
