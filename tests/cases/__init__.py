"""One file for each model, with the name of the model's file: rows, repairs of upstream, published sizes, a random row.

CASES: rows; the first row of a model is its simplest form.
PUBLISHED: "name/preset" to (published number of parameters with 1000 classes, relative tolerance).
draw(rng): rows with randomly drawn arguments, one for each name.
EXEMPT (optional): tests of tests/test_models.py that cannot pass for the model, each with its reason.
example(model), for models without images: the shape of one input of a model built from a preset.
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
CLASSIFIERS = [name for name, case in FIRST.items() if "num_classes" in case.kwargs]  # of any input
IMAGE_CLASSIFIERS = [name for name in CLASSIFIERS if FIRST[name].takes_images]


def file_of(name: str):
    """The file with the rows of the model `name`."""
    return FILES[name.partition(":")[0]]


def holds_for(test: str, names: list[str] = IMAGE_CLASSIFIERS) -> list[str]:
    """The models of `names` that are not exempt from `test`."""
    return [name for name in names if test not in getattr(file_of(name), "EXEMPT", {})]


def example_shape(model) -> tuple[int, ...]:
    """Shape of one input of `model`, which was built from a preset."""
    file = FILES[type(model).__module__.rpartition(".")[2]]
    square_image = lambda model: (1, model.image_size, model.image_size, 3)
    return getattr(file, "example", square_image)(model)


def drawn_cases(seed: int) -> dict[str, Case]:
    """A row with randomly drawn arguments for each name."""
    drawn = [case for name, file in FILES.items() for case in file.draw(random.Random(f"{name} {seed}"))]
    return {case.name: case for case in drawn}
