"""XCiT: attention between features instead of tokens, at a cost linear in the number of patches.

Source: El-Nouby et al. 2021, arXiv:2106.09681. Upstream: vit_pytorch/xcit.py.
Differs from upstream: layers drop only when `train` (upstream also drops them at evaluation), and their running
statistics move even then; images and patches may be non-square, of any number of `channels`; `num_classes=0` gives
the class token, (b, 1, d); tokens and positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: patches are projected by one linear map (paper: convolutions), positions are learned, the
temperature is an exponential, no bias in query, key and value; by default LayerScale starts at a value by the layer's
index, as upstream's, which is 1e-6 in all layers behind the 18th (`layer_scale_init` and the paper's presets: at one
value by the depth of the model).
Axes: b batch, n patches, m context, d dim, h heads, i and j features of a head, or query and key, k classes.
"""

import functools
from typing import ClassVar

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vit_jax.layers import BatchNorm, ContextAttention, Dense, DepthwiseConv, NormHead, ToHeads, attend, gelu
from vit_jax.layers.check import expect, patch_grid
from vit_jax.layers.norm import LayerNorm, l2_normalize
from vit_jax.layers.presets import TINY, vit_sizes
from vit_jax.layers.rules import feed_forward_rules, sequential_rules
from vit_jax.layers.shapes import Images, Output, Tokens
from vit_jax.models import cait


class XCAttention(nn.Module):
    """Cross-covariance attention: a map of features by features, of unit queries and keys along the tokens."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        qkv = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(LayerNorm(name="norm")(x))
        q, k, v = (rearrange(part, "b h n i -> b h i n") for part in qkv)
        temperature = self.param("temperature", nn.initializers.ones, (self.heads, 1, 1))
        sharpness = jnp.exp(temperature.astype(jnp.float32)).astype(x.dtype)[None]
        q, k = l2_normalize(q) * sharpness, l2_normalize(k)
        out = attend(self, q, k, v, scale=1.0, dropout=self.dropout, train=train)
        out = rearrange(out, "b i (h n) -> b n (h i)", h=self.heads)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class LocalPatchInteraction(nn.Module):
    """Two depthwise convolutions over the grid of patches, which has `rows`: tokens speak to their neighbours."""

    kernel: int
    rows: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        x = rearrange(LayerNorm(name="norm")(x), "b (h w) d -> b h w d", h=self.rows)
        x = DepthwiseConv(self.kernel, name="conv1")(x)
        x = gelu(BatchNorm(name="batch_norm")(x, train=train))
        x = DepthwiseConv(self.kernel, name="conv2")(x)
        return rearrange(x, "b h w d -> b (h w) d")


class XCiT(cait.CaiT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the class token (b, 1, d).

    The arguments are CaiT's, but that without `layer_scale_init` every LayerScale starts at 0.1 in layers 1 to 18 and
    at 1e-6 behind.
    Raises ValueError when `patch_size` does not divide `image_size`, or for an even `local_patch_kernel_size`.
    """

    local_patch_kernel_size: int = 3

    leading: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        kernel = self.local_patch_kernel_size
        expect(self, "local_patch_kernel_size", kernel > 0 and kernel % 2 == 1, "an odd number")
        super().__post_init__()

    def scale_by_index(self, layer: int) -> float:
        return 0.1 if layer < 18 else 1e-6

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        token, x = self.embed(images, train=train)
        rows, _ = patch_grid(images.shape[1:3], self.patch_size)
        local = functools.partial(LocalPatchInteraction, self.local_patch_kernel_size, rows)
        x = self.make_transformer(self.depth, XCAttention, "xcit_transformer", local=local)(x, train=train)
        x = LayerNorm(name="final_norm")(x)
        token = self.make_transformer(self.cls_depth, ContextAttention, "cls_transformer")(token, x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(token[:, 0]) if self.num_classes else token


def _paper(dim, depth, heads, patch_size):
    layers = dict(cls_depth=2, layer_scale_init=1.0 if depth <= 12 else 1e-5)
    return vit_sizes(dim, depth, patch_size, heads=heads, dim_head=dim // heads, **layers)


_SIZES = dict(n12=(128, 12, 4), t12=(192, 12, 4), t24=(192, 24, 4), s12=(384, 12, 8), s24=(384, 24, 8))
_SIZES |= dict(m24=(512, 24, 8), l24=(768, 24, 16))
PRESETS = {
    "tiny": TINY | dict(depth=3, cls_depth=1),
    **{f"{name}_p{patch}": _paper(*sizes, patch) for patch in (16, 8) for name, sizes in _SIZES.items()},
}

TORCH_RULES = (
    (r"local_scale_(\d+)", r"layers.\1.1.scale"),
    (r"xcit_transformer/ff_scale_(\d+)", r"xcit_transformer.layers.\1.2.scale"),
    *sequential_rules(r"local_(\d+)", r"layers.\1.1.fn.net", norm=0, conv1=2, batch_norm=3, conv2=5),
    *feed_forward_rules(r"xcit_transformer/ff_(\d+)", r"xcit_transformer.layers.\1.2.fn.net"),
    *cait.TORCH_RULES,
)
