"""ViViT with MOSS: the tokens of a frame are told how much they resemble their neighbours in space and time.

Source: Kim, Kwon et al. 2026, arXiv:2604.20760; the transformers: Arnab et al. 2021, arXiv:2103.15691.
Upstream: vit_pytorch/vivit_with_moss.py.
Differs from upstream: as ViViT does; videos may be smaller than `image_size`; a causal model reads a video step by step
as well, with a cache of fixed shape (upstream: parts take caches that grow, the model none), any number of frames at
once (upstream: with `use_flash_attn` one) and with `moss_local_time=1` too.
Its defaults are upstream's, whose logits ignore the video: the temporal class token comes first, and where attention is
causal it reads itself alone. `pool="mean"`, as in the presets, mends that, or `cls_reads_frames=True`, for the same
weights.
Axes: b batch, d dim, h height, w width, f frames of patches, n tokens, k classes.
"""

from typing import ClassVar

import jax.numpy as jnp
from einops import rearrange

from vit_jax.frames.rules import HEAD_RULES
from vit_jax.layers import MOSS, NormHead, moss
from vit_jax.layers.check import expect, patch_grid
from vit_jax.layers.shapes import Output, Tokens, Videos
from vit_jax.models import vivit
from vit_jax.models.vivit import FrameMask, Mask, Slots, ViViT


class ViViTWithMOSS(ViViT):
    """Classifier: video (b, F, H, W, c) to logits (b, k); with `num_classes=0` to tokens of frames (b, f, d).

    If `moss_causal`, no frame reads a later one, and `step` goes through a video in pieces. With `cls_reads_frames` the
    temporal class token, if any, reads all frames even so, while no frame reads it. `mask` is as ViViT's.
    Raises ValueError when patches do not fill frames or video, and for a `mask` if `moss_causal`.
    """

    head_class = NormHead
    variant: ClassVar[str] = "factorized_encoder"  # no argument here
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

    def read_frames(self, video: Videos, start=0, cache=None, *, train: bool = False):
        """Tokens (b, n, d) of frames of patches, behind the class token, if any; and the next cache of MOSS."""
        x = self.attend_space(self.embed(video, start, train=train), train=train)
        rows, _ = patch_grid(video.shape[2:4], self.image_patch_size)
        patches = rearrange(x if self.pool == "mean" else x[:, :, 1:], "b f (h w) d -> b f h w d", h=rows)
        patches, cache = self.moss(patches, cache=cache, return_cache=True)
        pooled = patches.mean(axis=(2, 3))
        return self.with_class(pooled if self.pool == "mean" else x[:, :, 0] + pooled), cache

    def causal_mask(self, slots: Slots, count: int) -> Mask:
        """Which of `count` slots the tokens at `slots`, in rising order, may read; the class token is at the first."""
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
        """Logits of all frames so far, the last of which are `video`, or tokens of those alone.

        The frames before are in the variables "cache", of fixed shapes and zeros at first. From `state = {}` on,
        `logits, state = model.apply({**variables, **state}, video, method="step", mutable=["cache"])`.
        More frames than `frames` give NaN, since under jit their number is not known.
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
