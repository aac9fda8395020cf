"""ViT with detection pooling: tokens attend to the patches of an object alone, and those alone are pooled.

Source: Niu et al. 2026, "Learning to Grasp Anything By Playing with Random Toys", openreview.net/forum?id=NZDaMcpXZm.
Upstream: vit_pytorch/vit_detpool.py.
Differs from upstream: a mask of a shape that fits neither pixels nor patches is a ValueError.
Axes: b batch, n tokens, m patches, d dim, h heads, i query, j key, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, PatchEmbed, add_positions, prepend, softmax
from vit_jax.layers.check import check_arguments, check_images, pair, patch_grid
from vit_jax.layers.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES


class Attention(nn.Module):
    """Self-attention in which nothing attends to the tokens outside of `mask`."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        attn = softmax(jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min))
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        if self.heads == 1 and self.dim_head == dim:
            return out
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class Transformer(nn.Module):
    """`depth` blocks of masked attention and feed-forward, each with its residual, and a last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        for i in range(self.depth):
            x = x + Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, mask, train=train)
            x = x + FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
        return LayerNorm(name="norm")(x)


class ViTDetPool(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d), class token first.

    `object_mask`, True on the object, is of pixels, (b, H, W), or of patches, (b, rows, columns) or (b, m). Where it
    is not given `mask_generator`, a module, makes it from the images; it is frozen. Without either, all patches count.
    Raises ValueError when `patch_size` does not divide `image_size`, or for a mask of another shape.
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

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W c"], *, object_mask: Bool[Array, "b *grid"] | None = None, train: bool = False
    ) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        rows, columns = patch_grid(self.image_size, self.patch_size)
        pos_embedding = self.param("pos_embedding", nn.initializers.normal(0.01), (rows * columns, self.dim))
        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        x = add_positions(x, pos_embedding)
        if self.use_cls_token:
            x = prepend(self.param("cls_token", nn.initializers.normal(0.01), (self.dim,))[None], x)
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)

        if object_mask is None and self.mask_generator is not None:
            object_mask = lax.stop_gradient(self.mask_generator(images))
        patch_mask = self._mask_of_patches(object_mask, images)
        classes = int(self.use_cls_token)
        mask = jnp.pad(patch_mask, ((0, 0), (classes, 0)), constant_values=True)
        blocks = (self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)
        x = Transformer(*blocks, name="transformer")(x, mask, train=train)
        if not self.num_classes:
            return x
        return Dense(self.num_classes, name="mlp_head")(masked_mean(x[:, classes:], patch_mask))

    def _mask_of_patches(self, mask: Bool[Array, "b *grid"] | None, images: Array) -> Bool[Array, "b m"]:
        """`mask` as one of patches; a patch belongs to the object if any of its pixels does."""
        batch, height, width, _ = images.shape
        rows, columns = patch_grid((height, width), self.patch_size)
        if mask is None:
            return jnp.ones((batch, rows * columns), bool)
        if mask.shape == (batch, height, width):
            return rearrange(mask, "b (h ph) (w pw) -> b (h w) (ph pw)", h=rows, w=columns).any(axis=-1)
        if mask.shape in ((batch, rows, columns), (batch, rows * columns)):
            return mask.reshape(batch, rows * columns)
        raise ValueError(
            f"object_mask of shape {mask.shape}: expected {(batch, height, width)}, a mask of pixels, "
            f"or {(batch, rows, columns)} or {(batch, rows * columns)}, a mask of patches"
        )


def masked_mean(x: Float[Array, "b m d"], mask: Bool[Array, "b m"]) -> Float[Array, "b d"]:
    """Mean over the tokens in `mask`, zero where there are none."""
    return jnp.where(mask[..., None], x, 0).sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


PRESETS = {"tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128)}

TORCH_RULES = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES)
