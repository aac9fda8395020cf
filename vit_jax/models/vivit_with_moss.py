"""ViViT with MOSS: similarities to neighbours in space and time are added to the tokens of each frame.

Derives from `ViViT` (vit_jax/models/vivit.py) and applies MOSS between its spatial and temporal transformers.

Source: Kim, Kwon et al. 2026, arXiv:2604.20760; the transformers: Arnab et al. 2021, arXiv:2103.15691.
Upstream: vit_pytorch/vivit_with_moss.py.
Differs from upstream: as ViViT does; videos may be smaller than `image_size`; a causal model can also read a video in
steps, with a cache of fixed shape (upstream: only its parts take caches, which grow), of any number of frames each
(upstream: one with `use_flash_attn`), also with `moss_local_time=1`.
The defaults are upstream's, with which logits do not depend on the video: the temporal class token comes first, and
with causal attention it reads only itself. To avoid that, use `pool="mean"`, as the presets do, or
`cls_reads_frames=True`, which keeps the weights.
Axes: b batch, d dim, h height, w width, f frames of patches, n tokens, k classes.
"""

from typing import ClassVar

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Int

from vit_jax.frames.rules import HEAD_RULES
from vit_jax.layers import MOSS, NormHead, moss
from vit_jax.layers.check import expect, patch_grid
from vit_jax.layers.shapes import Output, Tokens, Videos
from vit_jax.models import vivit
from vit_jax.models.vivit import Attention, FrameMask, Mask, ViViT

Slots = Int[Array, "n"]


class CachedAttention(Attention):
    """`Attention` over a video that comes in parts.

    A call with `slots` writes keys and values to these slots of the variables "cache", and reads all slots.
    """

    def __call__(self, x: Tokens, mask: Mask | None = None, slots: Slots | None = None, *, train: bool = False):
        if slots is None:
            return super().__call__(x, mask, train=train)

        def all_of(k, v):
            new = jnp.stack([k, v])
            empty = jnp.zeros((*new.shape[:3], mask.shape[-1], new.shape[-1]), new.dtype)
            kv = self.get_variable("cache", "kv", empty).at[:, :, :, slots].set(new)
            self.put_variable("cache", "kv", kv)
            return kv

        return self.read(x, mask, all_of=all_of, train=train)


