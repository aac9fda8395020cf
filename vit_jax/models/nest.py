"""NesT: attention within blocks of the image alone; blocks meet where four of them are merged into one.

Source: Zhang et al. 2021, arXiv:2105.12723. Upstream: vit_pytorch/nest.py.
Differs from upstream: images and patches may be non-square; `num_classes=0` gives the last map of features; positions
start at a deviation of 0.02 (upstream: 1). As upstream, heads are `dim // heads` wide and `dim_head` is not read.
Differs from the paper: a position is one number, shared by all features and blocks (paper: a vector in each block);
norms before and after the projection of patches; no biases of q, k and v.
Axes: b batch (times blocks), h rows, w columns, d dim, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import ChannelNorm, ConvFeedForward, Dense, PointwiseConv, add_positions, softmax
from vit_jax.layers.check import at_least, check_arguments, check_images, pair, patch_grid
from vit_jax.layers.rules import feed_forward_rules
from vit_jax.layers.stages import per_stage


class Attention(nn.Module):
    """Self-attention of all pixels of a map."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b h w d"]:
        rows, dim, dim_head = x.shape[1], x.shape[-1], x.shape[-1] // self.heads
        x = ChannelNorm(name="norm")(x)
        qkv = PointwiseConv(3 * self.heads * dim_head, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b x y (qkv h d) -> qkv b h (x y) d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h (x y) d -> b x y (h d)", x=rows)
        out = PointwiseConv(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class Transformer(nn.Module):
    """`depth` layers on a map, with one of `positions` for each of its pixels."""

    positions: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b h w d"]:
        pos_emb = self.param("pos_emb", nn.initializers.normal(0.02), (self.positions,))
        pos_emb = jnp.broadcast_to(pos_emb[:, None], (self.positions, x.shape[-1]))
        x = add_positions(rearrange(x, "b h w d -> b (h w) d"), pos_emb).reshape(x.shape)
        for i in range(self.depth):
            x = x + Attention(self.heads, self.dropout, name=f"attn_{i}")(x, train=train)
            x = x + ConvFeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
        return x


class NesT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last map (b, h, w, d).

    A side of the image has `2 ** (num_hierarchies - 1)` blocks at first and one in the end; width and `heads` double
    whenever blocks merge. `block_repeats` is the number of layers of every level, or one number for each.
    Raises ValueError when patches do not divide the image, or blocks the patches.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    heads: int
    num_hierarchies: int
    block_repeats: int | tuple[int, ...]
    mlp_mult: int = 4
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        at_least(self, num_hierarchies=1, mlp_mult=1)
        per_stage(self, "block_repeats", self.num_hierarchies)
        if self.heads > self.dim:
            raise ValueError(f"heads={self.heads}: expected at most dim={self.dim}")
        self._block_size(self.image_size)
        super().__post_init__()

    def _block_size(self, image_size) -> int:
        """Number of patches in a block, the same at every level."""
        (rows, columns), blocks = patch_grid(image_size, self.patch_size), 2 ** (self.num_hierarchies - 1)
        if rows % blocks or columns % blocks:
            height, width = pair("patch_size", self.patch_size)
            raise ValueError(
                f"image_size={image_size!r}: expected multiples of {(blocks * height, blocks * width)}, "
                f"as num_hierarchies={self.num_hierarchies} cuts each side into {blocks} blocks"
            )
        return (rows // blocks) * (columns // blocks)

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        self._block_size(images.shape[1:3])
        ph, pw = pair("patch_size", self.patch_size)
        x = rearrange(images, "b (h ph) (w pw) c -> b h w (ph pw c)", ph=ph, pw=pw)
        x = PointwiseConv(self.dim, name="patch_proj")(ChannelNorm(name="patch_norm_in")(x))
        x = ChannelNorm(name="patch_norm_out")(x)

        for i, depth in enumerate(per_stage(self, "block_repeats", self.num_hierarchies)):
            blocks, dim = 2 ** (self.num_hierarchies - 1 - i), 2**i * self.dim
            if i > 0:
                x = nn.Conv(dim, (3, 3), padding=1, name=f"merge_{i - 1}")(x)
                x = ChannelNorm(name=f"merge_norm_{i - 1}")(x)
                x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
            layers = (depth, 2**i * self.heads, self.mlp_mult * dim, self.dropout)
            x = rearrange(x, "b (i h) (j w) d -> (b i j) h w d", i=blocks, j=blocks)
            x = Transformer(self._block_size(self.image_size), *layers, name=f"transformer_{i}")(x, train=train)
            x = rearrange(x, "(b i j) h w d -> b (i h) (j w) d", i=blocks, j=blocks)
        if not self.num_classes:
            return x
        return Dense(self.num_classes, name="mlp_head")(ChannelNorm(name="head_norm")(x).mean(axis=(1, 2)))


_PAPER = dict(image_size=224, patch_size=4, num_hierarchies=3)
PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=48, heads=3, num_hierarchies=2, block_repeats=2, mlp_mult=2),
    "t": dict(dim=96, heads=3, block_repeats=(2, 2, 8), **_PAPER),
    "s": dict(dim=96, heads=3, block_repeats=(2, 2, 20), **_PAPER),
    "b": dict(dim=128, heads=4, block_repeats=(2, 2, 20), **_PAPER),
}

TORCH_RULES = (
    ("patch_norm_in", "to_patch_embedding.1"),
    ("patch_proj", "to_patch_embedding.2"),
    ("patch_norm_out", "to_patch_embedding.3"),
    (r"merge_(\d+)", r"layers.\1.1.0"),
    (r"merge_norm_(\d+)", r"layers.\1.1.1"),
    (r"transformer_(\d+)", r"layers.\1.0"),
    (r"attn_(\d+)/to_out", r"layers.\1.0.to_out.0"),
    (r"attn_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net"),
    ("head_norm", "mlp_head.0"),
    ("mlp_head", "mlp_head.2"),
)
