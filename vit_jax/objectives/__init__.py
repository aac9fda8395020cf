"""Training objectives by name: classification, distillation, and learning from images alone.

An objective owns the loss and what it keeps from step to step; `vit_jax.objectives.protocol` says what a trainer asks.
`create_objective("mae", encoder, masking_ratio=0.6)` builds one around a model of `create_model`.
"""

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from vit_jax.registry import check_keywords, unknown

if TYPE_CHECKING:
    from flax import linen as nn

    from vit_jax.objectives.protocol import Objective

OBJECTIVES = {
    "classify": "vit_jax.objectives.classify:Classify",
    "deep_supervision": "vit_jax.objectives.deep_supervision:DeepSupervision",
    "dino": "vit_jax.objectives.dino:Dino",
    "distill": "vit_jax.objectives.distill:Distill",
    "es_vit": "vit_jax.objectives.es_vit:EsViT",
    "lejepa": "vit_jax.objectives.lejepa:LeJEPA",
    "levjepa": "vit_jax.objectives.levjepa:LeVJEPA",
    "levjepa_nd": "vit_jax.objectives.levjepa_nd:LeVJEPAND",
    "mae": "vit_jax.objectives.mae:MAE",
    "mp3": "vit_jax.objectives.mp3:MP3",
    "mpp": "vit_jax.objectives.mpp:MPP",
    "simmim": "vit_jax.objectives.simmim:SimMIM",
}


def list_objectives() -> list[str]:
    """Names that `create_objective` takes, in alphabetical order."""
    return sorted(OBJECTIVES)


def create_objective(name: str, model: "nn.Module", /, **kwargs: Any) -> "Objective":
    """The objective `name` around `model`: the classifier, the student, or the encoder that is to learn.

    Raises ValueError for an unknown name or argument (with the nearest names), and for a value that it refuses.
    """
    objective_class = _find(name)
    first = dataclasses.fields(objective_class)[0].name
    check_keywords(name, objective_class, {first: model, **kwargs}, kind="objective")
    return objective_class(model, **kwargs)


def objective_arguments(name: str) -> list[str]:
    """Names of the keywords that the objective `name` takes. Raises ValueError for an unknown name."""
    return [field.name for field in dataclasses.fields(_find(name))[1:]]


def _find(name: str) -> type:
    if name not in OBJECTIVES:
        raise ValueError(unknown("objective", name, list_objectives()))
    file, _, class_name = OBJECTIVES[name].partition(":")
    return getattr(importlib.import_module(file), class_name)
