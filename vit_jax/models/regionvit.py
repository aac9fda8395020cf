"""RegionViT: coarse region tokens attend to each other, then to the local tokens of their region.

Derives from the frame `MapViT` and defines how the map, that of the regions, is computed.

Source: Chen et al. 2021, arXiv:2106.02689. Upstream: vit_pytorch/regionvit.py.
Differs from upstream: any number of `channels` (upstream takes three); `num_classes=0` gives the last map of regions;
`image_size` may be given, and is then checked at construction.
Differs from the paper: 4 heads of 32 in every stage (paper: a head for every 32 features).
Axes: b batch, r rows, s columns (of a feature map), n tokens, h heads, i query, j key, d features, k classes.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.map_vit import MapViT
from vit_jax.frames.rules import attention_rules, feed_forward_rules, sequential_rules
from vit_jax.frames.stages import per_stage
from vit_jax.layers import (
    ChannelNorm,
    Dense,
    DepthwiseConv,
    FeedForward,
    LayerNorm,
    PointwiseConv,
    attend,
    drop_paths,
    gelu,
    sow_block,
    stage_rates,
)
from vit_jax.layers.check import at_least, check_sides
from vit_jax.layers.shapes import Images, Maps, Tokens
from vit_jax.layers.to_heads import ToHeads

HEADS, DIM_HEAD = 4, 32


class Attention(nn.Module):
    """Self-attention with an optional bias of the scores."""

    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, bias: Float[Array, "1 h n n"] | None = None, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, HEADS, DIM_HEAD, name="to_qkv")(LayerNorm(name="norm")(x))
        out = attend(self, q, k, v, bias=bias, dropout=self.dropout, train=train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class RegionalToLocal(nn.Module):
    """`depth` blocks: regions attend to each other, then each region and its local tokens, with the same weights."""

    depth: int
    window_size: int
    attn_dropout: float
    ff_dropout: float
    drop_path: tuple[float, ...]

    @nn.compact
    def __call__(
        self, local: Float[Array, "b lr ls d"], regions: Float[Array, "b r s d"], *, train: bool = False
    ) -> tuple[Float[Array, "b lr ls d"], Float[Array, "b r s d"]]:
        _, rows, columns, _ = regions.shape
        window = dict(p=local.shape[1] // rows, q=local.shape[2] // columns)
        # One bias for each offset between local tokens; zero for pairs with the region's token.
        reach = 2 * self.window_size - 1
        biases = nn.Embed(reach**2, HEADS, name="local_rel_pos_bias").embedding
        y, x = np.mgrid[: window["p"], : window["q"]].reshape(2, -1)
        dy, dx = (along[:, None] - along[None] + self.window_size - 1 for along in (y, x))
        bias = rearrange(biases[dy + reach * dx], "i j h -> 1 h i j")
        bias = jnp.pad(bias, ((0, 0), (0, 0), (1, 0), (1, 0)))

        local = rearrange(local, "b (r p) (s q) d -> (b r s) (p q) d", **window)
        regions = rearrange(regions, "b r s d -> b (r s) d")
        for i, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            attn = Attention(self.attn_dropout, name=f"attn_{i}")
            regions = regions + drop_path(attn(regions, train=train))
            x = jnp.concatenate([rearrange(regions, "b n d -> (b n) 1 d"), local], axis=1)
            x = x + drop_path(attn(x, bias, train=train))
            feed_forward = FeedForward(4 * x.shape[-1], self.ff_dropout, last_dropout=0.0, name=f"ff_{i}")
            x = x + drop_path(feed_forward(x, train=train))
            regions, local = rearrange(x[:, 0], "(b n) d -> b n d", n=rows * columns), x[:, 1:]
            sow_block(self, (local, regions))
        local = rearrange(local, "(b r s) (p q) d -> b (r p) (s q) d", r=rows, s=columns, **window)
        return local, rearrange(regions, "b (r s) d -> b r s d", r=rows)


class RegionViT(MapViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last map of regions (b, h, w, d).

    There are four stages; each halves both maps of the one before. An argument described as "per
    stage" takes one value for all stages or a tuple of four. In the first stage a local token
    covers 4 x 4 pixels, and a region `local_patch_size * window_size` pixels along both axes.

    Args:
        num_classes: number of classes; 0 for the last map of regions.
        channels: channels of an image.
        image_size: pixels, or (height, width); optional, only checked at construction.
        dim: width of a token, per stage.
        depth: number of blocks, per stage.
        window_size: local tokens along a side of a region.
        tokenize_local_3_conv: make the local tokens by three convolutions instead of one.
        local_patch_size: pixels along a side of a local token.
        use_peg: add a depthwise convolution of the local tokens, for positions.
        attn_dropout: rate on the attention maps.
        ff_dropout: rate within the feed-forwards.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if regions do not tile an image, or in some stage the map of regions does not
            divide the map of local tokens.
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

    def check(self):
        at_least(self, window_size=1, local_patch_size=1)
        per_stage(self, "dim", 4), per_stage(self, "depth", 4, least=0)

    def check_size(self, size, name="image_size"):
        check_sides(name, size, self._fits)

    def _fits(self, side: int) -> bool:
        regions, rest = divmod(side, self.local_patch_size * self.window_size)
        local = -(-side // 4) if self.tokenize_local_3_conv else (side + 2) // 4
        for _ in range(4):
            if rest or regions < 1 or local % regions or not 1 <= local // regions <= self.window_size:
                return False
            local, regions = -(-local // 2), -(-regions // 2)
        return True

    def maps(self, images: Images, *, train: bool) -> Maps:
        side = self.local_patch_size * self.window_size
        local, regions = images, rearrange(images, "b (r p) (s q) d -> b r s (d p q)", p=side, q=side)
        depths = per_stage(self, "depth", 4, least=0)
        stages = zip(per_stage(self, "dim", 4), depths, stage_rates(self.drop_path, depths), strict=True)
        for i, (dim, depth, rates) in enumerate(stages):
            if i == 0:
                local = self._local_encoder(images, dim)
                regions = PointwiseConv(dim, name="region_encoder")(regions)
            else:
                halve = nn.Conv(dim, (3, 3), 2, padding=1, name=f"down_{i}")
                local, regions = halve(local), halve(regions)
                if self.use_peg:
                    local = local + DepthwiseConv(3, name=f"peg_{i}")(local)
            sizes = depth, self.window_size, self.attn_dropout, self.ff_dropout
            stage = RegionalToLocal(*sizes, rates, name=f"stage_{i}")
            local, regions = stage(local, regions, train=train)
        return regions

    def _local_encoder(self, x: Images, dim: int) -> Maps:
        if not self.tokenize_local_3_conv:
            return nn.Conv(dim, (8, 8), 4, padding=3, name="local_encoder")(x)
        for i in range(2):
            x = nn.Conv(dim, (3, 3), 2, padding=1, name=f"local_conv_{i}")(x)
            x = gelu(ChannelNorm(name=f"local_norm_{i}")(x))
        return nn.Conv(dim, (3, 3), padding=1, name="local_conv_2")(x)

    torch_rules = (
        *((f"local_conv_{i}", f"local_encoder.{3 * i}") for i in range(3)),
        *((f"local_norm_{i}", f"local_encoder.{3 * i + 1}") for i in range(2)),
        ("region_encoder", "region_encoder.1"),
        (r"down_(\d+)", r"layers.\1.0.conv"),
        (r"peg_(\d+)", r"layers.\1.1.proj"),
        (r"stage_(\d+)", r"layers.\1.2"),
        *attention_rules(r"attn_(\d+)", r"layers.\1.0"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1"),
        *sequential_rules("head", "to_logits", norm=1, fc=2),
    )


def _paper(dim, depth):
    return dict(image_size=224, dim=(dim, 2 * dim, 4 * dim, 8 * dim), depth=(2, 2, depth, 2))


_TINY = dict(image_size=32, dim=(32, 32, 48, 64), depth=1, window_size=4)
PRESETS = {"tiny": _TINY, "ti": _paper(64, 8), "s": _paper(96, 8), "m": _paper(96, 14), "b": _paper(128, 14)}
