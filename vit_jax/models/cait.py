"""CaiT: a class token that attends last, over finished patches.

Source: Touvron et al. 2021, arXiv:2103.17239. Upstream: vit_pytorch/cait.py.
Differs from upstream: layers drop only when `train` (upstream also drops them at evaluation); images and patches may
be non-square, of any number of `channels`; `num_classes=0` gives the class token, (b, 1, d); tokens and positions
start at a deviation of 0.02 (upstream: 1).
Differs from the paper: class attention has talking heads; by default LayerScale starts at a value by the layer's
index, as upstream's (`layer_scale_init` and the paper's presets: at the paper's, by the depth of the model).
Axes: b batch, n patches, m context, d dim, h heads in, g heads out, i query, j key, k classes.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, NormHead, PatchEmbed, add_positions, softmax
from vit_jax.layers.check import check_arguments, check_images, pair, patch_grid
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES, feed_forward_rules


class Attention(nn.Module):
    """Talking-heads attention (arXiv:2003.02436) of x over itself, or over [x, context]."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        source = x if context is None else jnp.concatenate([x, context], axis=1)
        q = Dense(inner_dim, use_bias=False, name="to_q")(x)
        kv = Dense(2 * inner_dim, use_bias=False, name="to_kv")(source)
        q = rearrange(q, "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(kv, "b n (kv h d) -> kv b h n d", kv=2, h=self.heads)

        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        attn = softmax(self.mix_heads("mix_heads_pre_attn", scores))
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        attn = self.mix_heads("mix_heads_post_attn", attn)
        self.sow("intermediates", "attn", attn)

        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)

    def mix_heads(self, name: str, maps: Float[Array, "b h i j"]) -> Float[Array, "b g i j"]:
        """Maps of all heads, mixed by a learned matrix."""
        mix = self.param(name, nn.initializers.normal(1.0), (self.heads, self.heads))
        return jnp.einsum("bhij,hg->bgij", maps, mix)


class Transformer(nn.Module):
    """`depth` blocks whose every branch has a LayerScale; in training each may drop, but never all of them."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    layer_dropout: float
    layer_scale_init: float | None

    def branches(self, layer: int, context: Float[Array, "b m d"] | None) -> Iterator[tuple[str, Callable]]:
        """The residual branches of a block in their order, by name."""
        attn = Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{layer}")
        yield "attn", functools.partial(attn, context=context)
        yield "ff", FeedForward(self.mlp_dim, self.dropout, name=f"ff_{layer}")

    def layer_scale(self, name: str, layer: int, dim: int) -> Float[Array, "1 1 d"]:
        """The factor of a branch."""
        by_index = 0.1 if layer < 18 else 1e-5 if layer < 24 else 1e-6
        epsilon = by_index if self.layer_scale_init is None else self.layer_scale_init
        return self.param(name, nn.initializers.constant(epsilon), (1, 1, dim))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        drops = train and self.layer_dropout > 0
        kept = keep_layers(self.make_rng("dropout"), self.depth, self.layer_dropout) if drops else None
        for i in range(self.depth):
            y = x
            for name, branch in self.branches(i, context):
                y = y + branch(y, train=train) * self.layer_scale(f"{name}_scale_{i}", i, x.shape[-1])
            x = jnp.where(kept[i], y, x) if drops else y
        return x


def keep_layers(key: Array, depth: int, rate: float) -> Bool[Array, "depth"]:
    """Which of `depth` layers stay when each drops with probability `rate`: at least one, drawn evenly."""
    key_keep, key_last = jax.random.split(key)
    keep = jax.random.bernoulli(key_keep, 1 - rate, (depth,))
    last = jnp.arange(depth) == jax.random.randint(key_last, (), 0, depth)
    return jnp.where(keep.any(), keep, last)


class CaiT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the class token (b, 1, d).

    `depth` layers are for patches among themselves, `cls_depth` for the class token over them. `layer_scale_init` is
    where every LayerScale starts; without it that is 0.1 in layers 1 to 18, 1e-5 up to 24 and 1e-6 behind.
    Raises ValueError when `patch_size` does not divide `image_size`.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: int
    cls_depth: int
    heads: int
    mlp_dim: int
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    layer_dropout: float = 0.0
    channels: int = 3
    layer_scale_init: float | None = None

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        check_images(images, self.channels)
        rows, columns = patch_grid(self.image_size, self.patch_size)
        init = nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", init, (1, 1, self.dim))
        pos_embedding = self.param("pos_embedding", init, (1, rows * columns, self.dim))

        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        x = add_positions(x, pos_embedding)
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)
        blocks = (self.heads, self.dim_head, self.mlp_dim, self.dropout, self.layer_dropout, self.layer_scale_init)
        x = Transformer(self.depth, *blocks, name="patch_transformer")(x, train=train)
        token = jnp.broadcast_to(cls_token, (len(x), 1, self.dim))
        token = Transformer(self.cls_depth, *blocks, name="cls_transformer")(token, x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(token[:, 0]) if self.num_classes else token


def _paper(dim, depth):
    sizes = dict(dim=dim, depth=depth, cls_depth=2, heads=dim // 48, dim_head=48, mlp_dim=4 * dim)
    return dict(image_size=224, patch_size=16, layer_scale_init=1e-5 if depth <= 24 else 1e-6, **sizes)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=3, cls_depth=1, heads=4, dim_head=16, mlp_dim=128),
    "xxs24": _paper(192, 24),
    "xxs36": _paper(192, 36),
    "xs24": _paper(288, 24),
    "xs36": _paper(288, 36),
    "s24": _paper(384, 24),
    "s36": _paper(384, 36),
    "s48": _paper(384, 48),
    "m24": _paper(768, 24),
    "m36": _paper(768, 36),
    "m48": _paper(768, 48),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_scale_(\d+)", r"layers.\1.0.scale"),
    (r"ff_scale_(\d+)", r"layers.\1.1.scale"),
    (r"attn_(\d+)/to_out", r"layers.\1.0.fn.to_out.0"),
    (r"attn_(\d+)", r"layers.\1.0.fn"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.fn.net"),
    *HEAD_RULES,
)
