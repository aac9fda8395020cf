"""Base classes of models, and the checks, presets and conversion rules that many models share."""

from vit_jax.frames.actions import ActionTransformer
from vit_jax.frames.map_vit import MapViT
from vit_jax.frames.plain_vit import PlainViT
from vit_jax.frames.trajectory import Trajectory

__all__ = ["ActionTransformer", "MapViT", "PlainViT", "Trajectory"]
