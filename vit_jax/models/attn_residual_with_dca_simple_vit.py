"""SimpleViT with attention residuals: queries, keys and values each read their own mixture of all earlier outputs.

Derives from the frame `BaseSimpleViT` and overrides the transformer, which keeps the outputs of all blocks.

Source: Kimi Team 2026, arXiv:2603.15031; Luo et al. 2026 (Multi-Head Attention Residuals), arXiv:2607.27230; Heddes et
al. 2025 (DeepCrossAttention), arXiv:2502.06785.
Upstream: vit_pytorch/attn_residual_with_dca_simple_vit.py.
Differs from upstream: `num_classes=0` gives tokens.
Differs from the paper: the first paper's softmax over depth mixes outputs for three streams, as in the third paper; the
mixture that the values read is also the residual; groups of the feed-forward may have mixtures of their own; attention
is gated.
Axes: b batch, n tokens, d dim, h heads, i query, j key, l outputs so far, s streams, g groups of heads, f features.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import Blocks, Dense, LayerNorm, PatchEmbed, attend, gelu, sincos_2d, softmax, sow_block
from vit_jax.layers.check import at_least, expect, pair
from vit_jax.layers.shapes import Tokens
from vit_jax.models import simple_vit


class GroupedDense(nn.Module):
    """Linear map in groups: there is one input for each group of output features."""

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "g b n d"]) -> Float[Array, "b n f"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        y = jnp.einsum("gbnd,dge->bnge", x, kernel.reshape(len(kernel), len(x), -1))
        y = y.reshape(*x.shape[1:3], self.features)
        return y + self.param("bias", nn.initializers.zeros, (self.features,))[None, None] if self.use_bias else y


class DepthMix(nn.Module):
    """Weighted averages of all earlier outputs: one for each of `streams` and `groups`, with weights for each token.

    The averages are uniform at initialisation.
    """

    streams: int
    groups: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, history: list[Tokens]) -> Float[Array, "s g b n d"]:
        values = jnp.stack(history)
        keys = self.norm(name="norm")(values)
        queries = self.param("pseudo_queries", nn.initializers.zeros, (self.streams, self.groups, values.shape[-1]))
        weights = softmax(jnp.einsum("lbnd,sgd->sgbnl", keys, queries))
        return jnp.einsum("sgbnl,lbnd->sgbnd", weights, values)


class FeedForward(nn.Module):
    """Feed-forward whose hidden features are in groups, each with an input of its own; without the residual."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "g b n d"]) -> Tokens:
        hidden = GroupedDense(self.hidden_dim, use_bias=True, name="fc1")(LayerNorm(name="norm")(x))
        return Dense(x.shape[-1], name="fc2")(gelu(hidden))


class Attention(nn.Module):
    """Attention whose queries, keys and values have separate inputs, one for each group of heads."""

    heads: int
    dim_head: int
    gate: bool
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, streams: Float[Array, "s g b n d"]) -> Tokens:
        inputs = {part: self.norm(name=f"norm_{part}")(x) for part, x in zip("qkv", streams, strict=True)}
        projected = (GroupedDense(self.heads * self.dim_head, name=f"to_{part}")(x) for part, x in inputs.items())
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in projected)
        out = attend(self, q, k, v)
        if self.gate:
            gates = nn.sigmoid(GroupedDense(self.heads, name="to_gate")(inputs["q"]))
            out = out * jnp.repeat(gates, self.dim_head, axis=-1)
        return Dense(streams.shape[-1], use_bias=False, name="to_out")(out)


class Transformer(Blocks):
    """`depth` blocks that read mixtures of all earlier outputs, and a last norm."""

    groups: int
    ffn_heads: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, history: list[Tokens], *, train: bool = False) -> Tokens:
        for i, drop_path in enumerate(self.drop_paths(train)):
            streams = DepthMix(3, self.groups, self.norm, name=f"attn_res_{i}")(history)
            x = streams[2].mean(axis=0) + drop_path(self.attention(name=f"attn_{i}")(streams))
            ff_input = x[None]
            if self.ffn_heads > 1:
                (ff_input,) = DepthMix(1, self.ffn_heads, self.norm, name=f"ffn_res_{i}")([*history, x])
            history = [*history, x + drop_path(self.feed_forward(name=f"ff_{i}")(ff_input))]
            sow_block(self, history[-1])
        return self.norm(name="norm")(history[-1])


class DCASimpleViT(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    The first two outputs that the blocks can read are the patches and a feed-forward of them.
    Positions are computed from the size of each image, which may be any that `patch_size` divides.

    Args:
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, a multiple of 4.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        head_groups: groups of heads with a mixture of their own; 1 shares one among all heads,
            `heads` gives each its own.
        ffn_heads: groups of the hidden layer of a feed-forward with a mixture of their own.
        gate: scale the output of each head by a gate.
        eps: epsilon of the RMS norms.
        temperature: temperature of the sine-cosine positions.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `dim` is not a multiple of 4 above
            4, `head_groups` does not divide `heads`, or `ffn_heads` does not divide `mlp_dim`.
    """

    head_groups: int = 1
    ffn_heads: int = 1
    gate: bool = True
    eps: float = 1e-6
    temperature: int | float = 10000

    def __post_init__(self):
        at_least(self, head_groups=1, ffn_heads=1)
        expect(self, "head_groups", self.heads % self.head_groups == 0, f"a divisor of heads={self.heads}")
        expect(self, "mlp_dim", self.mlp_dim % self.ffn_heads == 0, f"a multiple of ffn_heads={self.ffn_heads}")
        super().__post_init__()

    def make_patch_embedding(self) -> nn.Module:
        norm = functools.partial(LayerNorm, use_bias=False)
        return PatchEmbed(pair("patch_size", self.patch_size), self.dim, norm)

    def make_transformer(self) -> nn.Module:
        norm = functools.partial(nn.RMSNorm, epsilon=self.eps)
        attention = functools.partial(Attention, self.heads, self.dim_head, self.gate, norm)
        feed_forward = functools.partial(FeedForward, self.mlp_dim)
        sizes = self.head_groups, self.ffn_heads
        return Transformer(self.depth, attention, feed_forward, *sizes, norm, drop_path=self.drop_path)

    def setup(self):
        super().setup()
        self.initial_ff = FeedForward(self.mlp_dim)

    def positions(self, rows: int, columns: int) -> np.ndarray:
        return sincos_2d(rows, columns, self.dim, float(self.temperature))

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        return self.transformer([tokens, self.initial_ff(tokens[None])], train=train)

    torch_rules = (
        *PATCH_EMBED_RULES,
        *feed_forward_rules("initial_ff", "initial_ff", fc2=3),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.ff", fc2=3),
        (r"attn_(\d+)/to_gate", r"layers.\1.attn.to_gate.0"),
        (r"(attn|attn_res|ffn_res)_(\d+)", r"layers.\2.\1"),
    )


PRESETS = simple_vit.PRESETS  # the papers are about text
