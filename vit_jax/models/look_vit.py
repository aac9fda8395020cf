"""LookupViT: a few tokens think, and look up what they need in many of high resolution, which learn from them in turn.

Source: Koner et al. 2024, arXiv:2407.12753. Upstream: vit_pytorch/look_vit.py.
Differs from upstream: images and patches may be non-square; an image may have another size than `image_size`;
`num_classes=0` gives both sets of tokens.
Differs from the paper: patches are projected by a convolution over their neighbours, and norms have a scale of
1 + gamma and no bias.
Axes: b batch, n tokens, m tokens of the context, d dim, h heads, i query, j key, k classes.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, gelu, sincos_2d, softmax, standardize
from vit_jax.layers.check import check_arguments, check_images, pair, patch_grid


class OffsetNorm(nn.Module):
    """Layer normalisation with the scale 1 + gamma, and no bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        gamma = self.param("gamma", nn.initializers.zeros, x.shape[-1:])
        y = standardize(x, 1e-5) * (1 + jnp.expand_dims(gamma, range(x.ndim - 1)))
        return y.astype(jnp.result_type(x, gamma))


class FeedForward(nn.Module):
    """The feed-forward block with `OffsetNorm`; its hidden layer is `factor` times as wide as its input."""

    factor: int | float
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim = x.shape[-1]
        hidden = gelu(Dense(int(dim * self.factor), name="fc1")(OffsetNorm(name="norm")(x)))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return nn.Dropout(self.dropout)(Dense(dim, name="fc2")(hidden), deterministic=not train)


class ReusedAttention(nn.Module):
    """Values of the context (b, m, d), weighed by scores (b, h, n, m) that another attention has computed."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(
        self, context: Float[Array, "b m d"], scores: Float[Array, "b h n m"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        return self._weigh(OffsetNorm(name="norm_context")(context), scores, train)

    def _weigh(self, context: Float[Array, "b m d"], scores: Float[Array, "b h n m"], train: bool) -> Array:
        attn = softmax(scores)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = jnp.einsum("bhij,bhjd->bhid", attn, self._heads("to_v", context))
        out = Dense(context.shape[-1], use_bias=False, name="to_out")(rearrange(out, "b h n d -> b n (h d)"))
        return nn.Dropout(self.dropout)(out, deterministic=not train)

    def _heads(self, name: str, x: Float[Array, "b n d"]) -> Float[Array, "b h n f"]:
        x = Dense(self.heads * self.dim_head, use_bias=False, name=name)(x)
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)


class Attention(ReusedAttention):
    """Attention of x over itself, or over a context; returns its scores, before the softmax, besides."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b m d"] | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b h n m"]]:
        x = OffsetNorm(name="norm")(x)
        context = x if context is None else OffsetNorm(name="norm_context")(context)
        q, k = self._heads("to_q", x), self._heads("to_k", context)
        scores = jnp.einsum("bhid,bhjd->bhij", q * self.dim_head**-0.5, k)
        return self._weigh(context, scores, train), scores


class LookViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to both sets of tokens, the few first.

    The few are an image of patches of `highres_patch_size`, shrunk to what patches of `patch_size` would give.
    Raises ValueError when one of the two does not divide `image_size`, when the second is not the larger, for an even
    `patch_conv_kernel_size`, and for a `dim` that is no multiple of 4 above 4.
    """

    dim: int
    image_size: int | tuple[int, int]
    num_classes: int
    depth: int = 3
    patch_size: int | tuple[int, int] = 16
    heads: int = 8
    mlp_factor: int | float = 4
    dim_head: int = 64
    highres_patch_size: int | tuple[int, int] = 12
    highres_mlp_factor: int | float = 4
    cross_attn_heads: int = 8
    cross_attn_dim_head: int = 64
    patch_conv_kernel_size: int = 7
    dropout: float = 0.1
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        self._highres_grid(pair("image_size", self.image_size))
        sides = zip(pair("patch_size", self.patch_size), pair("", self.highres_patch_size), strict=True)
        if any(side <= highres for side, highres in sides):
            raise ValueError(
                f"patch_size={self.patch_size!r}: expected more than highres_patch_size={self.highres_patch_size!r}"
            )
        if self.patch_conv_kernel_size % 2 == 0:
            raise ValueError(f"patch_conv_kernel_size={self.patch_conv_kernel_size}: expected an odd number")
        sincos_2d(1, 1, self.dim)  # which refuses some
        super().__post_init__()

    def _highres_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        ph, pw = pair("highres_patch_size", self.highres_patch_size)
        if size[0] % ph or size[1] % pw:
            raise ValueError(f"image_size={size}: expected multiples of highres_patch_size={self.highres_patch_size!r}")
        return size[0] // ph, size[1] // pw

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W c"], *, train: bool = False
    ) -> Float[Array, "b k"] | tuple[Float[Array, "b n d"], Float[Array, "b m d"]]:
        check_images(images, self.channels)
        few = patch_grid(images.shape[1:3], self.patch_size)
        rows, columns = self._highres_grid(images.shape[1:3])
        self.param("pos_embedding", nn.initializers.normal(0.02), self._unused_positions())
        patches = rearrange(images, "b (h ph) (w pw) c -> b h w (ph pw c)", h=rows, w=columns)
        kernel, padding = self.patch_conv_kernel_size, self.patch_conv_kernel_size // 2
        patches = nn.Conv(self.dim, (kernel, kernel), padding=padding, name="to_patches")(patches)
        positions = jnp.asarray(sincos_2d(rows, columns, self.dim), patches.dtype).reshape(1, rows, columns, self.dim)
        patches = OffsetNorm(name="patch_norm")(patches) + positions
        x = jax.image.resize(patches, (len(patches), *few, self.dim), "bilinear", antialias=False)
        x, highres = (rearrange(grid, "b h w d -> b (h w) d") for grid in (x, patches))

        cross = (self.cross_attn_heads, self.cross_attn_dim_head, self.dropout)
        for i in range(self.depth):
            out, scores = Attention(*cross, name=f"lookup_{i}")(x, highres, train=train)
            x = x + out
            x = x + Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train)[0]
            x = x + FeedForward(self.mlp_factor, self.dropout, name=f"ff_{i}")(x, train=train)

            learn = ReusedAttention(*cross, name=f"highres_attn_{i}")
            highres = highres + learn(x, scores.swapaxes(-1, -2), train=train)
            highres = OffsetNorm(name=f"highres_norm_{i}")(highres)
            highres_ff = FeedForward(self.highres_mlp_factor, self.dropout, name=f"highres_ff_{i}")
            highres = highres + highres_ff(highres, train=train)

        x, highres = OffsetNorm(name="norm")(x), OffsetNorm(name="highres_norm")(highres)
        if not self.num_classes:
            return x, highres
        return Dense(self.num_classes, use_bias=False, name="to_logits")(x.mean(axis=1) + highres.mean(axis=1))

    def _unused_positions(self) -> tuple[int, int]:
        """Shape of a parameter that upstream stores and never reads."""
        rows, columns = self._highres_grid(pair("image_size", self.image_size))
        return rows * columns, self.dim


PRESETS = {
    "tiny": dict(
        image_size=32,
        patch_size=8,
        highres_patch_size=4,
        dim=64,
        depth=3,
        heads=4,
        dim_head=16,
        mlp_factor=2,
        highres_mlp_factor=1,
        cross_attn_heads=4,
        cross_attn_dim_head=16,
        patch_conv_kernel_size=3,
        dropout=0.0,
    )
}


def _feed_forward(flax: str, torch: str) -> tuple[tuple[str, str], ...]:
    return ((f"{flax}/norm", f"{torch}.0"), (f"{flax}/fc1", f"{torch}.1"), (f"{flax}/fc2", f"{torch}.4"))


TORCH_RULES = (
    ("to_patches", "to_patches.1"),
    ("patch_norm", "to_patches.3"),
    (r"attn_(\d+)/to_out", r"layers.\1.0.to_out.1"),
    (r"lookup_(\d+)/to_out", r"layers.\1.2.to_out.1"),
    (r"highres_attn_(\d+)/to_out", r"layers.\1.3.to_out.1"),
    (r"attn_(\d+)", r"layers.\1.0"),
    *_feed_forward(r"ff_(\d+)", r"layers.\1.1"),
    (r"lookup_(\d+)", r"layers.\1.2"),
    (r"highres_attn_(\d+)", r"layers.\1.3"),
    (r"highres_norm_(\d+)", r"layers.\1.4"),
    *_feed_forward(r"highres_ff_(\d+)", r"layers.\1.5"),
)
