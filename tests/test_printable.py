"""Untrusted text is escaped and shortened before it is printed."""

import pytest

from train.data.dataset import warn
from train.data.transforms import Unreadable
from train.errors import Stopped, UserError
from train.run.progress import Progress
from vit_jax.printable import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight"),
        ("naïve Größe 犬 ☃", "naïve Größe 犬 ☃"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("two\nlines\r\u2028\x85", r"two\nlines\r\u2028\x85"),
        ("exe\u202egpj", r"exe\u202egpj"),
        ("no\udcffutf", r"no\udcffutf"),
        ("zero\u200bwidth\U000e0041", r"zero\u200bwidth\U000e0041"),
        (3, "3"),
    ],
)
def test_what_a_terminal_acts_on_is_escaped(text, expected):
    assert printable(text) == expected


@pytest.mark.parametrize("text", ["a" * 200_000, "\x1b" * 200_000, "a" * 70 + "\x00" * 10, "a" * 81])
@pytest.mark.parametrize("limit", [20, 21, 80])
def test_long_text_loses_its_middle(text, limit):
    short = printable(text, limit)
    assert len(short) == limit
    assert "..." in short
    assert short.isprintable()


@pytest.mark.parametrize("kind", [UserError, Stopped, Unreadable])
def test_errors_that_are_shown_are_printable(kind):
    message = str(kind(f"class \x1b[2J{'x' * 200_000}\nnext line\u202e"))
    first, second = message.split("\n")
    assert second == r"next line\u202e"
    assert first.startswith(r"class \x1b[2Jxxx")
    assert len(first) == 2000
    assert first.isprintable()


def test_what_a_run_says_is_printable(capsys):
    name = "class \x1b[2J\u202e[bold]"
    with Progress(0, 1) as progress:
        progress.message(name)
        progress.warn(name)
    warn(name)
    printed = capsys.readouterr()
    assert printed.out == "class \\x1b[2J\\u202e[bold]\nclass \\x1b[2J\\u202e[bold]\n"
    assert printed.err == "class \\x1b[2J\\u202e[bold]\n"


def test_both_ends_of_a_long_text_stay():
    assert printable("start" + "x" * 1000 + "end", 20) == "startxxxx...xxxxxend"
