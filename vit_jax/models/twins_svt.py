"""Twins-SVT: attention within windows by turns with attention over a subsampled map, as depthwise and pointwise go.

Source: Chu et al. 2021, arXiv:2104.13840. Upstream: vit_pytorch/twins_svt.py.
Differs from upstream: any number of `channels`; `num_classes=0` gives the last feature map; `image_size` may say what
the model is meant for, and is checked.
Differs from the paper: 8 heads of 64 in every stage (paper: a head for 32 features); positions come after the first
pair of blocks (paper: after its first block); no norm of the subsampled map, and none before the head.
Axes: b batch, r rows, c columns (of a feature map), h heads, i query, j key, d features, k classes.
"""

from types import SimpleNamespace

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import ChannelNorm, ConvFeedForward, Dense, DepthwiseConv, PointwiseConv, softmax
from vit_jax.layers.check import at_least, check_arguments, check_images, check_sides
from vit_jax.layers.rules import feed_forward_rules

STAGES = ("s1_", "s2_", "s3_", "s4_")
HEADS, DIM_HEAD = 8, 64


class PatchEmbedding(nn.Module):
    """Patches of `patch_size` pixels each way become one: a norm, a linear map, a norm."""

    dim: int
    patch_size: int

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"]) -> Float[Array, "b r2 c2 e"]:
        x = rearrange(x, "b (r p) (c q) d -> b r c (d p q)", p=self.patch_size, q=self.patch_size)
        x = ChannelNorm(name="norm_in")(x)
        x = PointwiseConv(self.dim, name="proj")(x)
        return ChannelNorm(name="norm_out")(x)


