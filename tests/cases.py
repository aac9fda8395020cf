"""One row or more for each model: how to build it small, here and upstream, and how many parameters it has."""

import dataclasses
import importlib
from typing import Any

from vit_jax import create_model


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of the registry, its arguments, its input and its upstream class ("file:Class" of vit_pytorch)."""

    name: str
    upstream: str
    input_shape: tuple[int, ...]
    parameters: int
    kwargs: dict[str, Any]
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.note}" if self.note else self.name


@dataclasses.dataclass(frozen=True)
class Inner:
    """A module for an argument that takes one."""

    name: str
    upstream: str
    kwargs: dict[str, Any]


def build(case: Case | Inner, **overrides):
    """The Flax model of a row."""
    kwargs = {**case.kwargs, **overrides}
    return create_model(case.name, **{k: build(v) if isinstance(v, Inner) else v for k, v in kwargs.items()})


def build_upstream(case: Case | Inner, **overrides):
    """The torch model of a row."""
    kwargs = {**case.kwargs, **overrides}
    file, _, class_name = case.upstream.partition(":")
    upstream = getattr(importlib.import_module(f"vit_pytorch.{file}"), class_name)
    return upstream(**{k: build_upstream(v) if isinstance(v, Inner) else v for k, v in kwargs.items()})


BLOCKS = dict(dim=24, depth=2, heads=3, dim_head=8, mlp_dim=40)
IMAGE = dict(image_size=16, patch_size=4, num_classes=5)
INPUT = (2, 16, 16, 3)
TRANSFORMER = Inner("vit:Transformer", "vit:Transformer", BLOCKS)
T2T = dict(image_size=16, num_classes=5, t2t_layers=((3, 2), (3, 2)), **BLOCKS)
PIT = {**IMAGE, **BLOCKS, "depth": (1, 2), "heads": (3, 6)}

CASES = [
    Case("vit", "vit:ViT", INPUT, 0, IMAGE | BLOCKS),
    Case("vit", "vit:ViT", INPUT, 0, IMAGE | BLOCKS | dict(pool="mean"), "mean"),
    Case("vit", "vit:ViT", INPUT, 0, IMAGE | BLOCKS | dict(num_classes=0), "tokens"),
    Case("vit", "vit:ViT", INPUT, 0, IMAGE | BLOCKS | dict(heads=1, dim_head=24), "one-head"),
    Case(
        "vit",
        "vit:ViT",
        (2, 8, 12, 1),
        0,
        IMAGE | BLOCKS | dict(image_size=(8, 12), patch_size=(4, 2), channels=1),
        "oblong",
    ),
    Case("vit:Transformer", "vit:Transformer", (2, 7, 24), 0, BLOCKS),
    Case("simple_vit", "simple_vit:SimpleViT", INPUT, 0, IMAGE | BLOCKS),
    Case(
        "simple_vit",
        "simple_vit:SimpleViT",
        (2, 8, 12, 1),
        0,
        IMAGE | BLOCKS | dict(image_size=(8, 12), patch_size=(4, 2), channels=1),
        "oblong",
    ),
    Case("deepvit", "deepvit:DeepViT", INPUT, 0, IMAGE | BLOCKS),
    Case("deepvit", "deepvit:DeepViT", INPUT, 0, IMAGE | BLOCKS | dict(pool="mean"), "mean"),
    Case("cait", "cait:CaiT", INPUT, 0, IMAGE | BLOCKS | dict(cls_depth=2)),
    Case("t2t", "t2t:T2TViT", INPUT, 0, T2T),
    Case(
        "t2t",
        "t2t:T2TViT",
        (2, 32, 32, 1),
        0,
        T2T | dict(image_size=32, t2t_layers=((7, 4), (3, 2), (3, 2)), channels=1, pool="mean"),
        "three-stages",
    ),
    Case(
        "t2t",
        "t2t:T2TViT",
        INPUT,
        0,
        dict(image_size=16, num_classes=5, dim=24, t2t_layers=((3, 2), (3, 2)), transformer=TRANSFORMER),
        "transformer",
    ),
    Case("pit", "pit:PiT", INPUT, 0, PIT),
    Case(
        "pit",
        "pit:PiT",
        (2, 24, 24, 1),
        0,
        PIT | dict(image_size=24, patch_size=6, depth=(1, 1, 1), heads=2, channels=1),
        "three-stages",
    ),
    Case("efficient", "efficient:ViT", INPUT, 0, IMAGE | dict(dim=24, transformer=TRANSFORMER)),
    Case("efficient", "efficient:ViT", INPUT, 0, IMAGE | dict(dim=24, transformer=TRANSFORMER, pool="mean"), "mean"),
    Case("distill:DistillableViT", "distill:DistillableViT", INPUT, 0, IMAGE | BLOCKS),
]
