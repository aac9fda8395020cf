"""timm's Swin: torchvision's network with timm's names of weights, for images of one size.

Source: Liu et al. 2021, arXiv:2103.14030; Swin-S3: Chen et al. 2021, arXiv:2111.14725. Reference: timm 1.0.31's
swin_transformer.py.
Differs from timm: windows must tile the map of every stage (timm pads maps); they are square.
"""

import math
import re
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from vit_jax.frames.stages import per_stage
from vit_jax.layers.check import expect, pair, patch_grid
from vit_jax.layers.shapes import Images, Output
from vit_jax.pretrained.layouts import State
from vit_jax.pretrained.network import TimmNetwork
from vit_jax.pretrained.torchvision.swin import SwinTransformer


class Swin(TimmNetwork, SwinTransformer):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to normalised, pooled features (b, d).

    Args, other than those of torchvision's network:
        window_size: height and width of a window in pixels of the map, or one number for each stage. A window that is
            larger than the map of its stage becomes as large as the map.
        image_size: pixels, or (height, width).

    Raises:
        ValueError: if 4 does not divide `image_size`, or the windows of a stage do not tile its map.
    """

    window_size: int | tuple[int, ...] = 7
    image_size: int | tuple[int, int] = 224

    timm_first: ClassVar[str] = "patch_embed.proj"
    timm_keywords: ClassVar[dict[str, str]] = {
        "img_size": "image_size",
        "embed_dim": "embed_dim",
        "depths": "depths",
        "num_heads": "num_heads",
        "window_size": "window_size",
        "mlp_ratio": "mlp_ratio",
    }

    def __post_init__(self):
        super().__post_init__()
        tiled = not any(side % window for window, sides in zip(self.windows, self.maps, strict=True) for side in sides)
        maps = ", ".join(f"{rows}x{columns}" for rows, columns in self.maps)
        expect(self, "window_size", tiled, f"windows that tile the maps of image_size={self.image_size}, {maps} pixels")

    @property
    def maps(self) -> list[tuple[int, int]]:
        """Height and width of the map of each stage."""
        rows, columns = patch_grid(self.image_size, 4, "stride")
        return [(-(-rows // 2**i), -(-columns // 2**i)) for i in range(len(self.depths))]

    @property
    def windows(self) -> tuple[int, ...]:
        given = per_stage(self, "window_size", len(self.depths))
        return tuple(min(window, max(sides)) for window, sides in zip(given, self.maps, strict=True))

    @property
    def num_features(self) -> int:
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    def __call__(self, images: Images, *, train: bool = False) -> Output:
        if images.shape[1:3] != pair("image_size", self.image_size):
            raise ValueError(f"images of shape {images.shape}: expected sides of image_size={self.image_size!r}")
        return super().__call__(images, train=train)

    def adapted(self, state: State, published: "Swin", notify: Callable[[str], None]) -> State:
        """The state dict with tables of relative positions for the windows of this network."""
        if self.windows == published.windows:
            return state
        state = dict(state)
        for key in state:
            stage = re.fullmatch(r"layers\.(\d)\..*\.relative_position_bias_table", key)
            if stage and int(stage[1]) < len(self.windows) and _is_table(state[key]):  # otherwise conversion says so
                state[key] = resample_offsets(state[key], self.windows[int(stage[1])])
        notify(f"relative positions are resampled from windows of {published.windows} to {self.windows} pixels")
        return state

    def torch_rules(self) -> tuple[tuple[str, str], ...]:
        stages = range(len(self.depths))
        return (
            ("features_0_0", "patch_embed.proj"),
            ("features_0_2", "patch_embed.norm"),
            *((f"features_{2 * i}", f"layers.{i}.downsample") for i in stages),
            *((rf"features_{2 * i + 1}_(\d+)", rf"layers.{i}.blocks.\1") for i in stages),
            ("head", "head.fc"),
        )

    def torch_constants(self) -> dict[str, np.ndarray]:
        return {}


def _is_table(values: np.ndarray) -> bool:
    """Whether an array has a row for every offset in a square window."""
    return values.ndim == 2 and len(values) % 2 == 1 and math.isqrt(len(values)) ** 2 == len(values)


def resample_offsets(table: np.ndarray, window: int) -> np.ndarray:
    """Resample a table (offsets, heads) of square windows to windows of another size.

    As in timm (`resize_rel_pos_bias_table`, from BEiT), the given offsets are placed at distances that grow
    geometrically, so that those of neighbours stay, and the new ones are interpolated linearly between them.
    """
    old, new = math.isqrt(len(table)), 2 * window - 1
    if old == new:
        return table
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        is_too_far = (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2
        low, high = (low, ratio) if is_too_far else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(old // 2))
    given = np.concatenate([-distances[::-1], [0], distances])
    wanted = np.arange(new) - new // 2
    maps = table.reshape(old, old, -1).astype(np.float64)
    for axis in (0, 1):
        maps = np.apply_along_axis(lambda values: np.interp(wanted, given, values), axis, maps)
    return maps.reshape(new * new, -1).astype(table.dtype)


def _sizes(embed_dim, third_depth, window_size, image_size=224):
    heads = tuple(embed_dim // 32 * 2**i for i in range(4))
    depths = (2, 2, third_depth, 2)
    return dict(embed_dim=embed_dim, depths=depths, num_heads=heads, window_size=window_size, image_size=image_size)


PRESETS = {
    "swin_tiny_patch4_window7_224": _sizes(96, 6, 7),
    "swin_small_patch4_window7_224": _sizes(96, 18, 7),
    "swin_base_patch4_window7_224": _sizes(128, 18, 7),
    "swin_base_patch4_window12_384": _sizes(128, 18, 12, 384),
    "swin_large_patch4_window7_224": _sizes(192, 18, 7),
    "swin_large_patch4_window12_384": _sizes(192, 18, 12, 384),
    "swin_s3_tiny_224": _sizes(96, 6, (7, 7, 14, 7)),
    "swin_s3_small_224": _sizes(96, 18, (14, 14, 14, 7)),
    "swin_s3_base_224": _sizes(96, 30, (7, 7, 14, 7)),
}
