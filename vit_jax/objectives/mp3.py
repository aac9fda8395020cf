"""MP3 (masked patch position prediction): predict the position of each patch, attending to a few patches only.

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
    """An encoder and a classifier of positions: images (b, H, W, c) and the indices of seen patches to losses (b,).

    The fields are those of `MP3`.
    """

    encoder: nn.Module

    @nn.compact
    def classify(self, images: Images, seen: Int[Array, "b m"], *, train: bool = False) -> Float[Array, "b n n"]:
        """Return the logits of the positions for each patch."""
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
    """Cross-entropy of the position of every patch.

    Args:
        encoder: a model with the method `encode_seen`, in which patches have no positions and attend only to the seen
            patches: `mp3:ViT`.
        masking_ratio: share of the patches that no patch attends to, above 0 and below 1.

    Raises:
        ValueError: for another encoder or `masking_ratio`.
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
