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
from collections.abc import Callable, Iterator

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import (
    BatchNorm,
    Dense,
    DepthwiseConv,
    FeedForward,
    LayerNorm,
    NormHead,
    PatchEmbed,
    add_positions,
    gelu,
    l2_normalize,
    softmax,
)
from vit_jax.layers.check import check_images, pair, patch_grid
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.models import cait


class XCAttention(nn.Module):
    """Cross-covariance attention: a map of features by features, of unit queries and keys along the tokens."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h i) -> qkv b h i n", qkv=3, h=self.heads)
        temperature = self.param("temperature", nn.initializers.ones, (self.heads, 1, 1))
        sharpness = jnp.exp(temperature.astype(jnp.float32)).astype(x.dtype)[None]

        attn = softmax(jnp.einsum("bhin,bhjn->bhij", l2_normalize(q), l2_normalize(k)) * sharpness)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjn->bhin", attn, v), "b h i n -> b n (h i)")
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class LocalPatchInteraction(nn.Module):
    """Two depthwise convolutions over the grid of patches, which has `rows`: tokens speak to their neighbours."""

    kernel: int
    rows: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        x = LayerNorm(name="norm")(x)
        x = rearrange(x, "b (h w) d -> b h w d", h=self.rows)
        x = DepthwiseConv(self.kernel, name="conv1")(x)
        x = gelu(BatchNorm(name="batch_norm")(x, train=train))
        x = DepthwiseConv(self.kernel, name="conv2")(x)
        return rearrange(x, "b h w d -> b (h w) d")


class ClassAttention(cait.Attention):
    """CaiT's, without talking heads."""

    def mix_heads(self, name: str, maps: Float[Array, "b h i j"]) -> Float[Array, "b h i j"]:
        return maps


class ClassTransformer(cait.Transformer):
    """CaiT's blocks for the class token, with attention and LayerScale as they are here."""

    def branches(self, layer: int, context: Float[Array, "b m d"]) -> Iterator[tuple[str, Callable]]:
        attn = ClassAttention(self.heads, self.dim_head, self.dropout, name=f"attn_{layer}")
        yield "attn", functools.partial(attn, context=context)
        yield "ff", FeedForward(self.mlp_dim, self.dropout, name=f"ff_{layer}")

    def layer_scale(self, name: str, layer: int, dim: int) -> Float[Array, "1 1 d"]:
        by_index = 0.1 if layer < 18 else 1e-6
        epsilon = by_index if self.layer_scale_init is None else self.layer_scale_init
        return self.param(name, nn.initializers.constant(epsilon), (dim,)).reshape(1, 1, dim)


class XCATransformer(ClassTransformer):
    """Blocks of cross-covariance attention, local patch interaction and feed-forward."""

    kernel: int
    rows: int

    def branches(self, layer: int, context: None) -> Iterator[tuple[str, Callable]]:
        yield "attn", XCAttention(self.heads, self.dim_head, self.dropout, name=f"attn_{layer}")
        yield "local", LocalPatchInteraction(self.kernel, self.rows, name=f"local_{layer}")
        yield "ff", FeedForward(self.mlp_dim, self.dropout, name=f"ff_{layer}")


class XCiT(cait.CaiT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the class token (b, 1, d).

    `depth` layers are for patches among themselves, `cls_depth` for the class token over them. `layer_scale_init` is
    where every LayerScale starts; without it that is 0.1 in layers 1 to 18 and 1e-6 behind.
    Raises ValueError when `patch_size` does not divide `image_size`, or for an even `local_patch_kernel_size`.
    """

    local_patch_kernel_size: int = 3

    def __post_init__(self):
        if self.local_patch_kernel_size < 1 or self.local_patch_kernel_size % 2 == 0:
            raise ValueError(f"local_patch_kernel_size={self.local_patch_kernel_size}: expected an odd number")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        rows, columns = patch_grid(self.image_size, self.patch_size)
        init = nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", init, (self.dim,))
        pos_embedding = self.param("pos_embedding", init, (1, rows * columns, self.dim))

        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        x = add_positions(x, pos_embedding)
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)
        blocks = (self.heads, self.dim_head, self.mlp_dim, self.dropout, self.layer_dropout, self.layer_scale_init)
        local = (self.local_patch_kernel_size, patch_grid(images.shape[1:3], self.patch_size)[0])
        x = XCATransformer(self.depth, *blocks, *local, name="xcit_transformer")(x, train=train)
        x = LayerNorm(name="final_norm")(x)
        token = jnp.broadcast_to(cls_token.reshape(1, 1, self.dim), (len(x), 1, self.dim))
        token = ClassTransformer(self.cls_depth, *blocks, name="cls_transformer")(token, x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(token[:, 0]) if self.num_classes else token


def _paper(dim, depth, heads, patch_size):
    sizes = dict(dim=dim, depth=depth, cls_depth=2, heads=heads, dim_head=dim // heads, mlp_dim=4 * dim)
    return dict(image_size=224, patch_size=patch_size, layer_scale_init=1.0 if depth <= 12 else 1e-5, **sizes)


_SIZES = {
    "n12": (128, 12, 4),
    "t12": (192, 12, 4),
    "t24": (192, 24, 4),
    "s12": (384, 12, 8),
    "s24": (384, 24, 8),
    "m24": (512, 24, 8),
    "l24": (768, 24, 16),
}

PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=3, cls_depth=1, heads=4, dim_head=16, mlp_dim=128),
    **{f"{name}_p{patch}": _paper(*sizes, patch) for patch in (16, 8) for name, sizes in _SIZES.items()},
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_scale_(\d+)", r"layers.\1.0.scale"),
    (r"local_scale_(\d+)", r"layers.\1.1.scale"),
    (r"xcit_transformer/ff_scale_(\d+)", r"xcit_transformer.layers.\1.2.scale"),
    (r"ff_scale_(\d+)", r"layers.\1.1.scale"),
    (r"attn_(\d+)/to_out", r"layers.\1.0.fn.to_out.0"),
    (r"attn_(\d+)", r"layers.\1.0.fn"),
    (r"local_(\d+)/norm", r"layers.\1.1.fn.net.0"),
    (r"local_(\d+)/conv1", r"layers.\1.1.fn.net.2"),
    (r"local_(\d+)/batch_norm", r"layers.\1.1.fn.net.3"),
    (r"local_(\d+)/conv2", r"layers.\1.1.fn.net.5"),
    *feed_forward_rules(r"xcit_transformer/ff_(\d+)", r"xcit_transformer.layers.\1.2.fn.net"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.fn.net"),
    *HEAD_RULES,
)
