"""Steps on a CPU use freed memory again."""

import ctypes
import json
import os
import platform
import subprocess
import sys
import types

import pytest

from tests import compiler
from tests.runs import TINY
from train.allocator import M_MMAP_THRESHOLD, keep_freed_memory

# The trainer. Its last line has the bytes of a step's temporaries, and the page faults during each step.
MEASURED = """
import ctypes, json, resource
PR_SET_THP_DISABLE = 41
assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0  # all pages have the same size

import train.loop, train.setup
from train.commandline.terminal import run_command
from train.main import main

faults, temporaries = [], []

def to_devices(batch, mesh, original=train.loop.to_devices):
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return original(batch, mesh)

def compile_train_step(*arguments, original=train.setup.compile_train_step):
    step = original(*arguments)
    temporaries.append(step.memory_analysis().temp_size_in_bytes)
    return step

train.loop.to_devices, train.setup.compile_train_step = to_devices, compile_train_step
assert run_command(main) == 0
print(json.dumps([temporaries[0], [after - before for before, after in zip(faults, faults[1:])]]))
"""
STEPS = 8
# Temporaries of more than 64 MiB, which only the main thread keeps, and batches that JAX copies in another thread.
LARGE = ("--batch-size=512", "--data.image-size=32", f"--steps={STEPS}", "--eval-epochs=10", "--no-report")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets parameters of glibc")
def test_a_step_takes_the_memory_of_the_step_before(tmp_path):
    options = (*TINY, "patch_size=4", *LARGE, f"--workdir={tmp_path}")
    environment = {**os.environ, "XLA_FLAGS": compiler.flags(devices=1)}
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, *options], capture_output=True, text=True, check=True, env=environment
    )
    temporaries, faults = json.loads(ran.stdout.splitlines()[-1])
    assert temporaries > 64 * 2**20
    pages = temporaries / os.sysconf("SC_PAGESIZE")
    assert sum(faults[:2]) > pages / 2  # the first steps allocate
    steps = faults[2:]
    assert sum(steps) / len(steps) < pages / 50


@pytest.mark.skipif(sys.platform != "linux", reason="sets parameters of glibc")
def test_an_old_glibc_keeps_its_defaults(monkeypatch):
    """It refuses the first parameter, and the second alone would do harm."""
    asked = []
    refuse = lambda parameter, _: asked.append(parameter) or 0
    monkeypatch.setattr(ctypes, "CDLL", lambda _: types.SimpleNamespace(mallopt=refuse))
    keep_freed_memory()
    assert asked == [M_MMAP_THRESHOLD]
