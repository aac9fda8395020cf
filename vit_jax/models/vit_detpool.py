"""ViT with detection pooling: tokens attend only to the patches of an object, and only these are pooled.

Source: Niu et al. 2026, "Learning to Grasp Anything By Playing with Random Toys", openreview.net/forum?id=NZDaMcpXZm.
Upstream: vit_pytorch/vit_detpool.py.
Differs from upstream: a mask whose shape is neither that of the pixels nor of the patches raises ValueError.
Axes: b batch, n tokens, m patches, d dim, k classes.
"""

import functools
import math

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.presets import TINY
from vit_jax.frames.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES
from vit_jax.layers import Attention, Dense, FeedForward, NormedBlocks, PatchEmbed, add_positions, attend, prepend
from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.shapes import Images, Output, Tokens
from vit_jax.layers.to_heads import ToHeads


class MaskedAttention(Attention):
    """`Attention` in which no token attends to tokens outside of `mask`."""

    @nn.compact
    def __call__(self, x: Tokens, mask: Bool[Array, "b n"], *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(self.norm(name="norm")(x))
        out = attend(self, q, k, v, mask=mask[:, None, None], dropout=self.dropout, train=train)
        if self.heads == 1 and self.dim_head == x.shape[-1]:
            return out
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class ViTDetPool(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions. The class token, if
    any, comes first; the head reads the mean of the object's patches. `object_mask` is True on the
    object: of pixels (b, H, W), or of patches (b, rows, columns) or (b, m). By default
    `mask_generator` computes it, and without one all patches belong to the object.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        use_cls_token: have a class token.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        mask_generator: a module that maps images to an `object_mask`; it gets no gradient.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or a mask has another shape.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    use_cls_token: bool = True
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    mask_generator: nn.Module | None = None
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Images, *, object_mask: Bool[Array, "b *grid"] | None = None, train: bool = False
    ) -> Output:
        check_images(images, self.channels, self.image_size)
        init, patches = nn.initializers.normal(0.01), math.prod(patch_grid(self.image_size, self.patch_size))
        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        x = add_positions(x, self.param("pos_embedding", init, (patches, self.dim)))
        if self.use_cls_token:
            x = prepend(self.param("cls_token", init, (self.dim,))[None], x)
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)

        if object_mask is None and self.mask_generator is not None:
            object_mask = lax.stop_gradient(self.mask_generator(images))
        patch_mask = self._mask_of_patches(object_mask, images)
        classes = int(self.use_cls_token)
        mask = jnp.pad(patch_mask, ((0, 0), (classes, 0)), constant_values=True)
        attention = functools.partial(MaskedAttention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout)
        blocks = NormedBlocks(self.depth, attention, feed_forward, drop_path=self.drop_path, name="transformer")
        x = blocks(x, mask, train=train)
        pooled = masked_mean(x[:, classes:], patch_mask)
        return Dense(self.num_classes, name="mlp_head")(pooled) if self.num_classes else x

    def _mask_of_patches(self, mask: Bool[Array, "b *grid"] | None, images: Array) -> Bool[Array, "b m"]:
        """`mask` as a mask of patches: True for patches with any pixel of the object."""
        batch, height, width, _ = images.shape
        rows, columns = patch_grid((height, width), self.patch_size)
        pixels, grid, flat = (batch, height, width), (batch, rows, columns), (batch, rows * columns)
        if mask is None:
            return jnp.ones(flat, bool)
        if mask.shape == pixels:
            return rearrange(mask, "b (h ph) (w pw) -> b (h w) (ph pw)", h=rows, w=columns).any(axis=-1)
        if mask.shape in (grid, flat):
            return mask.reshape(flat)
        raise ValueError(f"object_mask of shape {mask.shape}: expected {pixels}, pixels, or {grid} or {flat}, patches")

    torch_rules = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES)


def masked_mean(x: Float[Array, "b m d"], mask: Bool[Array, "b m"]) -> Float[Array, "b d"]:
    """Mean over the tokens in `mask`; zero if there are none."""
    return jnp.where(mask[..., None], x, 0).sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


PRESETS = {"tiny": TINY}
