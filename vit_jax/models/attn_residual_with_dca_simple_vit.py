"""SimpleViT with attention residuals of three ways: queries, keys and values each mix all earlier outputs in their own.

Source: Kimi Team 2026, arXiv:2603.15031; Heddes et al. 2025 (DeepCrossAttention), arXiv:2502.06785.
Upstream: vit_pytorch/attn_residual_with_dca_simple_vit.py.
Differs from upstream: `per_head` works with one head, too; `num_classes=0` gives tokens.
Differs from the paper: depth is mixed by the first paper's softmax, for three streams as in the second; the mix for
values is the residual; heads may have mixes of their own, in attention and feed-forward; attention is gated.
Axes: b batch, n tokens, d dim, h heads, i query, j key, l outputs so far, s streams, g groups of heads, f features.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, LayerNorm, append, gelu, sincos_2d, softmax
from vit_jax.layers.check import at_least, check_images, pair, patch_grid
from vit_jax.models.simple_vit import PRESETS as SIMPLE_PRESETS
from vit_jax.models.simple_vit import SimpleViT


class PatchEmbed(nn.Module):
    """Image to tokens, between norms without bias."""

    patch_size: tuple[int, int]
    dim: int

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b n d"]:
        patch_grid(images.shape[1:3], self.patch_size)
        ph, pw = self.patch_size
        x = rearrange(images, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)
        x = LayerNorm(use_bias=False, name="norm_in")(x)
        return LayerNorm(use_bias=False, name="norm_out")(Dense(self.dim, name="proj")(x))


class GroupedDense(nn.Module):
    """Linear map whose features fall into as many groups as there are inputs: each reads its own."""

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "g b n d"]) -> Float[Array, "b n f"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        kernel = rearrange(kernel, "d (g e) -> g d e", g=len(x))
        y = rearrange(jnp.einsum("gbnd,gde->bnge", x, kernel), "b n g e -> b n (g e)")
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))[None, None]
        return y


class DepthMix(nn.Module):
    """Averages of all outputs so far, weighed token by token: one for each of `streams` and `groups`, even at first."""

    streams: int
    groups: int
    eps: float

    @nn.compact
    def __call__(self, history: list[Float[Array, "b n d"]]) -> Float[Array, "s g b n d"]:
        values = jnp.stack(history)
        keys = nn.RMSNorm(epsilon=self.eps, name="norm")(values)
        shape = (self.streams, self.groups, values.shape[-1])
        queries = self.param("pseudo_queries", nn.initializers.zeros, shape)
        weights = softmax(jnp.einsum("lbnd,sgd->sgbnl", keys, queries))
        return jnp.einsum("sgbnl,lbnd->sgbnd", weights, values)


class FeedForward(nn.Module):
    """Feed-forward whose hidden features fall into groups, each with an input of its own; without the residual."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "g b n d"]) -> Float[Array, "b n d"]:
        hidden = GroupedDense(self.hidden_dim, use_bias=True, name="fc1")(LayerNorm(name="norm")(x))
        return Dense(x.shape[-1], name="fc2")(gelu(hidden))


class Attention(nn.Module):
    """Attention with inputs of its own for queries, keys and values, in one group or one for each head."""

    heads: int
    dim_head: int
    gate: bool
    eps: float

    @nn.compact
    def __call__(self, streams: Float[Array, "s g b n d"]) -> Float[Array, "b n d"]:
        norm = lambda name, x: nn.RMSNorm(epsilon=self.eps, name=name)(x)
        xq, xk, xv = (norm(f"norm_{name}", x) for name, x in zip("qkv", streams, strict=True))
        project = lambda name, x: rearrange(
            GroupedDense(self.heads * self.dim_head, name=name)(x), "b n (h d) -> b h n d", h=self.heads
        )
        q, k, v = project("to_q", xq), project("to_k", xk), project("to_v", xv)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        out = jnp.einsum("bhij,bhjd->bihd", attn, v)
        if self.gate:
            out = out * nn.sigmoid(GroupedDense(self.heads, name="to_gate")(xq))[..., None]
        return Dense(streams.shape[-1], use_bias=False, name="to_out")(rearrange(out, "b n h d -> b n (h d)"))


class Transformer(nn.Module):
    """`depth` blocks, each over the history of outputs, and a last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    per_head: bool
    ffn_heads: int
    gate: bool
    eps: float

    @nn.compact
    def __call__(self, history: list[Float[Array, "b n d"]]) -> Float[Array, "b n d"]:
        groups = self.heads if self.per_head else 1
        for i in range(self.depth):
            streams = DepthMix(3, groups, self.eps, name=f"attn_res_{i}")(history)
            residual = streams[2].mean(axis=0)
            x = residual + Attention(self.heads, self.dim_head, self.gate, self.eps, name=f"attn_{i}")(streams)
            ff_input = x[None]
            if self.ffn_heads > 1:
                (ff_input,) = DepthMix(1, self.ffn_heads, self.eps, name=f"ffn_res_{i}")([*history, x])
            history = [*history, x + FeedForward(self.mlp_dim, name=f"ff_{i}")(ff_input)]
        return nn.RMSNorm(epsilon=self.eps, name="norm")(history[-1])


class DCASimpleViT(SimpleViT):
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
        super().__post_init__()
        if self.mlp_dim % self.ffn_heads:
            raise ValueError(f"mlp_dim={self.mlp_dim}: expected a multiple of ffn_heads={self.ffn_heads}")

    def setup(self):
        self.to_patch_embedding = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        self.initial_ff = FeedForward(self.mlp_dim)
        self.transformer = self.make_transformer()
        if self.num_classes:
            self.linear_head = Dense(self.num_classes)

    def make_transformer(self) -> nn.Module:
        blocks = (self.depth, self.heads, self.dim_head, self.mlp_dim)
        return Transformer(*blocks, self.per_head, self.ffn_heads, self.gate, self.eps)

    def embed(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens before the transformer: the patches with positions, and the extra tokens."""
        check_images(images, self.channels)
        x = self.to_patch_embedding(images)
        grid = patch_grid(images.shape[1:3], self.patch_size)
        positions = sincos_2d(*grid, self.dim, float(self.temperature))
        x = x + jnp.asarray(positions, x.dtype)[None]
        return x if extra_tokens is None else append(x, extra_tokens)

    def encode(
        self, images: Float[Array, "b H W c"], extra_tokens: Float[Array, "e d"] | None = None, *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer: the patches, then the extra tokens. `train` changes nothing here."""
        x = self.embed(images, extra_tokens)
        return self.transformer([x, self.initial_ff(x[None])])


PRESETS = SIMPLE_PRESETS  # the papers are about text

TORCH_RULES = (
    ("to_patch_embedding/norm_in", "to_patch_embedding.1"),
    ("to_patch_embedding/proj", "to_patch_embedding.2"),
    ("to_patch_embedding/norm_out", "to_patch_embedding.3"),
    *((f"initial_ff/{part}", f"initial_ff.{index}") for part, index in (("norm", 0), ("fc1", 1), ("fc2", 3))),
    *((rf"ff_(\d+)/{part}", rf"layers.\1.ff.{index}") for part, index in (("norm", 0), ("fc1", 1), ("fc2", 3))),
    (r"attn_(\d+)/to_gate", r"layers.\1.attn.to_gate.0"),
    (r"(attn|attn_res|ffn_res)_(\d+)", r"layers.\2.\1"),
)
