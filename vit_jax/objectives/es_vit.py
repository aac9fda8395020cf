"""EsViT: DINO's loss for views and for regions, where each region is matched with the most similar one of another view.

Source: Li et al. 2021, arXiv:2106.09785. Upstream: vit_pytorch/es_vit.py.
Differs from upstream: as vit_jax/objectives/dino.py; the encoder may also return tokens (upstream: feature maps); with
`settings="upstream"`, as upstream, regions are matched by their dot product, and the region projector normalises each
feature over the regions of a view; with other settings, they are matched by cosine similarity, and each region is
normalised over its features.
Differs from the paper: views are those of DINO; as vit_jax/objectives/dino.py.
Axes: b batch, n regions (i of a student's view, j of a teacher's), d features, k prototypes.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.norm import l2_normalize
from vit_jax.objectives.dino import Dino
from vit_jax.objectives.features import pooled, regions
from vit_jax.objectives.pairs import mean_logits, mean_of_pairs
from vit_jax.objectives.projector import RegionProjector
from vit_jax.objectives.protocol import Tree


class RegionStudent(nn.Module):
    """Images to projections of the view (b, k) and of its regions (b, n, k), and the features of regions (b, n, d).

    Args:
        encoder: a model that returns tokens or a feature map.
        view_projector: projector of the view.
        region_projector: projector of the regions.
    """

    encoder: nn.Module
    view_projector: nn.Module
    region_projector: nn.Module

    def __call__(
        self, images: Float[Array, "b *shape c"], *, train: bool = False
    ) -> tuple[Float[Array, "b k"], Float[Array, "b n k"], Float[Array, "b n d"]]:
        outputs = self.encoder(images, train=train)
        parts = regions(self.encoder, outputs)
        return self.view_projector(pooled(self.encoder, outputs)), self.region_projector(parts), parts

    torch_rules = (
        ("encoder", "student_encoder.net"),
        (r"(view|region)_projector", r"student_encoder.\1_projector"),
    )
    torch_aliases = ((r"student_encoder\.net\.(.*)", r"net.\1"),)


@dataclasses.dataclass(frozen=True)
class EsViT(Dino):
    """The mean of `Dino`'s loss and a cross-entropy between each student region and the most similar teacher region.

    It has the arguments of `Dino`.

    Raises:
        ValueError: as `Dino`, and for an encoder that returns one vector for an image.
    """

    centers: ClassVar[tuple[str, ...]] = ("center", "region_center")

    @property
    def model(self) -> nn.Module:
        of_regions = self.make_projector()
        if self.upstream:
            of_regions = RegionProjector(self.num_classes_K, self.projection_hidden_size, self.projection_layers)
        return RegionStudent(self.encoder, self.make_projector(), of_regions)

    def losses(self, teachers: list, students: list, extras: Tree) -> tuple[Float[Array, "b"], dict[str, Array]]:
        now = lambda logits, center: self.teacher_probabilities(logits, extras[center]["now"], extras["step"])
        told = [(now(view, "center"), now(parts, "region_center"), at) for view, parts, at in teachers]
        logs = [(self.student_logs(view), self.student_logs(parts), at) for view, parts, at in students]
        losses = mean_of_pairs(self.of_pair, told, logs)
        return losses, {
            "center": mean_logits([view for view, _, _ in teachers]),
            "region_center": mean_logits([parts for _, parts, _ in teachers]),
        }

    def of_pair(self, teacher: tuple, student: tuple) -> Float[Array, "b"]:
        """Return the loss of every image for a pair of views.

        Args:
            teacher: probabilities of the view, probabilities of its regions, and features of its regions.
            student: the same, with log-probabilities.
        """
        (told, told_regions, known), (logs, region_logs, found) = teacher, student
        likeness = jnp.einsum("bid,bjd->bij", *((found, known) if self.upstream else map(l2_normalize, (found, known))))
        nearest = jnp.take_along_axis(told_regions, likeness.argmax(axis=-1)[..., None], axis=1)
        of_view, of_regions = -(told * logs).sum(axis=-1), -(nearest * region_logs).sum(axis=-1).mean(axis=-1)
        return (of_view + of_regions) / 2
