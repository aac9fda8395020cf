"""SepViT: attention within windows, each with a window token, then attention among windows by their tokens.

Derives from the frame `MapViT` and defines how the map is computed.

Source: Li et al. 2022, arXiv:2203.15380. Upstream: vit_pytorch/sep_vit.py.
Differs from upstream: upstream accepts `window_size` and `dim_head`, but always uses 7 and 32, and so does this model
unless `upstream_sizes=False`; `image_size` may be given, and is then checked at construction; `num_classes=0` gives the
last map; window tokens have an initial std of 0.02 (upstream: 1).
Differs from the paper: one window token for all windows; no shortcuts inside attention; positions come before the first
block, not after it; no norm in patch embeddings, one at the end of a stage; no bias in query, key and value.
Axes: b batch, n windows, p their token and pixels, h heads, i query, j key, d dim, k classes.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vit_jax.frames import MapViT
from vit_jax.frames.rules import attention_rules, feed_forward_rules, sequential_rules
from vit_jax.frames.stages import check_depth, check_windows, per_stage
from vit_jax.layers import (
    ChannelNorm,
    ConvFeedForward,
    DepthwiseConv,
    LayerNorm,
    PointwiseConv,
    attend,
    drop_paths,
    gelu,
    sow_block,
    stage_rates,
)
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import Images, Maps


class SeparableAttention(nn.Module):
    """Self-attention within each window and its token, then among windows, with scores of their tokens."""

    heads: int
    dim_head: int
    window_size: int
    dropout: float

    @nn.compact
    def __call__(self, x: Maps, *, train: bool = False) -> Maps:
        _, rows, _, dim = x.shape
        window, inner_dim = self.window_size, self.heads * self.dim_head
        x = rearrange(ChannelNorm(name="norm")(x), "b (x w1) (y w2) d -> b (x y) (w1 w2) d", w1=window, w2=window)
        token = self.param("window_tokens", nn.initializers.normal(0.02), (dim,))
        x = jnp.concatenate([jnp.broadcast_to(token, (*x.shape[:2], 1, dim)), x], axis=2)
        qkv = nn.Conv(3 * inner_dim, (1,), use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n p (qkv h d) -> qkv b n h p d", qkv=3, h=self.heads)
        out = attend(self, q, k, v, dropout=self.dropout, train=train)

        out = rearrange(out, "b n p (h d) -> p b n h d", h=self.heads)
        tokens = rearrange(gelu(LayerNorm(name="token_norm")(out[0])), "b n h d -> b n (h d)")
        qk = nn.Conv(2 * inner_dim, (1,), name="token_to_qk")(tokens)
        q, k = rearrange(qk, "b n (h qk d) -> qk b h n d", h=self.heads, qk=2)
        v = rearrange(out[1:], "p b n h d -> b h n (p d)")
        # A single window attends only to itself, which must not be dropped.
        out = attend(self, q, k, v, dropout=self.dropout if x.shape[1] > 1 else 0.0, train=train)

        windows = dict(x=rows // window, w1=window, w2=window)
        out = rearrange(out, "b (x y) (h w1 w2 d) -> b (x w1) (y w2) (h d)", h=self.heads, **windows)
        return nn.Dropout(self.dropout)(PointwiseConv(dim, name="to_out")(out), deterministic=not train)


class SepViT(MapViT, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last feature map (b, h, w, d).

    Args:
        num_classes: number of classes; 0 for the last feature map.
        channels: channels of an image.
        image_size: pixels, or (height, width); optional, only checked at construction.
        dim: width of a pixel of the map in the first stage; it doubles from stage to stage.
        depth: number of blocks in each stage.
        heads: attention heads, one number or one per stage.
        window_size: side of a window, in pixels of the map, one number or one per stage.
        dim_head: width of a head.
        ff_mult: hidden width of each feed-forward, as a multiple of its input.
        dropout: rate within the blocks.
        upstream_sizes: use 7 for `window_size` and 32 for `dim_head`, whatever they are, as
            upstream does.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if windows do not tile the maps of an image.
    """

    dim: int
    depth: tuple[int, ...]
    heads: int | tuple[int, ...]
    window_size: int | tuple[int, ...] = 7
    dim_head: int = 32
    ff_mult: int = 4
    dropout: float = 0.0
    upstream_sizes: bool = True

    def check(self):
        check_depth(self)
        per_stage(self, "heads", len(self.depth))
        self._windows()
        expect(self, "ff_mult", int(self.dim * self.ff_mult) >= 1, "at least 1 / dim")

    def check_size(self, size, name="image_size"):
        check_windows(size, self._windows())

    def _windows(self) -> tuple[int, ...]:
        windows = per_stage(self, "window_size", len(self.depth))
        return (7,) * len(windows) if self.upstream_sizes else windows

    def maps(self, images: Images, *, train: bool) -> Maps:
        x, dim_head = images, 32 if self.upstream_sizes else self.dim_head
        stages = zip(self.depth, per_stage(self, "heads", len(self.depth)), self._windows(), strict=True)
        rates = stage_rates(self.drop_path, self.depth)
        for i, (depth, heads, window) in enumerate(stages):
            dim, stride = 2**i * self.dim, 2 if i else 4
            kernel = (2 * stride - 1, 2 * stride - 1)
            if i > 0:
                x = ChannelNorm(name=f"norm_{i - 1}")(x)
            x = nn.Conv(dim, kernel, strides=(stride, stride), padding=stride - 1, name=f"patches_{i}")(x)
            x = x + DepthwiseConv(kernel=3, name=f"positions_{i}")(x)
            for j, drop_path in enumerate(drop_paths(self, rates[i], depth, train)):
                attention = SeparableAttention(heads, dim_head, window, self.dropout, name=f"stage_{i}_attn_{j}")
                x = x + drop_path(attention(x, train=train))
                ff = ConvFeedForward(int(self.ff_mult * dim), self.dropout, name=f"stage_{i}_ff_{j}")
                x = x + drop_path(ff(x, train=train))
                sow_block(self, x)
        return x

    torch_rules = (
        (r"patches_(\d+)", r"layers.\1.0.conv"),
        (r"positions_(\d+)", r"layers.\1.1.proj"),
        (r"norm_(\d+)", r"layers.\1.2.norm"),
        (r"stage_(\d+)_attn_(\d+)/token_norm", r"layers.\1.2.layers.\2.0.window_tokens_to_qk.0"),
        (r"stage_(\d+)_attn_(\d+)/token_to_qk", r"layers.\1.2.layers.\2.0.window_tokens_to_qk.3"),
        *attention_rules(r"stage_(\d+)_attn_(\d+)", r"layers.\1.2.layers.\2.0"),
        *feed_forward_rules(r"stage_(\d+)_ff_(\d+)", r"layers.\1.2.layers.\2.1.net"),
        *sequential_rules("head", "mlp_head", norm=1, fc=2),
    )


def _paper(dim, heads, third):
    stages = dict(depth=(1, 2, third, 2), heads=(heads, 2 * heads, 4 * heads, 8 * heads))
    return dict(image_size=224, dim=dim, **stages)


_SMALL = dict(window_size=4, dim_head=16, upstream_sizes=False)
PRESETS = {
    "tiny": dict(image_size=32, dim=32, depth=(1, 2), heads=(2, 4), ff_mult=2, **_SMALL),
    "lite": _paper(32, 1, 6),
    "t": _paper(96, 3, 6),
    "s": _paper(96, 3, 14),
    "b": _paper(128, 4, 14),
}
