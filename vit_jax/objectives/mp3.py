"""MP3: patches without positions must tell where they stand, while all but a few are hidden from one another.

Source: Zhai et al. 2022, arXiv:2207.07611. Upstream: `MP3` in vit_pytorch/mp3.py.
Differs from upstream: `masking_ratio` has a default.
Axes: b batch, n patches, m patches that are seen.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.frames.rules import HEAD_RULES
from vit_jax.layers import NormHead
from vit_jax.layers.shapes import Images
from vit_jax.objectives.masked import check_encoder, check_share, draw_masked, fill
from vit_jax.objectives.pretrain import Pretraining


class MaskedPositionPrediction(nn.Module):
    """An encoder and a classifier of positions: images (b, H, W, c), the seen patches' numbers, to losses (b,)."""

    encoder: nn.Module

    @nn.compact
    def classify(self, images: Images, seen: Int[Array, "b m"], *, train: bool = False) -> Float[Array, "b n n"]:
        """For each patch the logits of its positions."""
        fill(self, images)
        tokens = self.encoder.encode_seen(images, seen, train=train)
        logits = NormHead(tokens.shape[1], name="mlp_head")(rearrange(tokens, "b n d -> (b n) d"))
        return rearrange(logits, "(b n) k -> b n k", b=len(images))

    def __call__(self, images: Images, seen: Int[Array, "b m"], *, train: bool = False) -> Float[Array, "b"]:
        log_p = jax.nn.log_softmax(self.classify(images, seen, train=train).astype(jnp.float32))
        return -jnp.diagonal(log_p, axis1=1, axis2=2).mean(axis=1)

    torch_rules = (("encoder", "vit"), *HEAD_RULES)


@dataclasses.dataclass(frozen=True)
class MP3(Pretraining):
    """Cross-entropy of every patch's position among all; `int(masking_ratio * n)` patches are read by none.

    `encoder` is a model with `encode_seen`, which lets patches without positions read some of them alone: `mp3:ViT`.
    Raises ValueError for another encoder, and for a `masking_ratio` that is not between 0 and 1.
    """

    masking_ratio: float = 0.75

    def __post_init__(self):
        check_encoder(self.encoder, methods=("encode_seen",), sealed=False)
        check_share("masking_ratio", self.masking_ratio)

    @property
    def model(self) -> MaskedPositionPrediction:
        return MaskedPositionPrediction(self.encoder)

    def draw(self, key: Array, images: Array) -> dict[str, Array]:
        _, seen = draw_masked(key, self.encoder, images, self.masking_ratio)
        return {"seen": seen}
