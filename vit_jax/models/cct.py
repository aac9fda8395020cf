"""CCT: convolutions make the tokens, and attention pooling replaces the class token.

Source: Hassani et al. 2021, arXiv:2104.05704. Upstream: vit_pytorch/cct.py.
Differs from upstream: `seq_pool=False` works (upstream raises) and gives a class token; `image_size` and `channels` are
other names of `img_size` and `n_input_channels`; `stride` and `padding` may be None, as in upstream's functions
cct_2 to cct_16, which are presets here; images may be smaller than `img_size`; `num_classes=0` gives tokens.
Differs from the paper: by default positions are sines (paper: learned, as in the paper's presets).
Axes: b batch, n tokens, d dim, h heads, i query, j key, k classes.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.inputs import ImageInput
from vit_jax.layers import (
    Dense,
    LayerNorm,
    ToHeads,
    add_positions,
    attend,
    drop_rates,
    gelu,
    make_drop_path,
    max_pool,
    prepend,
    sincos_1d,
    softmax,
    sow_block,
)
from vit_jax.layers.check import at_least, check_sides, expect, one_of, pair
from vit_jax.layers.shapes import Inputs, Output, Tokens

Axis = tuple[tuple[int, int, int], tuple[int, int, int]]  # (kernel, stride, padding): convolution, max pooling


class Attention(nn.Module):
    """Self-attention without a norm, which the block applies; the heads divide the width of the tokens."""

    heads: int
    attention_dropout: float
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, self.heads, x.shape[-1] // self.heads, name="qkv")(x)
        out = attend(self, q, k, v, dropout=self.attention_dropout, train=train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="proj")(out), deterministic=not train)


class Block(nn.Module):
    """Attention and feed-forward; the second residual branches off after the second norm, not before it."""

    heads: int
    mlp_dim: int
    dropout: float
    attention_dropout: float
    drop_path: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        drop_path = make_drop_path(self, self.drop_path, train)
        attn = Attention(self.heads, self.attention_dropout, self.dropout, name="self_attn")
        x = x + drop_path(attn(LayerNorm(name="pre_norm")(x), train=train))
        x = LayerNorm(name="norm1")(x)
        y = dropout(gelu(Dense(self.mlp_dim, name="linear1")(x)))
        return x + drop_path(dropout(Dense(x.shape[-1], name="linear2")(y)))


class CCT(ImageInput):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions, if there are any.

    Args:
        img_size: pixels, or (height, width); `image_size` takes precedence.
        embedding_dim: width of a token, a multiple of `num_heads`.
        n_input_channels: channels of an image; `channels` takes precedence.
        n_conv_layers: number of layers that convolve and pool to make the tokens.
        kernel_size: side of the convolutions, in pixels.
        stride: stride of the convolutions; None for one that follows from `kernel_size`.
        padding: padding of the convolutions; None for one that follows from `kernel_size`.
        pooling_kernel_size: side of the max pooling, in pixels.
        pooling_stride: stride of the max pooling.
        pooling_padding: padding of the max pooling, at most half of its side.
        dropout_rate: rate within the blocks and on the tokens before the first block.
        attention_dropout: rate on the attention maps.
        stochastic_depth_rate: rate at which the branches of the last block are dropped; it rises
            linearly from 0.
        num_layers: number of blocks.
        num_heads: attention heads in each block.
        mlp_ratio: hidden width of each feed-forward, as a multiple of `embedding_dim`.
        num_classes: number of classes; 0 for tokens.
        positional_embedding: "sine", "learnable" or "none". Sines are stored as a parameter without
            gradient, as upstream does.
        seq_pool: pool the tokens by attention; False reads a class token instead.
        image_size: another name of `img_size`.
        channels: another name of `n_input_channels`.

    Raises:
        ValueError: if `num_heads` does not divide `embedding_dim`, `positional_embedding` is
            unknown, or an image is too small for one token.
    """

    img_size: int | tuple[int, int] = 224
    embedding_dim: int = 768
    n_input_channels: int = 3
    n_conv_layers: int = 1
    kernel_size: int = 7
    stride: int | None = 2
    padding: int | None = 3
    pooling_kernel_size: int = 3
    pooling_stride: int = 2
    pooling_padding: int = 1
    dropout_rate: float = 0.0
    attention_dropout: float = 0.1
    stochastic_depth_rate: float = 0.1
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    positional_embedding: str = "sine"
    seq_pool: bool = True
    image_size: int | tuple[int, int] | None = None
    channels: int | None = None

    def __post_init__(self):
        self.image_size = self.img_size = self.img_size if self.image_size is None else self.image_size
        self.channels = self.n_input_channels = self.n_input_channels if self.channels is None else self.channels
        check_arguments(self)
        at_least(self, embedding_dim=1, num_heads=1, num_layers=0, n_conv_layers=1, kernel_size=1, stride=1, padding=0)
        at_least(self, pooling_kernel_size=1, pooling_stride=1, pooling_padding=0)
        one_of("positional_embedding", self.positional_embedding, ("sine", "learnable", "none"))
        dim, most = self.embedding_dim, self.pooling_kernel_size // 2
        expect(self, "num_heads", dim % self.num_heads == 0, f"a divisor of embedding_dim={dim}")
        expect(self, "mlp_ratio", int(dim * self.mlp_ratio) > 0, "at least 1 / embedding_dim")
        expect(self, "pooling_padding", self.pooling_padding <= most, "at most half of pooling_kernel_size")
        self.grid()
        super().__post_init__()

    def axes(self) -> tuple[Axis, ...]:
        """Kernel, stride and padding along each axis of the input."""
        half = self.kernel_size // 2
        stride = max(1, half - 1) if self.stride is None else self.stride
        padding = max(1, half) if self.padding is None else self.padding
        pool = (self.pooling_kernel_size, self.pooling_stride, self.pooling_padding)
        return 2 * (((self.kernel_size, stride, padding), pool),)

    def tokens_along(self, axis: Axis, side: int) -> int:
        """Number of tokens along an axis of `side` pixels; 0 or less if it is too short for one."""
        for kernel, stride, padding in self.n_conv_layers * axis:
            side = (side + 2 * padding - kernel) // stride + 1 if side > 0 else 0
        return side

    def grid(self, sides: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Number of tokens along each axis of an input of these sides, by default of the model's.

        Raises:
            ValueError: if a side is too short for one token.
        """
        size, axis = self.image_size if sides is None else sides, self.axes()[-1]
        check_sides("image_size", size, lambda side: self.tokens_along(axis, side) > 0)
        return tuple(self.tokens_along(axis, side) for side in pair("image_size", size))

    @nn.compact
    def __call__(self, images: Inputs, *, train: bool = False) -> Output:
        check = self.check_input if self.positional_embedding == "none" else self.check_positions
        check(images)
        self.grid(images.shape[1:-1])
        convs, pools = zip(*self.axes(), strict=True)
        kernel, stride, padding = zip(*convs, strict=True)
        pool, step, margin = zip(*pools, strict=True)
        both = lambda margins: [(margin, margin) for margin in margins]
        conv = dict(kernel_size=kernel, strides=stride, padding=both(padding), use_bias=False)
        x = images
        for i in range(self.n_conv_layers):
            dim = self.embedding_dim if i == self.n_conv_layers - 1 else 64
            x = nn.Conv(dim, **conv, kernel_init=nn.initializers.he_normal(), name=f"conv_{i}")(x)
            x = max_pool(jax.nn.relu(x), pool, step, both(margin))
        x = rearrange(x, "b ... d -> b (...) d")
        if not self.seq_pool:
            x = prepend(self.param("class_emb", nn.initializers.zeros, (1, 1, self.embedding_dim)), x)
        x = nn.Dropout(self.dropout_rate)(self.add_positions(x), deterministic=not train)

        mlp_dim = int(self.embedding_dim * self.mlp_ratio)
        sizes = (self.num_heads, mlp_dim, self.dropout_rate, self.attention_dropout)
        for i, rate in enumerate(drop_rates(self.stochastic_depth_rate, self.num_layers)):
            x = Block(*sizes, rate, name=f"blocks_{i}")(x, train=train)
            sow_block(self, x)
        x = LayerNorm(name="norm")(x)
        if not self.num_classes:
            return x
        pooled = x[:, 0]
        if self.seq_pool:
            pooled = jnp.einsum("bn,bnd->bd", softmax(Dense(1, name="attention_pool")(x)[:, :, 0]), x)
        return Dense(self.num_classes, name="fc")(pooled)

    def count_tokens(self) -> int:
        """Number of tokens of an input of the model's size, the class token included."""
        return math.prod(self.grid()) + (not self.seq_pool)

    def add_positions(self, x: Tokens) -> Tokens:
        """Add positions of the kind that `positional_embedding` names."""
        if self.positional_embedding == "none":
            return x
        shape = (1, self.count_tokens(), self.embedding_dim)
        if self.positional_embedding == "learnable":
            positions = self.param("positional_emb", nn.initializers.truncated_normal(0.2), shape)
        else:
            sines = self.param("positional_emb", lambda key: jnp.asarray(sincos_1d(*shape[1:]))[None])
            positions = jax.lax.stop_gradient(sines)
        return add_positions(x, positions)

    torch_rules = (
        (r"conv_(\d+)", r"tokenizer.conv_layers.\1.0"),
        (r"blocks_(\d+)", r"classifier.blocks.\1"),
        (r"(class_emb|positional_emb|norm|attention_pool|fc)", r"classifier.\1"),
    )


def _function(layers):
    """The arguments set by upstream's function of that number of layers, equal to those of the paper's model."""
    heads, mlp_ratio, dim = (2, 1.0, 128) if layers < 6 else (4, 2.0, 256) if layers < 14 else (6, 3.0, 384)
    sizes = dict(num_layers=layers, num_heads=heads, mlp_ratio=mlp_ratio, embedding_dim=dim)
    return dict(kernel_size=3, stride=None, padding=None, **sizes)


def _paper(layers, kernel_size, n_conv_layers):
    tokenizer = dict(kernel_size=kernel_size, n_conv_layers=n_conv_layers, img_size=224 if kernel_size == 7 else 32)
    return _function(layers) | tokenizer | dict(positional_embedding="learnable")


_TOKENIZED = ((2, 3, 2), (4, 3, 2), (6, 3, 2), (7, 3, 2), (14, 7, 2), (6, 3, 1), (7, 3, 1))
PRESETS = {"tiny": _paper(2, 3, 2)} | {f"cct_{layers}": _function(layers) for layers in (2, 4, 6, 7, 8, 14, 16)}
PRESETS |= {f"{layers}_{kernel}x{n}": _paper(layers, kernel, n) for layers, kernel, n in _TOKENIZED}
# Ours, for a few epochs on two CPU cores: a third convolution leaves 4x4 tokens of 32x32 pixels, and nothing drops.
PRESETS["2_3x3"] = _paper(2, 3, 3) | dict(attention_dropout=0.0, stochastic_depth_rate=0.0)
