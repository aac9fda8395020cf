"""The distillable ViT: a ViT that carries one more token for a teacher to speak to.

Source: Touvron et al. 2020 (DeiT), arXiv:2012.12877. Upstream: vit_pytorch/distill.py.
Differs from upstream: the token and its head belong to `vit_jax.objectives.distill`, which any model with `encode`
and `head` can serve (ViT, T2TViT, EfficientViT), so that a class per model is not needed; `num_classes=0` works.
Axes: b batch, n tokens, e distillation tokens, d dim, k classes.
"""

from jaxtyping import Array, Float

from vit_jax.models.vit import PRESETS, ViT

__all__ = ["PRESETS", "DistillableViT"]


class DistillableViT(ViT):
    """`ViT` whose parameters are a ViT's own, and whose call takes a distillation token."""

    def __call__(
        self,
        images: Float[Array, "b H W c"],
        *,
        distill_token: Float[Array, "e d"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b *out"] | tuple[Float[Array, "b *out"], Float[Array, "b d"]]:
        """The output of `ViT`; with `distill_token` a pair of it and the final embedding of the (last) token."""
        if distill_token is None:
            return super().__call__(images, train=train)
        tokens = self.encode(images, distill_token, train=train)
        tokens, distilled = tokens[:, : -len(distill_token)], tokens[:, -1]
        return (self.head(tokens) if self.num_classes else tokens), distilled
