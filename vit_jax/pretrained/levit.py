"""timm's LeViT: `vit_jax.models.levit` in the paper's form, timm's names of weights, and the mean of its two heads.

Source: Graham et al. 2021, arXiv:2104.01136. Reference: levit.py of timm 1.0.31.
The position biases are timm's, divided by the root of the key's width, by which `vit_jax.models.levit` multiplies them.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from vit_jax.layers.check import pair
from vit_jax.layers.shapes import Images, Output
from vit_jax.models import levit
from vit_jax.pretrained.layouts import Biases, Layout, State, TrailingAxes, UnpackHeads
from vit_jax.pretrained.network import TimmNetwork


class LeViT(TimmNetwork, levit.LeViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    Args, other than those of `vit_jax.models.levit.LeViT` (`dim_value` is twice `dim_key`, `num_distill_classes` is
    `num_classes`):
        use_conv: whether timm stores linear layers as 1x1 convolutions.
    """

    dim_value: int = dataclasses.field(init=False, default=0)
    num_distill_classes: int | None = dataclasses.field(init=False, default=None)
    use_conv: bool = False

    timm_heads: ClassVar[tuple[str, ...]] = ("head.linear", "head_dist.linear")
    timm_first: ClassVar[str] = "stem.conv1.linear"
    timm_keywords: ClassVar[dict[str, str]] = {
        "img_size": "image_size",
        "embed_dim": "dim",
        "key_dim": "dim_key",
        "depth": "depth",
        "num_heads": "heads",
    }

    def __post_init__(self):
        object.__setattr__(self, "dim_value", 2 * self.dim_key)
        object.__setattr__(self, "num_distill_classes", self.num_classes or None)
        super().__post_init__()

    @property
    def num_features(self) -> int:
        return self._per_stage("dim")[-1]

    def __call__(self, images: Images, *, train: bool = False) -> Output:
        out = super().__call__(images, train=train)
        return (out[0] + out[1]) / 2 if self.num_classes else out

    def adapted(self, state: State, published: "LeViT", notify: Callable[[str], None]) -> State:
        """The state dict, without the norms of the heads if there are no classes."""
        if pair("image_size", self.image_size) != pair("image_size", published.image_size):
            raise ValueError(
                f"image_size={self.image_size!r}: expected {published.image_size}, as the position biases of LeViT's "
                "weights are for that size alone"
            )
        heads = () if self.num_classes else ("head.", "head_dist.")
        return {key: value for key, value in state.items() if not key.startswith(heads)}

    def torch_rules(self) -> tuple[tuple[str, str], ...]:
        block, down = r"stages.{0}.blocks.\1", "stages.{0}.downsample"
        rules = []
        for i in range(4):
            rules += [(f"stem_{i}", f"stem.conv{i + 1}.linear"), (f"stem_norm_{i}", f"stem.conv{i + 1}.bn")]
        for i in range(self.stages):
            rules += [
                (rf"attn_{2 * i}_(\d+)", f"{block}.attn".format(i)),
                (rf"ff_{2 * i}_(\d+)", f"{block}.mlp".format(i)),
                (f"attn_{2 * i - 1}_0/to_q", f"{down}.attn_downsample.q.ln".format(i)),
                (f"attn_{2 * i - 1}_0", f"{down}.attn_downsample".format(i)),
                (f"ff_{2 * i - 1}_0", f"{down}.mlp".format(i)),
            ]
        return (
            *rules,
            (r"to_([qkv])", r"\1"),
            ("to_out", "proj.ln"),
            ("pos_bias/embedding", "attention_biases"),
            (r"fc(\d)", r"ln\1"),
            ("conv", "linear"),
            ("norm", "bn"),
            ("mlp_head", "head.linear"),
            ("mlp_head_norm", "head.bn"),
            ("distill_head", "head_dist.linear"),
            ("distill_head_norm", "head_dist.bn"),
        )

    @property
    def torch_layout(self) -> Layout:
        attention, down = "stages.{s}.blocks.{i}.attn", "stages.{s}.downsample.attn_downsample"
        key, value, leaf = self.dim_key, self.dim_value, "{m}.{p}"
        linear = (f"{attention}.qkv", f"{attention}.proj.ln", "stages.{s}.blocks.{i}.mlp.{m}")
        linear += (f"{down}.kv", f"{down}.q.ln", f"{down}.proj.ln", "stages.{s}.downsample.mlp.{m}")
        convolutions = () if self.use_conv else tuple(TrailingAxes(f"{name}.linear.weight", 2) for name in linear)
        parts = tuple(f"{attention}.{name}.{leaf}" for name in "qkv")
        return Layout(
            (
                *convolutions,
                UnpackHeads(f"{attention}.qkv.{leaf}", parts, (key, key, value)),
                UnpackHeads(f"{down}.kv.{leaf}", (f"{down}.k.{leaf}", f"{down}.v.{leaf}"), (key, 4 * key)),
                Biases(f"{attention}.attention_biases", key**0.5),
                Biases(f"{down}.attention_biases", key**0.5),
            )
        )

    def torch_constants(self) -> dict[str, np.ndarray]:
        return {}


def _sizes(dim, depth, heads, key):
    sizes = dict(dim=dim, depth=depth, heads=heads, dim_key=key, mlp_mult=2)
    return dict(image_size=224, num_classes=1000, paper=True, **sizes)


_SIZES = {
    "128s": _sizes((128, 256, 384), (2, 3, 4), (4, 6, 8), 16),
    "128": _sizes((128, 256, 384), (4, 4, 4), (4, 8, 12), 16),
    "192": _sizes((192, 288, 384), (4, 4, 4), (3, 5, 6), 32),
    "256": _sizes((256, 384, 512), (4, 4, 4), (4, 6, 8), 32),
    "384": _sizes((384, 512, 768), (4, 4, 4), (6, 9, 12), 32),
}
PRESETS = {f"levit_{size}": sizes for size, sizes in _SIZES.items()}
PRESETS |= {f"levit_conv_{size}": sizes | dict(use_conv=True) for size, sizes in _SIZES.items()}
