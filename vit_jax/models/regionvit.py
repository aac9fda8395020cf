"""RegionViT: coarse region tokens attend to each other, then each with the local tokens of its region.

Source: Chen et al. 2021, arXiv:2106.02689. Upstream: vit_pytorch/regionvit.py.
Differs from upstream: any number of `channels` (upstream takes three); `num_classes=0` gives the last map of regions;
`image_size` may say what the model is meant for, and is checked.
Differs from the paper: 4 heads of 32 in every stage (paper: a head for 32 features).
Axes: b batch, r rows, s columns (of a feature map), n tokens, h heads, i query, j key, d features, k classes.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import ChannelNorm, Dense, DepthwiseConv, LayerNorm, NormHead, PointwiseConv, gelu, softmax
from vit_jax.layers.check import at_least, check_arguments, check_images, check_sides

HEADS, DIM_HEAD = 4, 32


def strided_conv(dim: int, kernel: int, stride: int, padding: int, name: str) -> nn.Conv:
    """A convolution whose numbers hold for both axes."""
    return nn.Conv(dim, (kernel, kernel), (stride, stride), padding=padding, name=name)


class Attention(nn.Module):
    """Self-attention, with a bias (h, i, j) of the scores if there is one."""

    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "h n n"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        dim = x.shape[-1]
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * HEADS * DIM_HEAD, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=HEADS)
        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * DIM_HEAD**-0.5
        attn = softmax(scores if bias is None else scores + bias[None])
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class FeedForward(nn.Module):
    """Pre-norm feed-forward block with no dropout at its end."""

    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim = x.shape[-1]
        x = Dense(4 * dim, name="fc1")(LayerNorm(name="norm")(x))
        x = nn.Dropout(self.dropout)(gelu(x), deterministic=not train)
        return Dense(dim, name="fc2")(x)


class RegionalToLocal(nn.Module):
    """`depth` blocks: regions attend to each other, then each and its local tokens do, by the same attention."""

    depth: int
    window_size: int
    attn_dropout: float
    ff_dropout: float

    @nn.compact
    def __call__(
        self, local: Float[Array, "b lr ls d"], regions: Float[Array, "b r s d"], *, train: bool = False
    ) -> tuple[Float[Array, "b lr ls d"], Float[Array, "b r s d"]]:
        batch, rows, columns, _ = regions.shape
        window = dict(p=local.shape[1] // rows, q=local.shape[2] // columns)
        bias = self._position_bias(**window)
        local = rearrange(local, "b (r p) (s q) d -> (b r s) (p q) d", **window)
        regions = rearrange(regions, "b r s d -> b (r s) d")
        for i in range(self.depth):
            attn = Attention(self.attn_dropout, name=f"attn_{i}")
            regions = regions + attn(regions, train=train)
            x = jnp.concatenate([rearrange(regions, "b n d -> (b n) 1 d"), local], axis=1)
            x = x + attn(x, bias, train=train)
            x = x + FeedForward(self.ff_dropout, name=f"ff_{i}")(x, train=train)
            regions, local = rearrange(x[:, 0], "(b n) d -> b n d", b=batch), x[:, 1:]
        local = rearrange(local, "(b r s) (p q) d -> b (r p) (s q) d", r=rows, s=columns, **window)
        return local, rearrange(regions, "b (r s) d -> b r s d", r=rows)

    def _position_bias(self, p: int, q: int) -> Float[Array, "h i j"]:
        """A learned number for each offset between local tokens; none (zero) from and to the region's token."""
        reach = 2 * self.window_size - 1
        table = nn.Embed(reach**2, HEADS, name="local_rel_pos_bias").embedding
        y, x = np.mgrid[:p, :q].reshape(2, -1)
        dy, dx = (along[:, None] - along[None, :] + self.window_size - 1 for along in (y, x))
        return jnp.pad(jnp.moveaxis(table[dy + reach * dx], -1, 0), ((0, 0), (1, 0), (1, 0)))


