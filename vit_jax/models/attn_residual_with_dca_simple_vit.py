"""SimpleViT with attention residuals of three ways: queries, keys and values each mix all earlier outputs in their own.

Source: Kimi Team 2026, arXiv:2603.15031; Heddes et al. 2025 (DeepCrossAttention), arXiv:2502.06785.
Upstream: vit_pytorch/attn_residual_with_dca_simple_vit.py.
Differs from upstream: `per_head` works with one head, too; `num_classes=0` gives tokens.
Differs from the paper: depth is mixed by the first paper's softmax, for three streams as in the second; the mix for
values is the residual; heads may have mixes of their own, in attention and feed-forward; attention is gated.
Axes: b batch, n tokens, d dim, h heads, i query, j key, l outputs so far, s streams, g groups of heads, f features.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Blocks, Dense, LayerNorm, PatchEmbed, attend, gelu, sincos_2d, softmax
from vit_jax.layers.check import at_least, expect, pair
from vit_jax.layers.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.layers.shapes import ExtraTokens, Images, Tokens
from vit_jax.models import simple_vit


class GroupedDense(nn.Module):
    """Linear map whose features fall into as many groups as there are inputs: each reads its own."""

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "g b n d"]) -> Float[Array, "b n f"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        y = jnp.einsum("gbnd,dge->bnge", x, kernel.reshape(len(kernel), len(x), -1))
        y = y.reshape(*x.shape[1:3], self.features)
        return y + self.param("bias", nn.initializers.zeros, (self.features,))[None, None] if self.use_bias else y


class DepthMix(nn.Module):
    """Averages of all outputs so far, weighed token by token: one for each of `streams` and `groups`, even at first."""

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
    """Feed-forward whose hidden features fall into groups, each with an input of its own; without the residual."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "g b n d"]) -> Tokens:
        hidden = GroupedDense(self.hidden_dim, use_bias=True, name="fc1")(LayerNorm(name="norm")(x))
        return Dense(x.shape[-1], name="fc2")(gelu(hidden))


class Attention(nn.Module):
    """Attention with inputs of its own for queries, keys and values, in one group or one for each head."""

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
    """`depth` blocks, each over the history of outputs, and a last norm."""

    groups: int
    ffn_heads: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, history: list[Tokens], *, train: bool = False) -> Tokens:
        for i in range(self.depth):
            streams = DepthMix(3, self.groups, self.norm, name=f"attn_res_{i}")(history)
            x = streams[2].mean(axis=0) + self.attention(name=f"attn_{i}")(streams)
            ff_input = x[None]
            if self.ffn_heads > 1:
                (ff_input,) = DepthMix(1, self.ffn_heads, self.norm, name=f"ffn_res_{i}")([*history, x])
            history = [*history, x + self.feed_forward(name=f"ff_{i}")(ff_input)]
        return self.norm(name="norm")(history[-1])


class DCASimpleViT(simple_vit.SimpleViT):
    """SimpleViT whose blocks read mixes of all outputs before them; the first two are the patches and a feed-forward.

    `per_head` and `ffn_heads` give each head of attention, and each of so many parts of the hidden layer, a mix of its
    own; `gate` scales each head's output; `temperature` is that of the positions.
    Raises ValueError when `ffn_heads` does not divide `mlp_dim`.
    """

    per_head: bool = False
    ffn_heads: int = 1
    gate: bool = True
    eps: float = 1e-6
    temperature: int | float = 10000

    def __post_init__(self):
        at_least(self, ffn_heads=1)
        expect(self, "mlp_dim", self.mlp_dim % self.ffn_heads == 0, f"a multiple of ffn_heads={self.ffn_heads}")
        super().__post_init__()

    def make_patch_embedding(self) -> nn.Module:
        norm = functools.partial(LayerNorm, use_bias=False)
        return PatchEmbed(pair("patch_size", self.patch_size), self.dim, norm)

    def make_transformer(self) -> nn.Module:
        norm = functools.partial(nn.RMSNorm, epsilon=self.eps)
        attention = functools.partial(Attention, self.heads, self.dim_head, self.gate, norm)
        feed_forward = functools.partial(FeedForward, self.mlp_dim)
        groups = self.heads if self.per_head else 1
        return Transformer(self.depth, attention, feed_forward, groups, self.ffn_heads, norm)

    def setup(self):
        super().setup()
        self.initial_ff = FeedForward(self.mlp_dim)

    def positions(self, rows: int, columns: int) -> np.ndarray:
        return sincos_2d(rows, columns, self.dim, float(self.temperature))

    def encode(self, images: Images, extra_tokens: ExtraTokens | None = None, *, train: bool = False) -> Tokens:
        x = self.embed(images, extra_tokens)
        return self.transformer([x, self.initial_ff(x[None])], train=train)


PRESETS = simple_vit.PRESETS  # the papers are about text

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    *feed_forward_rules("initial_ff", "initial_ff", fc2=3),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.ff", fc2=3),
    (r"attn_(\d+)/to_gate", r"layers.\1.attn.to_gate.0"),
    (r"(attn|attn_res|ffn_res)_(\d+)", r"layers.\2.\1"),
)
