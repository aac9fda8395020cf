"""CaiT: first the patches attend to each other; then a class token attends to the resulting patches.

Source: Touvron et al. 2021, arXiv:2103.17239. Upstream: vit_pytorch/cait.py.
Differs from upstream: layers are skipped only when `train` (upstream: at evaluation too); images and patches may
be non-square, of any number of `channels`; `num_classes=0` gives the class token, (b, 1, d); tokens and positions
have an initial std of 0.02 (upstream: 1).
Differs from the paper: class attention has talking heads, and the patches that it reads are not normalised; a block is
skipped for the whole batch; by default the initial LayerScale depends on the layer's
index, as upstream's does (paper: on the depth of the model, as the paper's presets set `layer_scale_init`).
Axes: b batch, n tokens, m context, d dim, h heads in, g heads out, i query, j key, k classes.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import HEAD_RULES, PATCH_EMBED_RULES, attention_rules, feed_forward_rules
from vit_jax.layers import (
    Dense,
    DropPath,
    LayerNorm,
    NormHead,
    PatchEmbed,
    ToHeads,
    drop_paths,
    gelu,
    softmax,
    sow_block,
)
from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.shapes import Images, Output, Tokens


class Attention(nn.Module):
    """Pre-norm talking-heads attention (arXiv:2003.02436), without the residual: (b, n, d) to the same shape.

    Tokens attend to each other and, with `context` (b, m, d), also to the context. One learned matrix mixes the heads
    of the scores before the softmax, another one the heads of the maps after it.
    """

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *context: Float[Array, "b m d"], train: bool = False) -> Tokens:
        dim, init = x.shape[-1], nn.initializers.normal(1.0)
        mix_before = self.param("mix_heads_pre_attn", init, (self.heads, self.heads))
        mix_after = self.param("mix_heads_post_attn", init, (self.heads, self.heads))
        x = LayerNorm(name="norm")(x)
        source = jnp.concatenate([x, *context], axis=1)
        (q,) = ToHeads(1, self.heads, self.dim_head, name="to_q")(x)  # (b, h, n, dim_head)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(source)  # each (b, h, n or n + m, dim_head)

        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        attn = softmax(jnp.einsum("bhij,hg->bgij", scores, mix_before))
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        attn = jnp.einsum("bhij,hg->bgij", attn, mix_after)
        self.sow("intermediates", "attn", attn)  # for vit_jax.capture.attention: mixed, so its rows do not sum to one

        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        return nn.Dropout(self.dropout)(Dense(dim, name="to_out")(out), deterministic=not train)


class FeedForward(nn.Module):
    """Pre-norm feed-forward: two linear maps around a GELU, without the residual: (b, n, d) to the same shape."""

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        hidden = gelu(Dense(self.hidden_dim, name="fc1")(LayerNorm(name="norm")(x)))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="fc2")(hidden), deterministic=not train)


def keep_layers(key: Array, depth: int, rate: float) -> Bool[Array, "depth"]:
    """Mask of the blocks to keep. Each is dropped with probability `rate`; if all would be, a random one is kept."""
    key_keep, key_spare = jax.random.split(key)
    keep = jax.random.bernoulli(key_keep, 1 - rate, (depth,))
    spare = jnp.arange(depth) == jax.random.randint(key_spare, (), 0, depth)
    return jnp.where(keep.any(), keep, spare)


class Transformer(nn.Module):
    """`depth` blocks, each branch with a LayerScale: tokens (b, n, d), and an optional context, to (b, n, d).

    The LayerScales of block i start at `scales[i]`. In training each block is skipped with probability
    `layer_dropout`, but never all of them.
    """

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    layer_dropout: float
    scales: tuple[float, ...]
    drop_path: float

    @nn.compact
    def __call__(self, x: Tokens, *context: Float[Array, "b m d"], train: bool = False) -> Tokens:
        drops = train and self.layer_dropout > 0
        kept = keep_layers(self.make_rng("dropout"), self.depth, self.layer_dropout) if drops else None
        for i, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            out = self.block(i, x, drop_path, *context, train=train)
            x = jnp.where(kept[i], out, x) if drops else out
            sow_block(self, x)
        return x

    def block(self, i: int, x: Tokens, drop_path: DropPath, *context: Float[Array, "b m d"], train: bool) -> Tokens:
        """Apply block `i`: attention and feed-forward, each scaled and added to its input."""
        init, shape = nn.initializers.constant(self.scales[i]), (1, 1, x.shape[-1])
        out = Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, *context, train=train)
        x = x + drop_path(out * self.param(f"attn_scale_{i}", init, shape))
        out = FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
        return x + drop_path(out * self.param(f"ff_scale_{i}", init, shape))


class CaiT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the class token (b, 1, d).

    An image may be smaller than `image_size`: its n tokens get the first n positions.

    Args:
        image_size: side of the largest image in pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for the class token.
        dim: width of a token.
        depth: number of blocks in which patches attend to each other.
        cls_depth: number of blocks in which the class token attends to the patches.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the patches before the first block.
        layer_dropout: probability that a block is skipped in training, for the whole batch.
        channels: channels of an image.
        layer_scale_init: initial value of every LayerScale. With None it is 0.1 in blocks 1 to 18, 1e-5 in 19 to 24,
            and 1e-6 from 25, and the blocks of the class token count from 1 again.
        drop_path: rate of stochastic depth in the last block of patches; it rises linearly from 0 in the first. The
            blocks of the class token are never dropped.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`.
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
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels, self.image_size)
        rows, columns = patch_grid(self.image_size, self.patch_size)
        init = nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", init, (1, 1, self.dim))
        pos_embedding = self.param("pos_embedding", init, (1, rows * columns, self.dim))

        x = PatchEmbed(pair("patch_size", self.patch_size), self.dim, name="to_patch_embedding")(images)
        x = x + pos_embedding[:, : x.shape[1]]
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)
        x = self.make_transformer(self.depth, self.drop_path, "patch_transformer")(x, train=train)

        token = jnp.broadcast_to(cls_token, (x.shape[0], 1, self.dim))
        token = self.make_transformer(self.cls_depth, 0.0, "cls_transformer")(token, x, train=train)
        return NormHead(self.num_classes, name="mlp_head")(token[:, 0]) if self.num_classes else token

    def make_transformer(self, depth: int, drop_path: float, name: str) -> Transformer:
        """Make a stack of `depth` blocks."""
        by_index = (0.1 if i < 18 else 1e-5 if i < 24 else 1e-6 for i in range(depth))
        fixed = self.layer_scale_init
        scales = tuple(by_index) if fixed is None else (fixed,) * depth
        sizes = self.heads, self.dim_head, self.mlp_dim, self.dropout
        return Transformer(depth, *sizes, self.layer_dropout, scales, drop_path, name=name)

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"attn_scale_(\d+)", r"layers.\1.0.scale"),
        (r"ff_scale_(\d+)", r"layers.\1.1.scale"),
        *attention_rules(r"attn_(\d+)", r"layers.\1.0.fn"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.fn.net"),
        *HEAD_RULES,
    )


def _paper(dim, depth):
    layers = dict(cls_depth=2, layer_scale_init=1e-5 if depth <= 24 else 1e-6)
    return vit_sizes(dim, depth, heads=dim // 48, dim_head=48, **layers)


_DIMS = dict(xxs=192, xs=288, s=384, m=768)
PRESETS = {
    "tiny": TINY | dict(depth=3, cls_depth=1),
    **{f"{size}{depth}": _paper(dim, depth) for size, dim in _DIMS.items() for depth in (24, 36)},
    **{f"{size}48": _paper(_DIMS[size], 48) for size in ("s", "m")},
}