class RegionViT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last map of regions (b, r, c, d).

    `dim` and `depth` are one number for all four stages, or a tuple of four. A local token is of 4 x 4 pixels in the
    first stage, a region of `local_patch_size * window_size` each way; from stage to stage both maps are halved.
    Raises ValueError for images that regions do not fill, or whose maps do not divide into each other in every stage.
    """

    dim: int | tuple[int, ...] = (64, 128, 256, 512)
    depth: int | tuple[int, ...] = (2, 2, 8, 2)
    window_size: int = 7
    num_classes: int = 1000
    tokenize_local_3_conv: bool = False
    local_patch_size: int = 4
    use_peg: bool = False
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    channels: int = 3
    image_size: int | tuple[int, int] | None = None

    def __post_init__(self):
        check_arguments(self)
        at_least(self, window_size=1, local_patch_size=1)
        for name in ("dim", "depth"):
            if len(self._four(name)) != 4:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number, or one for each of four stages")
        if self.image_size is not None:
            check_sides("image_size", self.image_size, self._fits)
        super().__post_init__()

    def _four(self, name: str) -> tuple[int, ...]:
        value = getattr(self, name)
        return (value,) * 4 if isinstance(value, int) else tuple(value)

    def _fits(self, side: int) -> bool:
        regions, rest = divmod(side, self.local_patch_size * self.window_size)
        local = -(-side // 4) if self.tokenize_local_3_conv else (side + 2) // 4
        for _ in range(4):
            if rest or regions < 1 or local % regions or not 1 <= local // regions <= self.window_size:
                return False
            local, regions = -(-local // 2), -(-regions // 2)
        return True

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        check_sides("images", images.shape[1:3], self._fits)
        local, regions = self._local_encoder(images), self._region_encoder(images)
        for i, (dim, depth) in enumerate(zip(self._four("dim"), self._four("depth"), strict=True)):
            if i > 0:
                halve = strided_conv(dim, 3, 2, 1, name=f"down_{i}")
                local, regions = halve(local), halve(regions)
                if self.use_peg:
                    local = local + DepthwiseConv(3, name=f"peg_{i}")(local)
            stage = RegionalToLocal(depth, self.window_size, self.attn_dropout, self.ff_dropout, name=f"stage_{i}")
            local, regions = stage(local, regions, train=train)
        return NormHead(self.num_classes, name="head")(regions.mean(axis=(1, 2))) if self.num_classes else regions

    def _local_encoder(self, images: Float[Array, "b H W c"]) -> Float[Array, "b r s d"]:
        dim = self._four("dim")[0]
        if not self.tokenize_local_3_conv:
            return strided_conv(dim, 8, 4, 3, name="local_encoder")(images)
        x = strided_conv(dim, 3, 2, 1, name="local_conv_0")(images)
        x = gelu(ChannelNorm(name="local_norm_0")(x))
        x = strided_conv(dim, 3, 2, 1, name="local_conv_1")(x)
        x = gelu(ChannelNorm(name="local_norm_1")(x))
        return strided_conv(dim, 3, 1, 1, name="local_conv_2")(x)

    def _region_encoder(self, images: Float[Array, "b H W c"]) -> Float[Array, "b r s d"]:
        side = self.local_patch_size * self.window_size
        patches = rearrange(images, "b (r p) (s q) d -> b r s (d p q)", p=side, q=side)
        return PointwiseConv(self._four("dim")[0], name="region_encoder")(patches)


def _paper(dim, depth):
    return dict(image_size=224, dim=(dim, 2 * dim, 4 * dim, 8 * dim), depth=(2, 2, depth, 2))


PRESETS = {
    "tiny": dict(image_size=32, dim=(32, 32, 48, 64), depth=1, window_size=4),
    "ti": _paper(64, 8),
    "s": _paper(96, 8),
    "m": _paper(96, 14),
    "b": _paper(128, 14),
}

_FEED_FORWARD = (("norm", 0), ("fc1", 1), ("fc2", 4))

TORCH_RULES = (
    *((f"local_conv_{i}", f"local_encoder.{3 * i}") for i in range(3)),
    *((f"local_norm_{i}", f"local_encoder.{3 * i + 1}") for i in range(2)),
    ("region_encoder", "region_encoder.1"),
    (r"down_(\d+)", r"layers.\1.0.conv"),
    (r"peg_(\d+)", r"layers.\1.1.proj"),
    (r"stage_(\d+)", r"layers.\1.2"),
    (r"attn_(\d+)", r"layers.\1.0"),
    *((rf"ff_(\d+)/{ours}", rf"layers.\1.1.{theirs}") for ours, theirs in _FEED_FORWARD),
    ("to_out", "to_out.0"),
    ("head/norm", "to_logits.1"),
    ("head/fc", "to_logits.2"),
)
