"""The fuzzer detects every kind of fault that it claims to, and finds none in the readers of weights and images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="counts address space as Linux does")

PLANTED = """
import collections, importlib, os, signal, subprocess, sys, time
from benchmarks import fuzz

Kind = collections.namedtuple("Kind", "make targets read declared share")

def make(folder):
    (folder / "file").write_bytes(b"0123456789")
    (folder / "evil.py").write_text("raise SystemExit")

def raising(error):
    def read(folder, file):
        raise error
    return read

def spin(folder, file):
    while True:
        pass

def too_much(folder, file):
    bytearray(3 << 30)

def hides(folder, file):
    try:
        too_much(folder, file)
    except MemoryError:
        raise ValueError("is damaged")

def swallows(folder, file):
    try:
        eval("1 + 1")
    except Exception:
        pass

READERS = {
    "reads": lambda folder, file: file.read_bytes(),
    "refuses": raising(ValueError("is damaged")),
    "writes inside": lambda folder, file: (folder / "draft").write_text("x"),
    "crash": lambda folder, file: os.kill(os.getpid(), signal.SIGSEGV),
    "exits": lambda folder, file: os._exit(0),
    "spins": spin,
    "waits": lambda folder, file: time.sleep(1000),
    "evaluates": lambda folder, file: eval("1 + 1"),
    "swallows": swallows,
    "system": lambda folder, file: os.system("true"),
    "subprocess": lambda folder, file: subprocess.run(["true"]),
    "imports": lambda folder, file: importlib.import_module("files.evil"),
    "writes": lambda folder, file: (folder.parents[2] / "outside").write_text("x"),
    "removes": lambda folder, file: (folder.parents[1] / "findings.jsonl").unlink(),
    "memory": too_much,
    "hides": hides,
    "traceback": raising(KeyError("x")),
    "exit": raising(SystemExit(1)),
    "subclass": raising(UnicodeError("is damaged")),
    "escape": raising(ValueError("\\x1b[2J")),
    "long": raising(ValueError("x" * 5000)),
}

def if_damaged(read):
    return lambda folder, file: None if file.read_bytes() == b"0123456789" else read(folder, file)

kinds = {name: Kind(make, "file", if_damaged(read), (ValueError,), 1) for name, read in READERS.items()}
sys.exit(fuzz.main(sys.argv[1:], kinds))
"""


def run(*command: str) -> tuple[int, dict[str, dict[str, int]], str]:
    """The exit status, the table by kind and column, and the whole output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines = done.stdout.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("kind ")), len(lines))
    columns = [line.split() for line in lines[start : start + 1]]
    table = {
        line[:16].strip(): dict(zip(columns[0][1:], (int(n.replace(",", "")) for n in line[16:].split()), strict=True))
        for line in lines[start + 1 :]
        if line[16:].replace(",", "").replace(" ", "").isdigit()
    }
    return done.returncode, table, done.stdout


@linux
def test_planted_faults_are_found(tmp_path):
    out = tmp_path / "out"
    files = 21
    status, table, printed = run("-c", PLANTED, f"--files={files}", "--jobs=2", "--seconds=0.1", f"--out={out}")
    assert status == 1, printed
    found = {
        kind: {name for name in ("crash", "hang", "code", "memory", "traceback", "message") if row[name]}
        for kind, row in table.items()
    }
    assert found == {
        "reads": set(),
        "refuses": set(),
        "writes inside": set(),
        "crash": {"crash"},
        "exits": {"crash"},
        "spins": {"hang"},
        "waits": {"hang"},
        "evaluates": {"code"},
        "swallows": {"code"},
        "system": {"code"},
        "subprocess": {"code"},
        "imports": {"code"},
        "writes": {"code"},
        "removes": {"code"},
        "memory": {"memory"},
        "hides": {"memory"},
        "traceback": {"traceback"},
        "exit": {"traceback"},
        "subclass": {"traceback"},
        "escape": {"message"},
        "long": {"message"},
    }, printed
    assert all(row["files"] == 1 for row in table.values())
    assert not (tmp_path / "outside").exists()
    entries = [json.loads(line) for line in (out / "findings.jsonl").read_text().splitlines()]
    assert len(entries) == 18
    assert all(Path(entry["file"]).is_file() for entry in entries)


@linux
def test_the_readers_of_weights_and_images_hold(tmp_path):
    pytest.importorskip("torch")
    arguments = ("--files=600", "--kinds", "weights", "images", "--jobs=1", f"--out={tmp_path / 'out'}")
    status, table, printed = run("benchmarks/fuzz.py", *arguments)
    assert status == 0, printed
    assert sum(row["files"] for row in table.values()) == 600
    assert all(row["read"] and row["refused"] for row in table.values())
    assert not (tmp_path / "out").exists()


@linux
def test_the_readers_of_datasets_hold(tmp_path):
    """A few files; benchmarks/results/malformed-data.log has several hundred."""
    arguments = ("--files=60", "--kinds", "tables", "arrays", "shards", "--jobs=1", f"--out={tmp_path / 'out'}")
    status, table, printed = run("benchmarks/fuzz.py", *arguments)
    assert status == 0, printed
    assert sum(row["files"] for row in table.values()) == 60
    assert all(row["read"] and row["refused"] for row in table.values())
