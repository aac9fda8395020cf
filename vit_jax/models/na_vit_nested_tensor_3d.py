"""NaViT for volumes: videos or scans of different sizes, packed into one sequence, each with register tokens.

Derives from `NaViTNestedTensor` (vit_jax/models/na_vit_nested_tensor.py) and adds the axis of frames, and
registers.

Source: Dehghani et al. 2023, arXiv:2307.06304; registers: Darcet et al. 2023, arXiv:2309.16588.
Upstream: vit_pytorch/na_vit_nested_tensor_3d.py.
Differs from upstream: as NaViTNestedTensor does; `token_dropout_prob` may be None in training too (upstream: raises),
or a function of (frames, height, width); `num_registers` may be 0.
Differs from the paper: as NaViTNestedTensor does; volumes instead of images; registers.
Axes: b rows, n tokens of patches, m all tokens, d dim, r registers.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.frames.presets import TINY
from vit_jax.layers import append, packing
from vit_jax.layers.check import at_least, expect, pair
from vit_jax.models import na_vit_nested_tensor


class NaViTNestedTensor3D(na_vit_nested_tensor.NaViTNestedTensor, kw_only=True):
    """Classifier: volumes (f, h, w, c) of different sizes to logits (i, k); with `num_classes=0` to features (i, d).

    Volumes are passed as images are to `NaViT`. `pack` counts tokens without registers.

    Args:
        image_size: largest size of a frame: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for pooled features.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of a frame.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        token_dropout_prob: share of the patches of a volume to drop in training, or a function of
            (frames, height, width) that returns it.
        qk_rmsnorm: normalise the queries and keys of the blocks.
        max_frames: largest number of frames.
        frame_patch_size: frames of a patch.
        num_registers: register tokens of each volume.
        drop_path: rate of stochastic depth in the last block, for all images of a sequence at once; it
            rises linearly from 0 in the first.

    Raises:
        ValueError: if `frame_patch_size` and `patch_size` do not divide `max_frames`, `image_size`
            or the sides of a volume, or a volume is larger than these.
    """

    max_frames: int
    frame_patch_size: int
    num_registers: int = 4

    def __post_init__(self):
        at_least(self, max_frames=1, frame_patch_size=1, num_registers=0)
        patch = self.frame_patch_size
        expect(self, "max_frames", self.max_frames % patch == 0, f"a multiple of frame_patch_size={patch}")
        super().__post_init__()

    def patch_sides(self) -> tuple[int, ...]:
        return (self.frame_patch_size, *super().patch_sides())

    def position_counts(self) -> dict[str, int]:
        return {"pos_embed_frame": self.max_frames // self.frame_patch_size, **super().position_counts()}

    def add_tokens(
        self, x: Float[Array, "b n d"], ids: Int[Array, "b n"], slots: int
    ) -> tuple[Float[Array, "b m d"], Int[Array, "b m"]]:
        """Append the registers, the same for every volume, after the patches of all volumes."""
        if not self.num_registers:
            return x, ids
        registers = self.param("register_tokens", nn.initializers.normal(0.02), (self.num_registers, self.dim))
        of_slots = jnp.repeat(jnp.arange(slots, dtype=ids.dtype), self.num_registers)
        of_slots = jnp.broadcast_to(of_slots, (ids.shape[0], *of_slots.shape))
        return append(x, jnp.tile(registers, (slots, 1))), jnp.concatenate([ids, of_slots], axis=1)

    def _check_batch(self, images: Array) -> None:
        if images.ndim != 5:
            expected = f"(batch, frames, height, width, channels) with channels={self.channels}"
            raise ValueError(f"volumes of shape {images.shape}: expected {expected}")
        self._check_image(packing.one_of_batch(images))

    def _check_image(self, image) -> None:
        largest, shape = (self.max_frames, *pair("image_size", self.image_size)), image.shape
        if image.ndim != 4 or shape[-1] != self.channels:
            raise ValueError(f"volume of shape {shape}: expected (frames, height, width, channels={self.channels})")
        if any(side > limit for side, limit in zip(shape, largest, strict=False)):
            raise ValueError(f"volume of shape {shape}: expected at most max_frames, image_size={largest}")
        if 0 in shape or any(np.mod(shape[:-1], self.patch_sides())):
            patch = f"frame_patch_size, patch_size={self.patch_sides()}"
            raise ValueError(f"volume of shape {shape}: expected multiples of {patch}")

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores empty registers where there are none."""
        return {} if self.num_registers else {"register_tokens": np.zeros((0, self.dim), np.float32)}


_UPSTREAM = dict(image_size=256, patch_size=32, dim=1024, depth=6, heads=16, mlp_dim=2048)
PRESETS = {
    "tiny": TINY | dict(max_frames=4, frame_patch_size=2),
    "upstream": _UPSTREAM | dict(max_frames=8, frame_patch_size=2),
}
