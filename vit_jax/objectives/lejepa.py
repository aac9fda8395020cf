"""LeJEPA: all views of an image are pulled towards its global views, and only SIGReg prevents collapse.

Source: Balestriero and LeCun 2025, arXiv:2511.08544. Upstream: vit_pytorch/lejepa.py.
Differs from upstream: the losses are the paper's: all views predict the mean of the global views, with gradients into
both, and SIGReg sees each view (upstream, and `settings="upstream"`: each local view predicts one global view, without
a gradient into it, and SIGReg sees only local views); the projector has batch norms, without which the features of
images stay similar for a long time (not with `settings="upstream"`); views are drawn for each sample, and colours
change after the crop; the encoder is any model that returns features; batch norms take their statistics over all views
of one size, and a moving average has its own.
Differs from the paper: `settings="small"` has sizes and crops for small images and short runs; SIGReg is not multiplied
by the batch size, and has a larger weight instead.
Axes: b batch, v views, d features, k projected features, m directions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.layers.sigreg import random_directions, sigreg_loss
from vit_jax.objectives.dino import check_numbers
from vit_jax.objectives.features import check_encoder
from vit_jax.objectives.pairs import project
from vit_jax.objectives.pretrain import Pretraining
from vit_jax.objectives.projector import BatchNormProjector, Projected, Projector
from vit_jax.objectives.protocol import Tree
from vit_jax.objectives.views import draw_crops

SETTINGS = {
    "small": dict(
        projection_hidden_size=256,
        num_classes_K=32,
        projection_layers=3,
        local_lower_crop_scale=0.4,
        local_upper_crop_scale=0.8,
        global_lower_crop_scale=0.7,
        sigreg_loss_weight=3.0,  # the paper's 0.05 times a batch size of 64
    ),
    "upstream": dict(
        projection_hidden_size=256,
        num_classes_K=65336,
        projection_layers=4,
        local_lower_crop_scale=0.05,
        local_upper_crop_scale=0.4,
        global_lower_crop_scale=0.5,
        sigreg_loss_weight=1.0,
    ),
}
SIGREG = dict(num_slices=1024, domain=(-5, 5), num_knots=17)  # defaults of `sigreg_loss_kwargs`


class Encoder(Projected):
    """The trained network: encoder and projector."""

    torch_rules = (("encoder", "encoder.net"), ("projector", "encoder.projector"))
    torch_aliases = ((r"encoder\.net\.(.*)", r"net.\1"),)


@dataclasses.dataclass(frozen=True)
class LeJEPA(Pretraining):
    """`target_loss_weight` times the squared distance of views, plus `sigreg_loss_weight` times SIGReg.

    Args:
        encoder: a model that returns features.
        settings: "small" or "upstream": the defaults of arguments that are None, and the form of the losses.
        projection_hidden_size: hidden width of the projector.
        num_classes_K: width of the projection.
        projection_layers: layers of the projector.
        local_lower_crop_scale: least share of the image that a local view shows.
        local_upper_crop_scale: largest share of the image that a local view shows.
        global_lower_crop_scale: least share of the image that a global view shows.
        local_size: (height, width) of local views in pixels; None for the size of the images.
        flip: probability of a horizontal flip.
        use_ema: compute targets with a moving average of the parameters. By default the opposite of `use_sigreg`; if
            that is None too, only if `moving_average_decay` is given.
        moving_average_decay: decay of the moving average, 0.99 by default.
        use_sigreg: add SIGReg. By default, only if there is no moving average.
        target_loss_weight: weight of the distance.
        sigreg_loss_weight: weight of SIGReg.
        sigreg_loss_kwargs: `num_slices` (directions), `domain` and `num_knots` of SIGReg.
        augment_fn: replaces flips, colours and blur of the first global and local view: a function from a key and
            pixels (h, w, c) in 0..1 to such pixels.
        augment_fn2: the same for the second global and local view.
        mean: mean of each channel with which images are normalised.
        std: standard deviation of each channel with which images are normalised.

    Raises:
        ValueError: for invalid values, and for an encoder with classes.
    """

    settings: str = "small"
    projection_hidden_size: int | None = None
    num_classes_K: int | None = None
    projection_layers: int | None = None
    local_lower_crop_scale: float | None = None
    local_upper_crop_scale: float | None = None
    global_lower_crop_scale: float | None = None
    local_size: tuple[int, int] | None = None
    flip: float = 0.5
    use_ema: bool | None = None
    moving_average_decay: float | None = None
    use_sigreg: bool | None = None
    target_loss_weight: float = 1.0
    sigreg_loss_weight: float | None = None
    sigreg_loss_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augment_fn: Callable[[Array, Array], Array] | None = None
    augment_fn2: Callable[[Array, Array], Array] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        check_encoder(self.encoder)
        one_of("settings", self.settings, tuple(SETTINGS))
        for name, value in SETTINGS[self.settings].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in self.sigreg_loss_kwargs:
            one_of("sigreg_loss_kwargs", name, tuple(SIGREG))
        check_numbers(self)

    @property
    def upstream(self) -> bool:
        return self.settings == "upstream"

    @property
    def sigreg(self) -> dict[str, Any]:
        """The number of directions, and the domain and number of knots of the integral."""
        return SIGREG | dict(self.sigreg_loss_kwargs)

    @property
    def averages(self) -> bool:
        """Whether targets are computed with a moving average of the parameters."""
        if self.use_ema is None:
            return self.moving_average_decay is not None if self.use_sigreg is None else not self.use_sigreg
        return self.use_ema

    @property
    def regularizes(self) -> bool:
        """Whether SIGReg is part of the loss."""
        wanted = not self.averages if self.use_sigreg is None else self.use_sigreg
        return wanted and self.sigreg_loss_weight > 0

    @property
    def model(self) -> nn.Module:
        projector = Projector if self.upstream else BatchNormProjector
        return Encoder(self.encoder, projector(self.num_classes_K, self.projection_hidden_size, self.projection_layers))

    def draw(self, key: Array, images: Array) -> dict[str, Array]:
        """Views of every image, "global" and "local" (b, 2, h, w, c), and "directions" (m, k)."""
        views_key, directions_key = jax.random.split(key)
        drawn = draw_crops(views_key, images, [dict(flip=self.flip)] * 3, 2, self)
        return drawn | {"directions": random_directions(directions_key, self.num_classes_K, self.sigreg["num_slices"])}

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        variables = dict(self.model.init(key, images))
        params = variables.pop("params")
        if self.averages:
            copies = {"params": params, **variables}
            names = {"params": "ema", "batch_stats": "ema_batch_stats"}
            variables |= {names[name]: jax.tree.map(jnp.copy, tree) for name, tree in copies.items()}
        return params, variables

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        drawn = self.draw(rngs["objective"], batch["image"])
        losses, extras = self.compare(params, extras, drawn, rngs, train)
        loss = losses.mean()
        return loss, ({"loss": loss}, extras)

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        """Return the loss of each image. SIGReg, one number for all images with a "mask" of 1, is added to each."""
        drawn = self.draw(jax.random.key(0), batch["image"])
        return {"loss": self.compare(params, extras, drawn, {}, train=False, mask=batch.get("mask"))[0]}

    def compare(
        self,
        params: Tree,
        extras: Tree,
        drawn: Mapping[str, Array],
        rngs: Mapping[str, Array],
        train: bool,
        mask: Float[Array, "b"] | None = None,
    ) -> tuple[Float[Array, "b"], Tree]:
        """Return the loss of every image, given its views, and the extras of the next step."""
        shown = [drawn["local"]] if self.upstream else [drawn["global"], drawn["local"]]
        wide = lambda projected: jnp.stack(projected).astype(jnp.float32)
        projected, kept = project(self.model, params, extras, "batch_stats", shown, rngs, train)
        views = wide(projected)
        if self.averages or self.upstream:
            targets, moved = self.targets(params, {**extras, **kept}, drawn["global"], rngs, train)
            targets = jax.lax.stop_gradient(wide(targets))
        else:
            targets, moved = views[:2], {}
        if self.upstream:
            losses = jnp.square(views - targets[::-1]).mean(axis=-1).sum(axis=0)
        else:
            losses = jnp.square(views - targets.mean(axis=0, keepdims=True)).mean(axis=(0, -1))
        losses = self.target_loss_weight * losses
        if self.regularizes:
            losses += self.sigreg_loss_weight * self.sigreg_of(views, drawn["directions"], mask)
        return losses, {**extras, **kept, **moved}

    def targets(
        self, params: Tree, extras: Tree, views: Array, rngs: Mapping[str, Array], train: bool
    ) -> tuple[list, Tree]:
        """Return the outputs of the moving average, or else of the trained network, and its new batch statistics."""
        statistics = "batch_stats"
        if self.averages:
            params = jax.tree.map(lambda x: x.astype(views.dtype), extras["ema"])
            statistics = "ema_batch_stats"
        rngs = {name: jax.random.fold_in(key, 1) for name, key in rngs.items()}
        return project(self.model, params, extras, statistics, [views], rngs, train)

    def sigreg_of(
        self, views: Float[Array, "v b k"], directions: Float[Array, "m k"], mask: Float[Array, "b"] | None
    ) -> Float[Array, ""]:
        """Return SIGReg of the projections of all views together (upstream), or its mean over views."""
        of = lambda x: sigreg_loss(x, directions, self.sigreg["domain"], self.sigreg["num_knots"], mask)
        return (
            of(jnp.moveaxis(views, 0, 1)) if self.upstream else jax.vmap(lambda view: of(view[:, None]))(views).mean()
        )

    def updated(self, params: Tree, extras: Tree) -> Tree:
        if not self.averages:
            return extras
        decay = 0.99 if self.moving_average_decay is None else self.moving_average_decay
        follow = lambda old, new: decay * old + (1 - decay) * new
        return {**extras, "ema": jax.tree.map(follow, extras["ema"], params)}
