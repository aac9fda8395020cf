"""Pickles made to run code, which load_torch_file refuses to run."""

import argparse
import collections
import copyreg
import os
import pickle

import pytest

from tests.torch_files import BUILD, MARK, REDUCE, TUPLE, call, dict_of, dump, name, pickled, refused, save, tensor
from vit_jax.torch_file import load_torch_file


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


def test_a_forbidden_class_is_named_in_one_short_printable_line(tmp_path):
    message = refused(tmp_path, dict_of(w=tensor(), args=dump(argparse.Namespace(lr=0.1))))
    assert message.startswith("refers to argparse.Namespace, which no weights file needs; no code was run")
    message = refused(tmp_path, b"cos\n\x1b[2J" + b"x" * 10_000 + b"\n")
    assert len(message) < 500
    assert "\x1b" not in message
