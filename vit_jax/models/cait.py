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
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, NormHead, PatchEmbed, ToHeads, add_positions, prepend, softmax
from vit_jax.layers.check import check_arguments, check_images, pair, patch_grid
from vit_jax.layers.presets import TINY, vit_sizes
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES, attention_rules, feed_forward_rules
from vit_jax.layers.shapes import Images, Output, Tokens


class Attention(nn.Module):
    """Talking-heads attention (arXiv:2003.02436) of x over itself, or over [x, context]."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *context: Float[Array, "b m d"], train: bool = False) -> Tokens:
        init = nn.initializers.normal(1.0)
        x = LayerNorm(name="norm")(x)
        (q,) = ToHeads(1, self.heads, self.dim_head, name="to_q")(x)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(jnp.concatenate([x, *context], axis=1))
        mix = lambda name, maps: jnp.einsum("bhij,hg->bgij", maps, self.param(name, init, (self.heads, self.heads)))

        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        attn = nn.Dropout(self.dropout)(softmax(mix("mix_heads_pre_attn", scores)), deterministic=not train)
        attn = mix("mix_heads_post_attn", attn)
        self.sow("intermediates", "attn", attn)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class Transformer(nn.Module):
    """`depth` blocks whose every branch has a LayerScale; in training each block may drop, but never all of them.

    A block has the `branches` in their order, of each its name and what makes it; `context` goes to "attn". The
    LayerScales of block i start at `scales[i]`; before their d features they have the axes `leading`.
    """

    depth: int
    branches: Mapping[str, Callable[..., nn.Module]]
    layer_dropout: float
    scales: tuple[float, ...]
    leading: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Tokens, *context: Float[Array, "b m d"], train: bool = False) -> Tokens:
        drops = train and self.layer_dropout > 0
        kept = keep_layers(self.make_rng("dropout"), self.depth, self.layer_dropout) if drops else None
        for i in range(self.depth):
            y, init = x, nn.initializers.constant(self.scales[i])
            for name, make in self.branches.items():
                out = make(name=f"{name}_{i}")(y, *(context if name == "attn" else ()), train=train)
                y = y + out * self.param(f"{name}_scale_{i}", init, (*self.leading, x.shape[-1])).reshape(1, 1, -1)
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

    leading: ClassVar[tuple[int, ...]] = (1, 1)  # axes of the class token and of every LayerScale, before d

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    def scale_by_index(self, layer: int) -> float:
        """Where the LayerScales of a layer, counted from 0, start by default."""
        return 0.1 if layer < 18 else 1e-5 if layer < 24 else 1e-6

    def make_transformer(self, depth: int, attention: type[nn.Module], name: str, **others: Callable) -> nn.Module:
        """Blocks of attention, what others there are, and a feed-forward."""
        attn = functools.partial(attention, self.heads, self.dim_head, self.dropout)
        branches = dict(attn=attn, **others, ff=functools.partial(FeedForward, self.mlp_dim, self.dropout))
        fixed = self.layer_scale_init
        scales = tuple(self.scale_by_index(i) if fixed is None else fixed for i in range(depth))
        return Transformer(depth, branches, self.layer_dropout, scales, self.leading, name=name)

    def embed(self, images: Images, *, train: bool) -> tuple[Float[Array, "b 1 d"], Tokens]:
        """The class token of every image, and its patches with positions."""
        check_images(images, self.channels, self.image_size)
        init, patches = nn.initializers.normal(0.02), math.prod(patch_grid(self.image_size, self.patch_size))
        cls_token = self.param("cls_token", init, (*self.leading, self.dim)).reshape(1, 1, self.dim)
        pos_embedding = self.param("pos_embedding", init, (1, patches, self.dim))
        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        x = nn.Dropout(self.emb_dropout)(add_positions(x, pos_embedding), deterministic=not train)
        return prepend(cls_token, x[:, :0]), x

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        token, x = self.embed(images, train=train)
        x = self.make_transformer(self.depth, Attention, "patch_transformer")(x, train=train)
        token = self.make_transformer(self.cls_depth, Attention, "cls_transformer")(token, x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(token[:, 0]) if self.num_classes else token


def _paper(dim, depth):
    layers = dict(cls_depth=2, layer_scale_init=1e-5 if depth <= 24 else 1e-6)
    return vit_sizes(dim, depth, heads=dim // 48, dim_head=48, **layers)


_DIMS = dict(xxs=192, xs=288, s=384, m=768)
PRESETS = {
    "tiny": TINY | dict(depth=3, cls_depth=1),
    **{f"{size}{depth}": _paper(dim, depth) for size, dim in _DIMS.items() for depth in (24, 36)},
    **{f"{size}48": _paper(_DIMS[size], 48) for size in ("s", "m")},
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    (r"attn_scale_(\d+)", r"layers.\1.0.scale"),
    (r"ff_scale_(\d+)", r"layers.\1.1.scale"),
    *attention_rules(r"attn_(\d+)", r"layers.\1.0.fn"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.fn.net"),
    *HEAD_RULES,
)
