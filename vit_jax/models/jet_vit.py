"""JetViT: each layer has full, windowed or linear attention; the paper searches for the best choice.

Derives from the frame `PlainViT`, without class token, and overrides the transformer.

Source: Zou et al. 2026, arXiv:2605.26636. Upstream: vit_pytorch/jet_vit.py.
Differs from upstream: a layer with several attentions draws one in training, and uses the first one at evaluation
(upstream: draws then too); positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: only the architecture, without a pretrained model, distillation and search.
Axes: b batch, n tokens, d dim, f features of a head, e inner dim, h heads, i query, j key.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY
from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.layers import Attention, Dense, FeedForward, LayerNorm, WindowAttention, drop_paths, sow_block
from vit_jax.layers.check import expect, patch_grid
from vit_jax.layers.shapes import Images, Patches, Tokens


class LinearAttention(nn.Module):
    """ReLU attention in linear time, plus a 3x3 depthwise convolution of the values.

    relu(q) relu(k) replaces exp(q k), so that one sum over keys and values serves all queries. The
    kernel of the convolution is computed from the image.
    """

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, grid: tuple[int, int], *, train: bool = False) -> Tokens:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(LayerNorm(name="norm")(x))
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        q, k = jax.nn.relu(q), jax.nn.relu(k)
        summed = jnp.einsum("bhnd,bhne->bhde", k, v)
        weight = jnp.einsum("bhnd,bhd->bhn", q, k.sum(axis=2))
        out = jnp.einsum("bhnd,bhde->bhne", q, summed) / jnp.maximum(weight, 1e-6)[..., None]
        out = rearrange(out, "b h n d -> b n (h d)") + self._dynamic_conv(qkv[..., 2 * inner_dim :], grid)
        if self.heads == 1 and self.dim_head == dim:
            return out
        return nn.Dropout(self.dropout)(Dense(dim, name="to_out")(out), deterministic=not train)

    def _dynamic_conv(self, v: Float[Array, "b n e"], grid: tuple[int, int]) -> Float[Array, "b n e"]:
        dim, (rows, columns) = v.shape[-1], grid
        hidden = jax.nn.silu(Dense(dim // 4, name="squeeze")(v.mean(axis=1)))
        kernels = rearrange(Dense(9 * dim, name="expand")(hidden), "b (e i j) -> i j b 1 1 e", i=3, j=3)
        padded = jnp.pad(v.reshape(v.shape[0], rows, columns, dim), ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = lambda i, j: padded[:, i : i + rows, j : j + columns]
        out = sum(shifted(i, j) * kernels[i, j] for i in range(3) for j in range(3))
        return out.reshape(v.shape)


class Transformer(nn.Module):
    """Blocks of a feed-forward and one of the attentions that `attn_layers` names, and a last norm.

    Every layer has the parameters of all three attentions, so that a search can choose again later.
    """

    dim: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    window: int
    attn_layers: tuple[tuple[str, ...], ...]
    grid: tuple[int, int]
    drop_path: float

    def setup(self):
        count = range(len(self.attn_layers))
        self.window_attn = [WindowAttention(self.dim_head, self.window, self.dropout) for _ in count]
        self.linear_attn = [LinearAttention(self.heads, self.dim_head, self.dropout) for _ in count]
        self.full_attn = [Attention(self.heads, self.dim_head, self.dropout) for _ in count]
        self.ff = [FeedForward(self.mlp_dim, self.dropout) for _ in count]
        self.norm = LayerNorm()

    def _attend(self, name: str, i: int, x: Array, grid: tuple[int, int], train: bool) -> Array:
        if name == "FA":
            return self.full_attn[i](x, train=train)
        if name == "LA":
            return self.linear_attn[i](x, grid, train=train)
        sizes = dict(x=grid[0] // self.window, y=grid[1] // self.window, i=self.window)
        windows = rearrange(x, "b (x i y j) d -> b x y (i j) d", j=self.window, **sizes)
        return rearrange(self.window_attn[i](windows, train=train), "b x y (i j) d -> b (x i y j) d", **sizes)

    def _draw(self, names: tuple[str, ...], i: int, x: Array) -> Array:
        """The output of one of the attentions `names`, drawn uniformly."""
        chosen = jax.random.randint(self.make_rng("dropout"), (), 0, len(names))
        branch = lambda name: lambda self, x: self._attend(name, i, x, self.grid, True)
        return nn.switch(chosen, [branch(name) for name in names], self, x)

    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        if x.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"images of {x.shape[1]} patches: expected a grid of {self.grid}, that of image_size")
        drop = drop_paths(self, self.drop_path, len(self.attn_layers), train)
        for i, (names, drop_path) in enumerate(zip(self.attn_layers, drop, strict=True)):
            if self.is_initializing():  # creates the parameters of all attentions, on a single window
                for name in ("WA", "LA", "FA"):
                    self._attend(name, i, x[:1, :1].repeat(self.window**2, axis=1), (self.window, self.window), False)
            draws = train and len(names) > 1 and not self.is_initializing()
            out = self._draw(names, i, x) if draws else self._attend(names[0], i, x, self.grid, train)
            x = x + drop_path(out)
            x = x + drop_path(self.ff[i](x, train=train))
            sow_block(self, x)
        return self.norm(x)


class JetViT(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Images must have `image_size`. There is no class token: the head reads the mean of all patches.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        window_size: side of a window, in patches.
        attn_layers: for each block "FA" for full attention, "WA" for attention within windows, "LA"
            for linear attention, or a tuple of several to draw from in training; by default all
            "FA".
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `attn_layers` has unknown names or
            does not have `depth` entries, `dim_head` does not divide `dim`, or there are windows
            and `window_size` does not divide the sides of the grid of patches.
    """

    pool: ClassVar[str] = "mean"
    window_size: int = 7
    attn_layers: Sequence[str | Sequence[str]] | None = None

    def __post_init__(self):
        super().__post_init__()
        layers, grid = self._attentions(), patch_grid(self.image_size, self.patch_size)
        known = all(names and {"FA", "WA", "LA"}.issuperset(names) for names in layers)
        each = f"depth={self.depth} entries, each 'FA', 'WA', 'LA' or a tuple of them"
        expect(self, "attn_layers", known and len(layers) == self.depth, each)
        multiple = f"a multiple of dim_head={self.dim_head}, for attention in windows"
        expect(self, "dim", self.dim % self.dim_head == 0, multiple)
        fits = [size for size in range(1, max(grid) + 1) if not any(side % size for side in grid)]
        unread = self.window_size > 0 and not any("WA" in names for names in layers)
        expect(self, "window_size", unread or self.window_size in fits, f"one of {fits}, which divide {grid} patches")

    def _attentions(self) -> tuple[tuple[str, ...], ...]:
        layers = ("FA",) * self.depth if self.attn_layers is None else self.attn_layers
        return tuple((names,) if isinstance(names, str) else tuple(names) for names in layers)

    def make_transformer(self) -> nn.Module:
        grid = patch_grid(self.image_size, self.patch_size)
        blocks = (self.dim, self.heads, self.dim_head, self.mlp_dim, self.dropout)
        return Transformer(*blocks, self.window_size, self._attentions(), grid, self.drop_path)

    def make_head(self) -> nn.Module:
        return Dense(self.num_classes)

    def encode(self, images: Images, *, patches: Patches | None = None, train: bool = False) -> Tokens:
        """Tokens after the transformer: the patches. Extra tokens would have no place in the grid."""
        return super().encode(images, patches=patches, train=train)

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        pos_embedding = self.param("pos_embedding", nn.initializers.normal(0.02), (patches, self.dim))
        return pos_embedding[:0], pos_embedding

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"(\w+_attn_\d+)/to_out", r"\1/to_out.0"),
        ("squeeze", "dynamic_conv.mlp.0"),
        ("expand", "dynamic_conv.mlp.2"),
        (r"window_attn_(\d+)", r"layers.\1.0.options.WA"),
        (r"linear_attn_(\d+)", r"layers.\1.0.options.LA"),
        (r"full_attn_(\d+)", r"layers.\1.0.options.FA"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net"),
    )


PRESETS = {"tiny": TINY | dict(window_size=4, attn_layers=("LA", "WA", "LA", "FA"))}
