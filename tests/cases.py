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
    keyword_inputs: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)  # shapes
    repairs: tuple[str, ...] = ()  # functions of tests/repairs.py, for what upstream cannot do
    tolerance: float = 1e-5  # relative, for values and gradients

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
    """The torch model of a row, repaired where upstream cannot do what the row asks for."""
    kwargs = {**case.kwargs, **overrides}
    kwargs = {k: build_upstream(v) if isinstance(v, Inner) else v for k, v in kwargs.items()}
    file, _, class_name = case.upstream.partition(":")
    make = getattr(importlib.import_module(f"vit_pytorch.{file}"), class_name)
    for name in getattr(case, "repairs", ()):
        make = getattr(importlib.import_module("tests.repairs"), name)(make)
    return make(**kwargs)


BLOCKS = dict(dim=24, depth=2, heads=3, dim_head=8, mlp_dim=40)
IMAGE = dict(image_size=16, patch_size=4, num_classes=5)
OBLONG = dict(image_size=(8, 12), patch_size=(4, 2), channels=1)
INPUT, OBLONG_INPUT = (2, 16, 16, 3), (2, 8, 12, 1)
TRANSFORMER = Inner("vit:Transformer", "vit:Transformer", BLOCKS)
DISTILLABLE = ("distill:DistillableViT", "distill:DistillableViT")
EFFICIENT = IMAGE | dict(dim=24, transformer=TRANSFORMER)
T2T = dict(image_size=16, num_classes=5, t2t_layers=((3, 2), (3, 2)), **BLOCKS)
T2T_AROUND = dict(image_size=16, num_classes=5, dim=24, t2t_layers=((3, 2), (3, 2)), transformer=TRANSFORMER)
T2T_LONG = T2T | dict(t2t_layers=((5, 3), (2, 1), (3, 2)), channels=1, pool="mean")
PIT = IMAGE | BLOCKS | dict(depth=(1, 2), heads=(3, 6))
PIT_LONG = PIT | dict(image_size=24, patch_size=6, depth=(1, 1, 1), heads=2, channels=1)

CASES = [
    Case("vit", "vit:ViT", INPUT, 10741, IMAGE | BLOCKS),
    Case("vit", "vit:ViT", INPUT, 10693, IMAGE | BLOCKS | dict(pool="mean"), "mean"),
    Case("vit", "vit:ViT", OBLONG_INPUT, 9480, IMAGE | BLOCKS | OBLONG | dict(num_classes=0), "oblong-tokens"),
    Case("vit", "vit:ViT", (2, 8, 12, 3), 9541, IMAGE | BLOCKS | dict(heads=1, dim_head=24), "smaller-one-head"),
    Case("vit:Transformer", "vit:Transformer", (2, 7, 24), 8864, BLOCKS),
    Case("simple_vit", "simple_vit:SimpleViT", INPUT, 10261, IMAGE | BLOCKS),
    Case(
        "simple_vit",
        "simple_vit:SimpleViT",
        OBLONG_INPUT,
        9096,
        IMAGE | BLOCKS | OBLONG | dict(num_classes=0),
        "oblong-tokens",
        repairs=("tokens",),
    ),
    Case("deepvit", "deepvit:DeepViT", INPUT, 10771, IMAGE | BLOCKS),
    Case("deepvit", "deepvit:DeepViT", INPUT, 10771, IMAGE | BLOCKS | dict(pool="mean"), "mean"),
    Case(
        "deepvit",
        "deepvit:DeepViT",
        OBLONG_INPUT,
        9462,
        IMAGE | BLOCKS | OBLONG | dict(num_classes=0),
        "oblong-tokens",
        repairs=("oblong_patches", "tokens"),
    ),
    Case("cait", "cait:CaiT", INPUT, 19797, IMAGE | BLOCKS | dict(cls_depth=2)),
    Case(
        "cait",
        "cait:CaiT",
        OBLONG_INPUT,
        14014,
        IMAGE | BLOCKS | OBLONG | dict(cls_depth=1, num_classes=0),
        "oblong-tokens",
        repairs=("oblong_patches", "tokens"),
    ),
    Case("t2t", "t2t:T2TViT", INPUT, 19138, T2T),
    Case("t2t", "t2t:T2TViT", (2, 16, 16, 1), 84882, T2T_LONG, "three-stages-mean"),
    Case("t2t", "t2t:T2TViT", INPUT, 19138, T2T_AROUND, "transformer"),
    Case(
        "t2t",
        "t2t:T2TViT",
        OBLONG_INPUT,
        11501,
        T2T | dict(image_size=(8, 12), channels=1, num_classes=0),
        "oblong-tokens",
        repairs=("oblong_t2t", "tokens"),
    ),
    Case("pit", "pit:PiT", INPUT, 37949, PIT),
    Case("pit", "pit:PiT", (2, 24, 24, 1), 47117, PIT_LONG, "three-stages"),
    Case(
        "pit",
        "pit:PiT",
        INPUT,
        31237,
        PIT | dict(heads=1, dim_head=24, mlp_dim=(40, 56)),
        "mlp-dims",
        repairs=("mlp_dims",),
    ),
    Case(
        "pit",
        "pit:PiT",
        OBLONG_INPUT,
        36264,
        PIT | OBLONG | dict(num_classes=0),
        "oblong-tokens",
        repairs=("oblong_pit", "tokens"),
    ),
    Case("efficient", "efficient:ViT", INPUT, 10789, EFFICIENT),
    Case("efficient", "efficient:ViT", INPUT, 10789, EFFICIENT | dict(pool="mean"), "mean"),
    Case(
        "efficient",
        "efficient:ViT",
        OBLONG_INPUT,
        9480,
        EFFICIENT | OBLONG | dict(num_classes=0),
        "oblong-tokens",
        repairs=("oblong_patches", "tokens"),
    ),
    Case(*DISTILLABLE, INPUT, 10741, IMAGE | BLOCKS),
    Case(*DISTILLABLE, INPUT, 10741, IMAGE | BLOCKS, "token", keyword_inputs=dict(distill_token=(1, 24))),
    Case(
        *DISTILLABLE,
        OBLONG_INPUT,
        9557,
        IMAGE | BLOCKS | OBLONG | dict(pool="mean"),
        "oblong-mean-token",
        keyword_inputs=dict(distill_token=(1, 24)),
    ),
    Case(
        *DISTILLABLE,
        INPUT,
        10616,
        IMAGE | BLOCKS | dict(num_classes=0),
        "tokens",
        repairs=("tokens",),
    ),
]
