"""ViViT: patches of several frames of a video, with separate attention over space and over time.

Source: Arnab et al. 2021, arXiv:2103.15691. Upstream: vit_pytorch/vivit.py.
Differs from upstream: dropout of attention maps acts only in training (upstream: with `use_flash_attn` at evaluation
too); `use_flash_attn` selects what is stored for the gradient, not the kernel; if `mask` is False for all frames, all
are read equally (upstream: with `use_flash_attn` none); `num_classes=0` gives tokens; tokens and positions have an
initial std of 0.02 (upstream: 1).
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value; factorized
self-attention has a class token for every frame (paper: none), and the head reads that of the first.
Axes: b batch, f frames of patches, n tokens of a frame, d dim, h heads, i query, j key, e dim_head, k classes.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vit_jax import layers
from vit_jax.frames.arguments import check_arguments, check_fits, check_video
from vit_jax.frames.rules import PATCH_EMBED_RULES, TRANSFORMER_RULES, attention_rules, feed_forward_rules
from vit_jax.layers import (
    Dense,
    FeedForward,
    NormedBlocks,
    ToHeads,
    VideoPatchEmbed,
    attend,
    pool_tokens,
    prepend,
    sow_block,
    stage_rates,
)
from vit_jax.layers.check import at_least, expect, one_of, pair, patch_grid
from vit_jax.layers.shapes import Output, Tokens, Videos

FrameTokens = Float[Array, "b f n d"]
FrameMask = Bool[Array, "b F"]
Mask = Bool[Array, "#b #i j"]


class Attention(layers.Attention):
    """`Attention` in which no query reads a key outside of `mask`.

    Args:
        use_flash_attn: store no attention map for the gradient, only the outputs of linear maps.
    """

    use_flash_attn: bool = True

    @nn.compact
    def read(
        self, x: Tokens, mask: Mask | None, *, all_of: Callable = lambda k, v: (k, v), train: bool = False
    ) -> Tokens:
        """Attention, without any choice of what is stored for the gradient.

        `all_of` gives the keys and values to read, from those of `x`.
        """
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(self.norm(name="norm")(x))
        mask = None if mask is None else mask[:, None]
        out = attend(self, q, *all_of(k, v), mask=mask, dropout=self.dropout, train=train)
        if self.heads == 1 and self.dim_head == x.shape[-1]:
            return out
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)

    def __call__(self, x: Tokens, mask: Mask | None = None, *, train: bool = False) -> Tokens:
        if not self.use_flash_attn:
            return self.read(x, mask, train=train)
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return nn.remat(lambda module, x, mask: module.read(x, mask, train=train), policy=policy)(self, x, mask)


class FactorizedTransformer(NormedBlocks):
    """`NormedBlocks` with two attentions: within each frame, then over frames for each place."""

    @nn.compact
    def __call__(self, x: FrameTokens, mask: Mask | None = None, *, train: bool = False) -> FrameTokens:
        shape, swap = x.shape, lambda x, count: rearrange(x, "(b m) n d -> (b n) m d", m=count)
        mask = None if mask is None else jnp.repeat(mask, shape[2], axis=0)
        x = jax.lax.collapse(x, 0, 2)
        for i, drop_path in enumerate(self.drop_paths(train)):
            x = swap(x + drop_path(self.attention(name=f"spatial_attn_{i}")(x, train=train)), shape[1])
            x = x + drop_path(self.attention(name=f"temporal_attn_{i}")(x, mask, train=train))
            x = swap(x + drop_path(self.feed_forward(name=f"ff_{i}")(x, train=train)), shape[2])
            sow_block(self, x.reshape(shape))
        return self.norm(name="norm")(x.reshape(shape))


class ViViT(nn.Module, kw_only=True):
    """Classifier: video (b, F, H, W, c) to logits (b, k); with `num_classes=0` to tokens.

    The tokens are those of frames of patches, (b, f, d), with `variant="factorized_encoder"`, and
    those of patches, (b, f, n, d), with "factorized_self_attention". Class tokens, if any, come
    first. A video may be shorter than `frames` and smaller than `image_size`; it then gets the
    first positions. `mask` (b, F) is True for frames that other frames may read; mean pooling
    ignores it.

    Args:
        image_size: pixels, or (height, width).
        image_patch_size: pixels, or (height, width).
        frames: largest number of frames.
        frame_patch_size: frames of a patch.
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        spatial_depth: blocks with attention over space.
        temporal_depth: blocks with attention over time.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        channels: channels of a frame.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        variant: "factorized_encoder" for one transformer over space and another one over time,
            "factorized_self_attention" for blocks with both attentions.
        use_flash_attn: save memory in training; outputs do not change.
        drop_path: rate of stochastic depth in the last temporal block; it rises linearly from 0 in the first
            spatial block. A spatial block drops frames by themselves.

    Raises:
        ValueError: if `frame_patch_size` does not divide `frames`, `image_patch_size` does not
            divide `image_size`, `variant` is unknown, or `pool` is neither "cls" nor "mean".
    """

    attention_class: ClassVar[type[nn.Module]] = Attention
    head_class: ClassVar[type[nn.Module]] = Dense  # maps pooled features to logits
    image_size: int | tuple[int, int]
    image_patch_size: int | tuple[int, int]
    frames: int
    frame_patch_size: int
    num_classes: int
    dim: int
    spatial_depth: int
    temporal_depth: int
    heads: int
    mlp_dim: int
    pool: str = "cls"
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    variant: str = "factorized_encoder"
    use_flash_attn: bool = True
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        at_least(self, frames=1, frame_patch_size=1, spatial_depth=0, temporal_depth=0)
        patch_grid(self.image_size, self.image_patch_size, "image_patch_size")
        fit = f"a multiple of frame_patch_size={self.frame_patch_size}"
        expect(self, "frames", self.frames % self.frame_patch_size == 0, fit)
        one_of("variant", self.variant, ("factorized_encoder", "factorized_self_attention"))
        if self.variant == "factorized_self_attention":
            fit = f"spatial_depth={self.spatial_depth}, as each block has both attentions"
            expect(self, "temporal_depth", self.temporal_depth == self.spatial_depth, fit)
        super().__post_init__()

    def setup(self):
        learned = lambda name, *shape: self.param(name, nn.initializers.normal(0.02), (1, *shape, self.dim))
        patch_size = (self.frame_patch_size, *pair("image_patch_size", self.image_patch_size))
        self.to_patch_embedding = VideoPatchEmbed(patch_size, self.dim)
        patches = math.prod(patch_grid(self.image_size, self.image_patch_size))
        self.pos_embedding = learned("pos_embedding", self.frames // self.frame_patch_size, patches)
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        if self.pool == "cls":
            self.spatial_cls_token = learned("spatial_cls_token", 1)
        sizes = dict(heads=self.heads, dim_head=self.dim_head, dropout=self.dropout)
        attention = functools.partial(self.attention_class, **sizes, use_flash_attn=self.use_flash_attn)
        parts = (attention, functools.partial(FeedForward, self.mlp_dim, self.dropout))
        if self.variant == "factorized_self_attention":
            self.factorized_transformer = FactorizedTransformer(self.spatial_depth, *parts, drop_path=self.drop_path)
        else:
            spatial, temporal = stage_rates(self.drop_path, (self.spatial_depth, self.temporal_depth))
            self.spatial_transformer = NormedBlocks(self.spatial_depth, *parts, drop_path=spatial)
            self.temporal_transformer = NormedBlocks(self.temporal_depth, *parts, drop_path=temporal)
            if self.pool == "cls":
                self.temporal_cls_token = learned("temporal_cls_token", 1)
        if self.num_classes:
            self.mlp_head = self.head_class(self.num_classes)

    def embed(self, video: Videos, start: int | Int[Array, ""] = 0, *, train: bool = False) -> FrameTokens:
        """Tokens of every frame of patches, the class token first, if any; positions start at frame `start`."""
        check_video(video, self.channels)
        sides = (self.frames, *pair("image_size", self.image_size))
        check_fits("video", video, sides, "frames, image_size")
        x = self.to_patch_embedding(video)
        frames, patches = x.shape[1:3]
        x = x + jax.lax.dynamic_slice_in_dim(self.pos_embedding, start, frames, axis=1)[:, :, :patches]
        if self.pool == "cls":
            token = jnp.broadcast_to(self.spatial_cls_token, x[:, :, :1].shape)
            x = jnp.concatenate([token, x], axis=2)
        return self.embedding_dropout(x, deterministic=not train)

    def attend_space(self, x: FrameTokens, *, train: bool) -> FrameTokens:
        """Apply the spatial transformer to the tokens of each frame."""
        return self.spatial_transformer(jax.lax.collapse(x, 0, 2), train=train).reshape(x.shape)

    def with_class(self, x: Float[Array, "b f d"]) -> Tokens:
        """Prepend the temporal class token, if any."""
        return prepend(self.temporal_cls_token, x) if self.pool == "cls" else x

    def mask_of_patches(self, mask: FrameMask | None, video: Videos) -> Mask | None:
        """The mask of frames as one of frames of patches, with the class token, if any.

        It is True for a frame of patches if all of its frames are.
        """
        if mask is None:
            return None
        if mask.shape != video.shape[:2]:
            raise ValueError(f"mask of shape {mask.shape}: expected (batch, frames) = {video.shape[:2]}")
        mask = rearrange(mask, "b (f pf) -> b 1 f pf", pf=self.frame_patch_size).all(axis=-1)
        classes = int(self.pool == "cls" and self.variant == "factorized_encoder")
        return jnp.pad(mask, ((0, 0), (0, 0), (classes, 0)), constant_values=True)

    def encode(self, video: Videos, *, mask: FrameMask | None = None, train: bool = False) -> Float[Array, "b *n d"]:
        """Tokens after the last transformer."""
        x, mask = self.embed(video, train=train), self.mask_of_patches(mask, video)
        if self.variant == "factorized_self_attention":
            return self.factorized_transformer(x, mask, train=train)
        x = self.attend_space(x, train=train)
        x = self.with_class(x.mean(axis=2) if self.pool == "mean" else x[:, :, 0])
        return self.temporal_transformer(x, mask, train=train)

    def head(self, tokens: Float[Array, "b *n d"]) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`."""
        return self.mlp_head(pool_tokens(rearrange(tokens, "b ... d -> b (...) d"), self.pool))

    def __call__(self, video: Videos, *, mask: FrameMask | None = None, train: bool = False) -> Output:
        tokens = self.encode(video, mask=mask, train=train)
        return self.head(tokens) if self.num_classes else tokens

    torch_rules = (
        *attention_rules(r"spatial_attn_(\d+)", r"layers.\1.0"),
        *attention_rules(r"temporal_attn_(\d+)", r"layers.\1.1"),
        *feed_forward_rules(r"factorized_transformer/ff_(\d+)", r"factorized_transformer.layers.\1.2.net"),
        *PATCH_EMBED_RULES,
        *TRANSFORMER_RULES,
    )


TINY = dict(image_size=32, image_patch_size=8, frames=8, frame_patch_size=2, dim=64, heads=4, dim_head=16, mlp_dim=128)
_B16X2 = dict(image_size=224, image_patch_size=16, frames=32, frame_patch_size=2, dim=768, heads=12, mlp_dim=3072)

PRESETS = {  # "b16x2" is the authors' ViViT-B/16x2 Factorised Encoder
    "tiny": TINY | dict(spatial_depth=2, temporal_depth=2),
    "b16x2": _B16X2 | dict(spatial_depth=12, temporal_depth=4),
}
