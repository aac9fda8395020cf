"""Model sizes that the presets of many models share."""

from typing import Any

_TINY_BLOCKS = dict(dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128)
TINY = dict(image_size=32, patch_size=4) | _TINY_BLOCKS
TINY_SERIES = dict(seq_len=256, patch_size=8) | _TINY_BLOCKS
TINY_VIDEO = dict(image_size=32, image_patch_size=8, frames=8, frame_patch_size=2) | _TINY_BLOCKS


def vit_sizes(dim: int, depth: int = 12, patch_size: int = 16, **others: Any) -> dict[str, Any]:
    """Arguments of a ViT from the family of arXiv:2010.11929: heads of 64 features and `mlp_dim` four times `dim`."""
    return dict(image_size=224, patch_size=patch_size, dim=dim, depth=depth, heads=dim // 64, mlp_dim=4 * dim) | others
