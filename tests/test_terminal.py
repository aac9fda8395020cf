"""Output of commands: unprintable characters are escaped, and a closed pipe ends the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def start(code, **options):
    """Start a process that runs `code` as the body of a command."""
    imports = "import sys\nfrom train.commandline.terminal import run_command"
    script = f"{imports}\ndef main():\n {code}\nsys.exit(run_command(main))"
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


RICH = "from rich.console import Console; Console(file=sys.stdout).print(('x' * 70 + chr(10)) * 1500); return 0"


@pytest.mark.parametrize(
    "code",
    [
        "print('x' * 10**6); return 0",  # more than a pipe holds
        "print('x'); return 0",  # which is written when Python exits
        "print('x'); raise SystemExit(0)",  # as --help does
        RICH,
    ],
)
def test_a_reader_that_has_gone_ends_a_command_quietly(code):
    read, write = os.pipe()
    os.close(read)
    with start(code, stdout=write) as process:
        os.close(write)
        assert process.communicate()[1] == ""
    assert process.returncode == 141


def test_another_pipe_that_breaks_is_an_error():
    with start("import os; r, w = os.pipe(); os.close(r); os.write(w, b'x')", stdout=subprocess.PIPE) as process:
        assert "BrokenPipeError" in process.communicate()[1]
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii:strict", rb"caf\xe9 \udcff"), ("utf-8:strict", b"caf\xc3\xa9 \\udcff")]
)
def test_characters_that_standard_output_lacks_are_escaped(encoding, expected):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    code = r"print('caf\xe9 \udcff'); return 3"
    with start(code, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.buffer.read() == expected + b"\n"
        assert process.stderr.read() == ""
    assert process.returncode == 3


def test_every_command_runs_so():
    scripts = [path for path in (ROOT / "train").rglob("*.py") if "__main__" in path.read_text()]
    assert len(scripts) >= 6
    assert [path.name for path in scripts if "run_command(" not in path.read_text()] == []