class LocalAttention(nn.Module):
    """Attention within windows of `window` pixels each way."""

    window: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"], *, train: bool = False) -> Float[Array, "b r c d"]:
        dim, sides = x.shape[-1], dict(p=self.window, q=self.window)
        x = ChannelNorm(name="norm")(x)
        q = PointwiseConv(HEADS * DIM_HEAD, use_bias=False, name="to_q")(x)
        kv = PointwiseConv(2 * HEADS * DIM_HEAD, use_bias=False, name="to_kv")(x)
        q = rearrange(q, "b (r p) (c q) (h d) -> b r c h (p q) d", h=HEADS, **sides)
        k, v = rearrange(kv, "b (r p) (c q) (kv h d) -> kv b r c h (p q) d", kv=2, h=HEADS, **sides)
        attn = softmax(jnp.einsum("brchid,brchjd->brchij", q, k) * DIM_HEAD**-0.5)
        self.sow("intermediates", "attn", attn)
        out = jnp.einsum("brchij,brchjd->brchid", attn, v)
        out = rearrange(out, "b r c h (p q) d -> b (r p) (c q) (h d)", **sides)
        out = PointwiseConv(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class GlobalAttention(nn.Module):
    """Attention of every pixel over the map subsampled by a convolution of `stride` pixels each way."""

    stride: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"], *, train: bool = False) -> Float[Array, "b r c d"]:
        (_, rows, _, dim), window = x.shape, (self.stride, self.stride)
        x = ChannelNorm(name="norm")(x)
        q = PointwiseConv(HEADS * DIM_HEAD, use_bias=False, name="to_q")(x)
        kv = nn.Conv(2 * HEADS * DIM_HEAD, window, window, padding="VALID", use_bias=False, name="to_kv")(x)
        q = rearrange(q, "b r c (h d) -> b h (r c) d", h=HEADS)
        k, v = rearrange(kv, "b r c (kv h d) -> kv b h (r c) d", kv=2, h=HEADS)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * DIM_HEAD**-0.5)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h (r c) d -> b r c (h d)", r=rows)
        out = PointwiseConv(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class Transformer(nn.Module):
    """`depth` pairs of blocks: one with attention in windows, unless `window` is None, and one with it over all."""

    depth: int
    window: int | None
    stride: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"], *, train: bool = False) -> Float[Array, "b r c d"]:
        for i in range(self.depth):
            if self.window is not None:
                x = x + LocalAttention(self.window, self.dropout, name=f"local_attn_{i}")(x, train=train)
                x = x + ConvFeedForward(4 * x.shape[-1], self.dropout, name=f"local_ff_{i}")(x, train=train)
            x = x + GlobalAttention(self.stride, self.dropout, name=f"global_attn_{i}")(x, train=train)
            x = x + ConvFeedForward(4 * x.shape[-1], self.dropout, name=f"global_ff_{i}")(x, train=train)
        return x


class TwinsSVT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, r, c, d).

    Each of four stages has arguments of its own, s1_ to s4_; the last has no windows, whatever `s4_local_patch_size`.
    Raises ValueError for images that patches and windows do not fill, or where a map is smaller than its `global_k`.
    """

    num_classes: int
    s1_emb_dim: int = 64
    s1_patch_size: int = 4
    s1_local_patch_size: int = 7
    s1_global_k: int = 7
    s1_depth: int = 1
    s2_emb_dim: int = 128
    s2_patch_size: int = 2
    s2_local_patch_size: int = 7
    s2_global_k: int = 7
    s2_depth: int = 1
    s3_emb_dim: int = 256
    s3_patch_size: int = 2
    s3_local_patch_size: int = 7
    s3_global_k: int = 7
    s3_depth: int = 5
    s4_emb_dim: int = 512
    s4_patch_size: int = 2
    s4_local_patch_size: int = 7
    s4_global_k: int = 7
    s4_depth: int = 4
    peg_kernel_size: int = 3
    dropout: float = 0.0
    channels: int = 3
    image_size: int | tuple[int, int] | None = None

    def __post_init__(self):
        check_arguments(self)
        at_least(self, **{name: int(not name.endswith("depth")) for name in vars(self) if name[:3] in STAGES})
        if self.peg_kernel_size < 1 or self.peg_kernel_size % 2 == 0:
            raise ValueError(f"peg_kernel_size={self.peg_kernel_size}: expected an odd number, as maps keep their grid")
        if self.image_size is not None:
            check_sides("image_size", self.image_size, self._fits)
        super().__post_init__()

    def _stages(self) -> list[SimpleNamespace]:
        arguments = vars(self).items()
        return [SimpleNamespace(**{n[3:]: value for n, value in arguments if n[:3] == prefix}) for prefix in STAGES]

    def _fits(self, side: int) -> bool:
        for i, s in enumerate(self._stages()):
            side, rest = divmod(side, s.patch_size)
            if rest or side < s.global_k or (i < 3 and side % s.local_patch_size):
                return False
        return True

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        check_sides("images", images.shape[1:3], self._fits)
        x = images
        for i, s in enumerate(self._stages()):
            attention = (s.local_patch_size if i < 3 else None, s.global_k, self.dropout)
            x = PatchEmbedding(s.emb_dim, s.patch_size, name=f"embed_{i}")(x)
            x = Transformer(1, *attention, name=f"first_{i}")(x, train=train)
            x = x + DepthwiseConv(self.peg_kernel_size, name=f"peg_{i}")(x)
            x = Transformer(s.depth, *attention, name=f"rest_{i}")(x, train=train)
        return Dense(self.num_classes, name="head")(x.mean(axis=(1, 2))) if self.num_classes else x


def _stages(dims, depths, **arguments):
    named = dict(emb_dim=dims, depth=depths, **arguments)
    return {f"s{i + 1}_{name}": value for name, values in named.items() for i, value in enumerate(values)}


def _paper(dims, depths):
    """`depths`: pairs of blocks after the first. A map is subsampled to 7 x 7."""
    return dict(image_size=224) | _stages(dims, depths, global_k=(8, 4, 2, 1))


PRESETS = {
    "tiny": dict(image_size=32)
    | _stages((16, 16, 24, 32), (0, 0, 0, 0), local_patch_size=(4, 2, 2, 1), global_k=(2, 2, 1, 1)),
    "s": _paper((64, 128, 256, 512), (0, 0, 4, 3)),
    "b": _paper((96, 192, 384, 768), (0, 0, 8, 1)),
    "l": _paper((128, 256, 512, 1024), (0, 0, 8, 1)),
}

TORCH_RULES = (
    (r"embed_(\d+)/norm_in", r"layers.\1.0.proj.0"),
    (r"embed_(\d+)/proj", r"layers.\1.0.proj.1"),
    (r"embed_(\d+)/norm_out", r"layers.\1.0.proj.2"),
    (r"peg_(\d+)", r"layers.\1.2.proj.fn"),
    (r"first_(\d+)", r"layers.\1.1"),
    (r"rest_(\d+)", r"layers.\1.3"),
    (r"local_attn_(\d+)", r"layers.\1.0.fn"),
    *feed_forward_rules(r"local_ff_(\d+)", r"layers.\1.1.fn.net"),
    (r"global_attn_(\d+)", r"layers.\1.2.fn"),
    *feed_forward_rules(r"global_ff_(\d+)", r"layers.\1.3.fn.net"),
    ("to_out", "to_out.0"),
    ("head", "layers.6"),
)
