"""Ranges in the annotations of fields: they are enforced on the command line and in files, with clear messages."""

import math
import typing
from pathlib import Path
from typing import Annotated, Literal

import pytest

import train.convert
import train.plan
import train.predict
import train.probe
from train.commandline.ranges import Range, accepts, expected, hints, most_values, readable, violations
from train.config import Augment, Config, Data, Distill, Optim

HALF_OPEN = Range(0, 1, open_high=True)


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, -3], [1.0, True, "1", None, [1]]),
        (float, [0.5, 1, -2], [math.nan, math.inf, -math.inf, True, "1", None]),
        (Annotated[int, Range(1, 3)], [1, 3], [0, 4, 10**30, 2.0]),
        (Annotated[float, HALF_OPEN], [0, 0.5], [1, 1.0, -1e-300, math.nan]),
        (Annotated[float, Range(0, 1, open_low=True)], [1, 1e-300], [0, 0.0, 1.1]),
        (Annotated[float, Range(2, 3, or_zero=True)], [0, 2, 3.0], [1, -1, 3.5]),
        (bool, [True], [1, 0, "true", None]),
        (str, ["a", " "], ["", "a\0b", 1, None, b"a"]),
        (str | None, ["a", None], ["", 0]),
        (Literal["a", "b"], ["a"], ["c", None, ["a"]]),
        (tuple[Annotated[int, Range(1, 3)], ...] | None, [None, (1,), (1, 2, 3)], [(0,), ("1",), 1, [1], {}]),
        (Literal["own"] | tuple[int, int], ["own", (1, 2)], [(1,), (1, 2, 3), "mine", (1, None)]),
    ],
)
def test_a_field_accepts_its_type_within_its_range(hint, right, wrong):
    assert [value for value in right if not accepts(hint, value)] == []
    assert [value for value in wrong if accepts(hint, value)] == []


def test_ranges_say_what_they_hold():
    assert expected(Annotated[int, Range(1, 1000)]) == "a whole number from 1 to 1,000"
    assert expected(Annotated[float, HALF_OPEN]) == "a number at least 0 and below 1"
    assert expected(Annotated[float, Range(1e-6, 5, or_zero=True)] | None) == "a number 0 or from 1e-06 to 5"
    assert expected(tuple[str, ...]) == "one or more values, each text that is not empty"


def unlimited(hint):
    """The numbers in an annotation that have no range."""
    if typing.get_origin(hint) is Annotated:
        return []
    return [hint] if hint in (int, float) else [number for part in typing.get_args(hint) for number in unlimited(part)]


OPTIONS = [module.Options for module in (train.convert, train.plan, train.predict, train.probe)]


@pytest.mark.parametrize("kind", [Config, Data, Augment, Optim, Distill, *OPTIONS])
def test_every_number_of_a_command_has_a_range(kind):
    assert [name for name, hint in hints(kind).items() if unlimited(hint)] == []


@pytest.mark.usefixtures("unchecked_types")
def test_violations_are_named_down_to_the_nested_field():
    data, optim = Data(image_size=(8,), mean=(math.nan,)), Optim(lr=True)
    found = [(name, value) for name, value, _ in violations(Config(steps="many", seed=None, data=data, optim=optim))]
    assert found[:2] == [("steps", "many"), ("seed", None)]
    assert [name for name, _ in found[2:]] == ["data.image_size", "data.mean", "optim.lr"]
    assert list(violations(Data(name=""))) == [("name", "", "text that is not empty")]


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (Annotated[int, Range(1, 3)], ["2", "99"], ["x", "1.5", ""]),
        (float | None, ["1e3", "nan", "None"], ["x"]),
        (Literal["a", "b"], ["a"], ["c"]),
        (tuple[int, int] | None, ["1 2", "None"], ["1", "1 2 3", "1 x"]),
        (tuple[float, ...], ["1", "1 2"], ["1 x"]),
    ],
)
def test_what_can_be_read_as_a_type(hint, right, wrong):
    assert [text for text in right if not readable(hint, tuple(text.split()))] == []
    assert [text for text in wrong if readable(hint, tuple(text.split()))] == []
    assert not readable(int, ())
    assert not readable(tuple[str, ...], ())
    for empty in ("", "a\0b"):
        assert not readable(str, (empty,))
        assert not readable(Path | None, (empty,))
        assert not readable(tuple[Path, ...], ("a", empty))


def test_how_many_values_an_option_takes():
    assert most_values(Annotated[int, Range(1, 3)]) == most_values(Path | None) == 1
    assert most_values(Literal["own"] | tuple[int, int]) == 2
    assert most_values(Annotated[tuple[Path, ...], "positional"]) == math.inf
