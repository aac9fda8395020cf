"""Training objectives by name: classes, labels, numbers, distillation and self-supervised pretraining.

An objective defines the loss and the state that it keeps between steps. `vit_jax.objectives.protocol` is its interface
to the trainer. `create_objective("mae", encoder, masking_ratio=0.6)` builds one for a model of `create_model`.
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
    "feature_distill": "vit_jax.objectives.feature_distill:FeatureDistill",
    "lejepa": "vit_jax.objectives.lejepa:LeJEPA",
    "levjepa": "vit_jax.objectives.levjepa:LeVJEPA",
    "levjepa_nd": "vit_jax.objectives.levjepa_nd:LeVJEPAND",
    "mae": "vit_jax.objectives.mae:MAE",
    "mp3": "vit_jax.objectives.mp3:MP3",
    "mpp": "vit_jax.objectives.mpp:MPP",
    "multilabel": "vit_jax.objectives.multilabel:MultiLabel",
    "regress": "vit_jax.objectives.regress:Regress",
    "simmim": "vit_jax.objectives.simmim:SimMIM",
}


def list_objectives() -> list[str]:
    """Names that `create_objective` takes, in alphabetical order."""
    return sorted(OBJECTIVES)


def create_objective(name: str, model: "nn.Module", /, **kwargs: Any) -> "Objective":
    """Build the objective `name`.

    Args:
        name: one of `list_objectives()`.
        model: the model to train: the classifier, the student, or the encoder.
        **kwargs: further arguments of the objective.

    Raises:
        ValueError: for an unknown name or argument (the message lists similar names), or an invalid value.
    """
    objective_class = _find(name)
    first = dataclasses.fields(objective_class)[0].name
    check_keywords(name, objective_class, {first: model, **kwargs}, kind="objective")
    return objective_class(model, **kwargs)


def objective_arguments(name: str) -> list[str]:
    """Names of the keywords that the objective `name` takes.

    Raises:
        ValueError: for an unknown name.
    """
    return [field.name for field in dataclasses.fields(_find(name))[1:]]


def _find(name: str) -> type:
    if name not in OBJECTIVES:
        raise ValueError(unknown("objective", name, list_objectives()))
    file, _, class_name = OBJECTIVES[name].partition(":")
    return getattr(importlib.import_module(file), class_name)
