"""A row, and how its Flax model and its torch model are built."""

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax import create_model


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of the registry, its arguments, its input and its upstream class."""

    name: str
    upstream: str  # "file:Class" of vit_pytorch, or "package.module:Class" for a torch class elsewhere
    input_shape: tuple  # of one array; or a tuple of shapes, for a list of images
    parameters: int  # of the torch model
    kwargs: dict[str, Any]
    note: str = ""
    maps: int = 0  # attention maps that can be collected
    keyword_inputs: dict[str, Any] = dataclasses.field(default_factory=dict)  # shapes; or integers, booleans
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # static keywords of the call
    call: Callable | None = None  # calls either model, if it takes several inputs: call(forward, x, **keywords)
    faint: tuple[str, ...] = ()  # patterns of parameters with gradients below the rounding errors of others
    unused: tuple[str, ...] = ()  # paths of parameters that have no effect, here and upstream
    repairs: tuple[Callable, ...] = ()  # functions that make upstream's class support the row
    tolerance: float = 1e-5  # relative, for values and gradients
    compiler_options: dict[str, Any] = dataclasses.field(default_factory=dict)  # for parity, instead of the tests'

    def __str__(self) -> str:
        return f"{self.name}-{self.note}" if self.note else self.name

    def is_faint(self, name: str) -> bool:
        """Whether the gradient of the parameter `name`, a torch key or a Flax path, is not compared exactly."""
        return any(re.search(pattern, name) for pattern in self.faint)

    def inputs(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Inputs of the model, and its keyword inputs."""
        normal = lambda shape: rng.standard_normal(shape, np.float32)
        keywords = {k: normal(v) if isinstance(v, tuple) else v for k, v in self.keyword_inputs.items()}
        return [normal(s) for s in self.input_shape] if self.takes_list else normal(self.input_shape), keywords

    @property
    def takes_list(self) -> bool:
        """Whether the input is a list of images (h, w, c)."""
        return isinstance(self.input_shape[0], tuple)

    @property
    def takes_images(self) -> bool:
        """Whether the input is a batch or a list of images."""
        return all(len(shape) == 3 for shape in self.image_shapes)

    @property
    def image_shapes(self) -> list[tuple[int, ...]]:
        """The shape of every image of the input, without the batch."""
        return list(self.input_shape) if self.takes_list else [self.input_shape[1:]]


@dataclasses.dataclass(frozen=True)
class Inner:
    """A module for an argument that takes one."""

    name: str
    upstream: str
    kwargs: dict[str, Any]


_BUILT = {}  # models of rows, by id: modules never change, and most tests of a row begin with its model


def build(case: Case | Inner, **overrides):
    """The Flax model of a row."""
    if overrides:
        return _build(case, **overrides)
    if id(case) not in _BUILT:
        _BUILT[id(case)] = case, _build(case)  # the case too, so that no other gets its id
    return _BUILT[id(case)][1]


def _build(case: Case | Inner, **overrides):
    kwargs = {**case.kwargs, **overrides}
    model = create_model(case.name, **{k: build(v) if isinstance(v, Inner) else v for k, v in kwargs.items()})
    return _called_as(case, model)


def _called_as(case: Case | Inner, model):
    """`model`, or a wrapper that calls it with `call`."""
    options, call = getattr(case, "options", {}), getattr(case, "call", None)
    if not options and not call:
        return model

    class Called(type(model)):
        def __call__(self, *args, **kwargs):
            forward = super().__call__
            return call(forward, *args, **kwargs, **options) if call else forward(*args, **kwargs, **options)

    fields = [f.name for f in dataclasses.fields(model) if f.init and f.name != "parent"]
    return Called(**{name: getattr(model, name) for name in fields})


def upstream_module(case: Case | Inner) -> str:
    """The full name of the module with the upstream class of a row."""
    module = case.upstream.partition(":")[0]
    return module if "." in module else f"vit_pytorch.{module}"


def upstream_class(case: Case | Inner):
    """The upstream class of a row, without its repairs."""
    importlib.import_module("tests.upstream")  # must come first: it makes vit_pytorch importable
    return getattr(importlib.import_module(upstream_module(case)), case.upstream.partition(":")[2])


def build_upstream(case: Case | Inner, **overrides):
    """The torch model of a row, with its repairs."""
    make = upstream_class(case)
    import torch

    torch.manual_seed(0)
    kwargs = {**case.kwargs, **overrides}
    kwargs = {k: build_upstream(v) if isinstance(v, Inner) else v for k, v in kwargs.items()}
    for repair in getattr(case, "repairs", ()):
        make = repair(make)
    module = make(**kwargs)
    if options := getattr(case, "options", {}):
        module.forward = functools.partial(module.forward, **options)
    if call := getattr(case, "call", None):
        module.forward = functools.partial(call, module.forward)
    return module


# Shared by many rows: a square image, an oblong image, and a small stack of blocks.
BLOCKS = dict(dim=24, depth=2, heads=3, dim_head=8, mlp_dim=40)
IMAGE = dict(image_size=16, patch_size=4, num_classes=5)
OBLONG = dict(image_size=(8, 12), patch_size=(4, 2), channels=1)
INPUT, OBLONG_INPUT = (2, 16, 16, 3), (2, 8, 12, 1)


def draw_blocks(rng) -> dict[str, Any]:
    """Randomly drawn sizes of a plain transformer."""
    sizes = dict(dim=8 * rng.randint(2, 6), depth=rng.randint(1, 3), heads=rng.randint(1, 4))
    return sizes | dict(dim_head=rng.choice((4, 7, 16)), mlp_dim=rng.randint(5, 60))


def draw_image(rng) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Randomly drawn arguments of a square image in patches, and the shape of the input."""
    patch, channels = rng.choice((2, 4, 6)), rng.randint(1, 3)
    side = patch * rng.randint(2, 4)
    image = dict(image_size=side, patch_size=patch, channels=channels, num_classes=rng.randint(2, 12))
    return image, (2, side, side, channels)
