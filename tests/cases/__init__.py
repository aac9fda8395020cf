"""One file for each model, named as the model's: its rows, repairs of its upstream twin, published sizes, a draw.

CASES: rows; the first of a name is its plainest form.
PUBLISHED: "name/preset" to (parameters with 1000 classes, relative tolerance), for every preset but "tiny".
draw(rng): rows with other arguments, drawn at random, one for each name.
EXEMPT, if there is one: tests of tests/test_models.py that cannot hold for the model, each with its reason.
"""

import importlib
import pkgutil
import random

from tests.cases.case import Case

FILES = {
    info.name: importlib.import_module(f"tests.cases.{info.name}")
    for info in pkgutil.iter_modules(__path__)
    if info.name not in ("case", "repairs")
}
CASES = [case for file in FILES.values() for case in file.CASES]
FIRST = {case.name: case for case in reversed(CASES)}
PUBLISHED = {preset: size for file in FILES.values() for preset, size in file.PUBLISHED.items()}
CLASSIFIERS = [name for name, case in FIRST.items() if "num_classes" in case.kwargs]


def classifiers(test: str) -> list[str]:
    """Names of the classifiers that `test` holds for."""
    return [name for name in CLASSIFIERS if test not in getattr(FILES[name.partition(":")[0]], "EXEMPT", {})]


def drawn_cases(seed: int) -> dict[str, Case]:
    """A row for each name, with arguments that nobody chose."""
    drawn = [case for name, file in FILES.items() for case in file.draw(random.Random(f"{name} {seed}"))]
    return {case.name: case for case in drawn}
