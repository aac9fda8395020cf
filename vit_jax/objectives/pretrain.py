"""Base of the objectives for self-supervised pretraining."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
from flax import linen as nn
from jaxtyping import Array

from vit_jax.objectives.protocol import Objective, Tree


@dataclasses.dataclass(frozen=True)
class Pretraining(Objective):
    """Trains an encoder as the submodule "encoder" of a module that computes the loss.

    A subclass defines this module, `model`, which returns the loss of every image, (b,), and `draw`, which returns
    random keyword arguments for a call of `model`.

    Args:
        encoder: a model that returns features, which are the first of several outputs.
    """

    trunk_path: ClassVar[tuple[str, ...]] = ("encoder",)

    encoder: nn.Module

    @property
    def model(self) -> nn.Module:
        """The module to train: images (b, H, W, c) and the output of `draw` to losses (b,)."""
        raise NotImplementedError

    def draw(self, key: Array, images: Array) -> dict[str, Array]:
        """Make the random draws for a batch, such as which patches are masked."""
        return {}

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        init_key, draw_key = jax.random.split(key)
        variables = dict(self.model.init(init_key, images, **self.draw(draw_key, images)))
        return variables.pop("params"), variables

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        drawn = self.draw(rngs["objective"], batch["image"])
        losses, extras = self.model.apply(
            {"params": params, **extras},
            batch["image"],
            **drawn,
            train=train,
            rngs=rngs,
            mutable=list(extras) if train else [],
        )
        loss = losses.mean()
        return loss, ({"loss": loss}, extras)

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        drawn = self.draw(jax.random.key(0), batch["image"])
        return {"loss": self.model.apply({"params": params, **extras}, batch["image"], **drawn)}

    def trunk(self, params: Tree, extras: Tree) -> tuple[nn.Module, Tree]:
        statistics = {name: tree["encoder"] for name, tree in extras.items() if "encoder" in tree}
        return self.encoder, {"params": params["encoder"], **statistics}
