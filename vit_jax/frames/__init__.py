"""Base classes of models, and the checks, presets and conversion rules that many models share."""

from vit_jax.frames.actions import ActionTransformer, Trajectory
from vit_jax.frames.map_vit import MapViT
from vit_jax.frames.plain_vit import PlainViT

__all__ = ["ActionTransformer", "MapViT", "PlainViT", "Trajectory"]
