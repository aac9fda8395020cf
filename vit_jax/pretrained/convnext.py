"""timm's ConvNeXt: torchvision's network with timm's names of weights.

Source: Liu et al. 2022, arXiv:2201.03545. Reference: convnext.py of timm 1.0.31.
"""

from typing import ClassVar

from vit_jax.pretrained.layouts import Layout, TrailingAxes
from vit_jax.pretrained.network import TimmNetwork
from vit_jax.pretrained.torchvision import convnext

_BLOCK = "stages.{i}.blocks.{j}"


class ConvNeXt(TimmNetwork, convnext.ConvNeXt):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to pooled, normalised features (b, d).

    It has one argument more than torchvision's network.

    Args:
        conv_mlp: whether timm stores the linear layers of the blocks as 1x1 convolutions.
    """

    conv_mlp: bool = False

    timm_first: ClassVar[str] = "stem.0"
    timm_keywords: ClassVar[dict[str, str]] = {"dims": "dims", "depths": "depths", "ls_init_value": "layer_scale"}

    @property
    def num_features(self) -> int:
        return self.dims[-1]

    def torch_rules(self) -> tuple[tuple[str, str], ...]:
        stages = range(len(self.dims))
        return (
            (r"features_0_(\d)", r"stem.\1"),
            *((rf"features_{2 * i}_(\d)", rf"stages.{i}.downsample.\1") for i in stages),
            *((rf"features_{2 * i + 1}_(\d+)", rf"stages.{i}.blocks.\1") for i in stages),
            ("layer_scale", "gamma"),
            ("depthwise", "conv_dw"),
            (r"([^/]+)/ff/norm", r"\1.norm"),
            (r"ff/(fc\d)", r"mlp.\1"),
            ("norm", "head.norm"),
            ("head", "head.fc"),
        )

    @property
    def torch_layout(self) -> Layout:
        scale = TrailingAxes(f"{_BLOCK}.gamma", 2)
        return Layout((scale, TrailingAxes(f"{_BLOCK}.mlp.{{fc}}.weight", -2)) if self.conv_mlp else (scale,))


def _sizes(width, depths, conv_mlp=False):
    return dict(dims=tuple(width * 2**i for i in range(4)), depths=depths, conv_mlp=conv_mlp)


PRESETS = {
    "convnext_atto": _sizes(40, (2, 2, 6, 2), conv_mlp=True),
    "convnext_femto": _sizes(48, (2, 2, 6, 2), conv_mlp=True),
    "convnext_pico": _sizes(64, (2, 2, 6, 2), conv_mlp=True),
    "convnext_nano": _sizes(80, (2, 2, 8, 2), conv_mlp=True),
    "convnext_tiny": _sizes(96, (3, 3, 9, 3)),
    "convnext_small": _sizes(96, (3, 3, 27, 3)),
    "convnext_base": _sizes(128, (3, 3, 27, 3)),
    "convnext_large": _sizes(192, (3, 3, 27, 3)),
    "convnext_xlarge": _sizes(256, (3, 3, 27, 3)),
}

UNSUPPORTED = {
    "convnext_tiny_hnf": "its norm before pooling instead of after it",
    "convnext_large_mlp": "a further linear layer in its head",
    "convnext_xxlarge": "norms of two epsilons",
    "convnext_zepto_rms": "norms that subtract no mean",
    "convnext_zepto_rms_ols": "norms that subtract no mean",
    "test_convnext": "the approximate GELU",
    "test_convnext2": "the approximate GELU",
    "test_convnext3": "depthwise convolutions of several sizes",
}
UNSUPPORTED |= {f"convnext_{size}_ols": "a stem of overlapping patches" for size in ("atto", "femto", "pico", "nano")}
for _size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"):
    UNSUPPORTED[f"convnextv2_{_size}"] = "global response normalisation"
