"""Damaged files of weights are refused or read the same, and take neither much time nor memory."""

import pickle
import random
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from tests.torch_files import (
    BUILD,
    MARK,
    call,
    dict_of,
    dump,
    legacy_storage,
    legacy_tensor,
    name,
    pickled,
    read_or_refused,
    refusal,
    refused,
    save,
    save_legacy,
    tensor,
)
from vit_jax import torch_file, torch_pickle
from vit_jax.torch_file import load_torch_file


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


def test_damage_to_a_file_made_by_torch_is_noticed(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    assert_damage_is_noticed(path, cuts=range(0, path.stat().st_size, 29))


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


def test_a_legacy_file_cut_anywhere_is_refused(tmp_path):
    content = save_legacy(tmp_path / "model.pth", dict_of(w=legacy_tensor())).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        refusal(tmp_path / "cut.pth")


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
