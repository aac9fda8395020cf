"""vit-jax: the vision transformers of vit-pytorch in JAX and Flax.

`create_model("t2t/tiny", num_classes=10)` builds any model by name, and `load_pretrained` loads published weights.
Every model class is also importable from here (`from vit_jax import CaiT`). A model's file is imported on first use.
"""

import importlib

from vit_jax.registry import MODELS, create_model, list_models, list_presets

__version__ = "0.1.0"

# Classes of models with a plain name: those names are unique. Models named "file:Class" need create_model.
_CLASSES = {target.partition(":")[2]: target for name, target in MODELS.items() if ":" not in name}
_CLASSES["DistillableViT"] = MODELS["distill:DistillableViT"]
_PRETRAINED = ("list_pretrained", "load_pretrained", "save_pretrained")

__all__ = ["create_model", "list_models", "list_presets", *_PRETRAINED, *_CLASSES]


def __getattr__(name: str):
    if name in _PRETRAINED:
        return getattr(importlib.import_module("vit_jax.pretrained"), name)
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file, _, class_name = _CLASSES[name].partition(":")
    return getattr(importlib.import_module(file), class_name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PRETRAINED, *_CLASSES])
