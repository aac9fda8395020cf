"""Text from outside, as it is printed."""

import pytest

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


def test_both_ends_of_a_long_text_stay():
    assert printable("start" + "x" * 1000 + "end", 20) == "startxxxx...xxxxxend"
