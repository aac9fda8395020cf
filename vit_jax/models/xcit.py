"""XCiT: attention between features instead of tokens, whose cost is linear in the number of patches.

Source: El-Nouby et al. 2021, arXiv:2106.09681. Upstream: vit_pytorch/xcit.py.
Differs from upstream: layers are skipped only when `train` (upstream: at evaluation too), and skipped layers still
update their running statistics; images and patches may be non-square, of any number of `channels`; `num_classes=0`
gives the class token, (b, 1, d); tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: patches are projected by one linear map (paper: convolutions), positions are learned, the
temperature is an exponential, no bias in query, key and value; by default the initial LayerScale depends on the
layer's index, as upstream's does: 1e-6 in all layers after the 18th (paper: on the depth of the model, as the paper's
presets set `layer_scale_init`).
Axes: b batch, n patches, m context, d dim, h heads, i and j features of a head, or query and key, k classes.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import feed_forward_rules, sequential_rules
from vit_jax.layers import (
    BatchNorm,
    ContextAttention,
    Dense,
    DepthwiseConv,
    FeedForward,
    LayerNorm,
    NormHead,
    PatchEmbed,
    ToHeads,
    add_positions,
    attend,
    drop_paths,
    gelu,
    l2_normalize,
    prepend,
    sow_block,
)
from vit_jax.layers.check import expect, pair, patch_grid
from vit_jax.layers.shapes import Images, Output, Tokens
from vit_jax.models import cait
from vit_jax.models.cait import keep_layers


class XCAttention(nn.Module):
    """Cross-covariance attention: between features, whose queries and keys are normalised over the tokens."""

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
    """Two depthwise convolutions over the grid of patches, which has `rows` rows."""

    kernel: int
    rows: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        x = rearrange(LayerNorm(name="norm")(x), "b (h w) d -> b h w d", h=self.rows)
        x = DepthwiseConv(self.kernel, name="conv1")(x)
        x = gelu(BatchNorm(name="batch_norm")(x, train=train))
        x = DepthwiseConv(self.kernel, name="conv2")(x)
        return rearrange(x, "b h w d -> b (h w) d")


class Transformer(nn.Module):
    """`depth` blocks, each branch with a LayerScale: tokens (b, n, d), and an optional context, to (b, n, d).

    A block applies the `branches` in order; `context` is passed to "attn". The LayerScales of block
    i start at `scales[i]`. In training each block is skipped with probability `layer_dropout`, but
    never all of them.
    """

    depth: int
    branches: Mapping[str, Callable[..., nn.Module]]
    layer_dropout: float
    scales: tuple[float, ...]
    drop_path: float

    @nn.compact
    def __call__(self, x: Tokens, *context: Float[Array, "b m d"], train: bool = False) -> Tokens:
        drops = train and self.layer_dropout > 0
        kept = keep_layers(self.make_rng("dropout"), self.depth, self.layer_dropout) if drops else None
        for i, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            y, init = x, nn.initializers.constant(self.scales[i])
            for name, make in self.branches.items():
                out = make(name=f"{name}_{i}")(y, *(context if name == "attn" else ()), train=train)
                y = y + drop_path(out * self.param(f"{name}_scale_{i}", init, x.shape[-1:])[None, None])
            x = jnp.where(kept[i], y, x) if drops else y
            sow_block(self, x)
        return x


class XCiT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the class token (b, 1, d).

    An image may be smaller than `image_size`; it then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for the class token.
        dim: width of a token.
        depth: number of blocks with attention between the features of patches.
        cls_depth: number of blocks in which the class token attends to the patches.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the patches before the first block.
        layer_dropout: probability that a block is skipped in training.
        channels: channels of an image.
        layer_scale_init: initial value of every LayerScale; with None 0.1 in blocks 1 to 18, and
            1e-6 from 19.
        local_patch_kernel_size: side of the convolutions over patches; odd.
        drop_path: rate of stochastic depth in the last block of patches; it rises linearly from 0 in
            the first. The blocks of the class token are never dropped.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `local_patch_kernel_size` is
            even.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: int
    cls_depth: int
    heads: int
    mlp_dim: int
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    layer_dropout: float = 0.0
    channels: int = 3
    layer_scale_init: float | None = None
    local_patch_kernel_size: int = 3
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        kernel = self.local_patch_kernel_size
        expect(self, "local_patch_kernel_size", kernel > 0 and kernel % 2 == 1, "an odd number")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels, self.image_size)
        init, patches = nn.initializers.normal(0.02), math.prod(patch_grid(self.image_size, self.patch_size))
        cls_token = self.param("cls_token", init, (self.dim,))
        pos_embedding = self.param("pos_embedding", init, (1, patches, self.dim))
        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        x = nn.Dropout(self.emb_dropout)(add_positions(x, pos_embedding), deterministic=not train)

        rows, _ = patch_grid(images.shape[1:3], self.patch_size)
        local = functools.partial(LocalPatchInteraction, self.local_patch_kernel_size, rows)
        x = self.transformer(self.depth, XCAttention, self.drop_path, "xcit_transformer", local=local)(x, train=train)
        x = LayerNorm(name="final_norm")(x)
        token = prepend(cls_token[None], x[:, :0])
        token = self.transformer(self.cls_depth, ContextAttention, 0.0, "cls_transformer")(token, x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(token[:, 0]) if self.num_classes else token

    def transformer(
        self, depth: int, attention: type[nn.Module], drop_path: float, name: str, **others: Callable
    ) -> Transformer:
        """Make a stack of `depth` blocks of attention, `others` and a feed-forward."""
        attn = functools.partial(attention, self.heads, self.dim_head, self.dropout)
        branches = dict(attn=attn, **others, ff=functools.partial(FeedForward, self.mlp_dim, self.dropout))
        fixed = self.layer_scale_init
        scales = tuple((0.1 if i < 18 else 1e-6) if fixed is None else fixed for i in range(depth))
        return Transformer(depth, branches, self.layer_dropout, scales, drop_path, name=name)

    torch_rules = (
        (r"local_scale_(\d+)", r"layers.\1.1.scale"),
        (r"xcit_transformer/ff_scale_(\d+)", r"xcit_transformer.layers.\1.2.scale"),
        *sequential_rules(r"local_(\d+)", r"layers.\1.1.fn.net", norm=0, conv1=2, batch_norm=3, conv2=5),
        *feed_forward_rules(r"xcit_transformer/ff_(\d+)", r"xcit_transformer.layers.\1.2.fn.net"),
        *cait.CaiT.torch_rules,
    )


def _paper(dim, depth, heads, patch_size):
    layers = dict(cls_depth=2, layer_scale_init=1.0 if depth <= 12 else 1e-5)
    return vit_sizes(dim, depth, patch_size, heads=heads, dim_head=dim // heads, **layers)


_SIZES = dict(n12=(128, 12, 4), t12=(192, 12, 4), t24=(192, 24, 4), s12=(384, 12, 8), s24=(384, 24, 8))
_SIZES |= dict(m24=(512, 24, 8), l24=(768, 24, 16))
PRESETS = {
    "tiny": TINY | dict(depth=3, cls_depth=1),
    **{f"{name}_p{patch}": _paper(*sizes, patch) for patch in (16, 8) for name, sizes in _SIZES.items()},
}