class ViViTWithMOSS(ViViT):
    """Classifier: video (b, F, H, W, c) to logits (b, k); with `num_classes=0` to tokens of frames (b, f, d).

    A video may be shorter than `frames` and smaller than `image_size`; it then gets the first
    positions. `mask` is as for `ViViT`; it needs `moss_causal=False`.

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
        use_flash_attn: save memory in training; outputs do not change.
        moss_local_time: frames of patches that MOSS compares; odd.
        moss_local_height: rows of patches that MOSS compares; odd.
        moss_local_width: columns of patches that MOSS compares; odd.
        moss_hidden_dim: hidden width of MOSS.
        moss_orders: orders of MOSS.
        moss_causal: no frame reads a later one; `step` can then read a video in pieces.
        cls_reads_frames: with `moss_causal`, let the temporal class token read all frames; no frame
            reads it.
        drop_path: rate of stochastic depth in the last temporal block; it rises linearly from 0 in the first
            spatial block. A spatial block drops frames by themselves.

    Raises:
        ValueError: if `frame_patch_size` does not divide `frames`, `image_patch_size` does not
            divide `image_size`, an argument of MOSS is invalid, or `pool` is neither "cls" nor
            "mean".
    """

    attention_class = CachedAttention
    head_class = NormHead
    variant: ClassVar[str] = "factorized_encoder"  # not an argument of this model
    moss_local_time: int = 3
    moss_local_height: int = 3
    moss_local_width: int = 3
    moss_hidden_dim: int = 64
    moss_orders: int = 2
    moss_causal: bool = True
    cls_reads_frames: bool = False

    def __post_init__(self):
        moss.check_moss(self, "moss_")
        super().__post_init__()

    def setup(self):
        super().setup()
        sides = (self.moss_local_time, self.moss_local_height, self.moss_local_width)
        self.moss = MOSS(self.dim, *sides, self.moss_hidden_dim, self.moss_orders, self.moss_causal)

    def read_frames(
        self, video: Videos, start: int | Int[Array, ""] = 0, cache: tuple | None = None, *, train: bool = False
    ) -> tuple[Tokens, tuple]:
        """Apply all that precedes the temporal transformer.

        Args:
            video: frames.
            start: position of the first frame of patches.
            cache: the cache of MOSS, or None for the beginning of a video.
            train: apply dropout.

        Returns:
            Tokens (b, n, d) of frames of patches, after the class token, if any; and the next cache of MOSS.
        """
        x = self.attend_space(self.embed(video, start, train=train), train=train)
        rows, _ = patch_grid(video.shape[2:4], self.image_patch_size)
        patches = rearrange(x if self.pool == "mean" else x[:, :, 1:], "b f (h w) d -> b f h w d", h=rows)
        patches, cache = self.moss(patches, cache=cache, return_cache=True)
        pooled = patches.mean(axis=(2, 3))
        return self.with_class(pooled if self.pool == "mean" else x[:, :, 0] + pooled), cache

    def causal_mask(self, slots: Slots, count: int) -> Mask:
        """Return the mask of the slots that tokens may read.

        Args:
            slots: slot of each token, in ascending order; the class token is in the first one.
            count: number of slots.
        """
        slot = jnp.arange(count)[None]
        mask = slot <= slots[:, None]
        if self.pool == "cls" and self.cls_reads_frames:
            mask = jnp.where(slots[:, None] > 0, mask & (slot > 0), mask[-1:])
        return mask[None]

    def encode(self, video: Videos, *, mask: FrameMask | None = None, train: bool = False) -> Tokens:
        expect(self, "moss_causal", mask is None or not self.moss_causal, "False, as a mask is given")
        x, _ = self.read_frames(video, train=train)
        count = x.shape[1]
        mask = self.causal_mask(jnp.arange(count), count) if self.moss_causal else self.mask_of_patches(mask, video)
        return self.temporal_transformer(x, mask, train=train)

    def step(self, video: Videos) -> Output:
        """Read the next frames of a video.

        Earlier frames are in the variables "cache", whose shapes are fixed and which are zero at
        first. Start with `state = {}` and call `logits, state = model.apply({**variables, **state},
        video, method="step", mutable=["cache"])`.

        Args:
            video: the next frames.

        Returns:
            Logits (b, k) of all frames so far; with `num_classes=0` tokens of `video` only. After
            more than `frames` frames they are NaN, since their number is not known under jit.

        Raises:
            ValueError: if the model is not causal.
        """
        expect(self, "moss_causal", self.moss_causal, "True, as a step knows no later frames")
        start = self.get_variable("cache", "seen", jnp.int32(0))
        x, similar = self.read_frames(video, start, self.get_variable("cache", "similar"))
        classes, limit = int(self.pool == "cls"), self.pos_embedding.shape[1]
        slots = (start + jnp.arange(x.shape[1])).at[:classes].set(0)
        x = self.temporal_transformer(x, self.causal_mask(slots, limit + classes), slots)
        seen = start + x.shape[1] - classes
        total = self.get_variable("cache", "total", 0.0) + x.sum(axis=1, dtype=jnp.float32)
        for name, value in dict(seen=seen, similar=similar, total=total).items():
            self.put_variable("cache", name, value)
        if self.num_classes:
            x = self.mlp_head(x[:, 0] if classes else (total / seen).astype(x.dtype))
        return jnp.where(seen > limit, jnp.nan, x)

    torch_rules = (*MOSS.torch_rules, *HEAD_RULES, *ViViT.torch_rules)


PRESETS = {"tiny": vivit.PRESETS["tiny"] | dict(pool="mean", moss_hidden_dim=16)}
