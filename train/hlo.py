"""Parse the text of a compiled program (HLO): collectives and estimated cycles."""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Number of collective operations in a program, by kind, and the bytes of their results per chip."""
    found, lines = {}, list(instructions(text))
    for kind in KINDS:
        # Asynchronous operations are counted at their end, where the line contains only the result.
        pattern = re.compile(rf" = (.*?) {kind}(?:-done)?\(")
        results = [(times, match[1]) for times, line in lines if (match := pattern.search(line))]
        if results:
            found[kind] = (sum(times for times, _ in results), sum(times * _bytes(result) for times, result in results))
    return found


def cycles(text: str) -> int:
    """Sum of the cycles that the TPU compiler estimates for each operation; 0 from other compilers."""
    pattern = re.compile(r'"estimated_cycles":"(\d+)"')
    return sum(times * int(match[1]) for times, line in instructions(text) if (match := pattern.search(line)))


def instructions(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a program, each with the number of times that loops execute it, as far as that is known."""
    computations, calls = _computations(text), defaultdict(list)
    for caller, lines in computations.items():
        for line in lines:
            for kind, names in re.findall(r"\b(body|calls|to_apply|\w+_computations?)=(\{.*?\}|[%\w.-]+)", line):
                for called in re.findall(r"[\w.-]+", names):
                    calls[called].append((caller, _trips(line, computations) if kind == "body" else 1))

    @functools.cache
    def times(name: str) -> int:
        return max((times(caller) * trips for caller, trips in calls[name]), default=1)

    for name, lines in computations.items():
        yield from ((times(name), line) for line in lines)


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a program, by name."""
    computations, name = defaultdict(list), ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split()[0].removeprefix("%")
        else:
            computations[name].append(line)
    return computations


def _trips(loop: str, computations: dict[str, list[str]]) -> int:
    """Number of iterations of a loop; 1 if it is unknown."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop):
        return int(known[1])
    # TPU compilers do not report it. JAX's loops count from zero to the only constant in their condition.
    condition = re.search(r"condition=%?([\w.-]+)", loop)
    lines = computations.get(condition[1], []) if condition else []
    bounds = [bound[1] for line in lines if (bound := re.search(r" s32\[\]\S* constant\((\d+)\)", line))]
    return int(bounds[0]) if len(bounds) == 1 else 1


def _bytes(result: str) -> int:
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
    return sum(BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays)
