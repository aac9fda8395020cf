"""LeJEPA: local views are to predict global ones, and what is predicted is kept from collapsing by SIGReg alone.

Source: Balestriero and LeCun 2025, arXiv:2511.08544. Upstream: vit_pytorch/lejepa.py.
Differs from upstream: `settings="upstream"` has its sizes and weights, the default smaller sizes and more SIGReg; every
sample draws its own views, and colours change after the crop; the encoder is any that gives features; statistics of
batch norms are of both local views, then of both global ones, and an average's are its own.
Differs from the paper: one local and one global view predict each other crosswise, without gradient into the global
one (paper: all views predict the mean of the global ones, with gradients everywhere), and SIGReg sees local views
alone (paper: all views).
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
from vit_jax.objectives.dino import check_numbers, draw_crops, project
from vit_jax.objectives.features import check_encoder
from vit_jax.objectives.pretrain import Pretraining
from vit_jax.objectives.projector import Projected, Projector
from vit_jax.objectives.protocol import Tree

SETTINGS = {
    # SIGReg at upstream's weight is too weak to keep a small encoder from collapsing to a point.
    "small": dict(projection_hidden_size=256, num_classes_K=64, projection_layers=3, sigreg_loss_weight=20.0),
    "upstream": dict(projection_hidden_size=256, num_classes_K=65336, projection_layers=4, sigreg_loss_weight=1.0),
}
SIGREG = dict(num_slices=1024, domain=(-5, 5), num_knots=17)  # of `sigreg_loss_kwargs`


class Encoder(Projected):
    """What learns."""


TORCH_RULES = (("encoder", "encoder.net"), ("projector", "encoder.projector"))
TORCH_ALIASES = ((r"encoder\.net\.(.*)", r"net.\1"),)


@dataclasses.dataclass(frozen=True)
class LeJEPA(Pretraining):
    """`target_loss_weight` times the squared distance of views, plus `sigreg_loss_weight` times SIGReg of local ones.

    Arguments left out are those of `settings`, "small" or "upstream". With `use_ema` targets are an average's, which
    follows by `moving_average_decay` (0.99 where it is left out), and SIGReg only acts if `use_sigreg`; either is on
    where it alone is left out and the other is off, and `moving_average_decay` turns the average on. `augment_fn` and
    `augment_fn2`, (key, pixels (h, w, c) in 0..1) to such, stand in for flips, colours and blur of the first views and
    of the second. Local views have `local_size` (height, width) pixels, global ones the images'.
    Raises ValueError for values that make no sense, and an encoder with classes.
    """

    settings: str = "small"
    projection_hidden_size: int | None = None
    num_classes_K: int | None = None
    projection_layers: int | None = None
    local_upper_crop_scale: float = 0.4
    global_lower_crop_scale: float = 0.5
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
    def sigreg(self) -> dict[str, Any]:
        """Number of directions, and the knots of the integral."""
        return SIGREG | dict(self.sigreg_loss_kwargs)

    @property
    def averages(self) -> bool:
        """Whether targets are an average's."""
        if self.use_ema is None:
            return self.moving_average_decay is not None if self.use_sigreg is None else not self.use_sigreg
        return self.use_ema

    @property
    def regularizes(self) -> bool:
        """Whether SIGReg acts."""
        wanted = not self.averages if self.use_sigreg is None else self.use_sigreg
        return wanted and self.sigreg_loss_weight > 0

    @property
    def model(self) -> nn.Module:
        projector = Projector(self.num_classes_K, self.projection_hidden_size, self.projection_layers)
        return Encoder(self.encoder, projector)

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
        """The loss of each image; SIGReg, which is one number for all that "mask" counts, is part of each."""
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
        """The loss of every image, given its views, and the extras of the next step."""
        locals_, kept = project(self.model, params, extras, "batch_stats", [drawn["local"]], rngs, train)
        average, statistics = params, "batch_stats"
        if self.averages:
            average = jax.tree.map(lambda x: x.astype(drawn["global"].dtype), extras["ema"])
            statistics = "ema_batch_stats"
        rngs = {name: jax.random.fold_in(key, 1) for name, key in rngs.items()}
        globals_, moved = project(self.model, average, {**extras, **kept}, statistics, [drawn["global"]], rngs, train)
        wide = lambda projected: jnp.stack(projected).astype(jnp.float32)
        locals_, targets = wide(locals_), jax.lax.stop_gradient(wide(globals_))[::-1]
        losses = self.target_loss_weight * jnp.square(locals_ - targets).mean(axis=-1).sum(axis=0)
        if self.regularizes:
            domain, num_knots = (self.sigreg[name] for name in ("domain", "num_knots"))
            both = jnp.moveaxis(locals_, 0, 1)
            losses += self.sigreg_loss_weight * sigreg_loss(both, drawn["directions"], domain, num_knots, mask)
        return losses, {**extras, **kept, **moved}

    def updated(self, params: Tree, extras: Tree) -> Tree:
        if not self.averages:
            return extras
        decay = 0.99 if self.moving_average_decay is None else self.moving_average_decay
        follow = lambda old, new: decay * old + (1 - decay) * new
        return {**extras, "ema": jax.tree.map(follow, extras["ema"], params)}
