"""Partial training: which parameters of a run are trained (`--freeze`, `--train-only`, `--lora.rank`).

The step computes gradients of the trained parameters alone, and the optimizer has only these. So frozen parameters have
no optimizer state, no weight decay and no share in the norm of the gradients, and XLA leaves out their backward pass.
"""

import dataclasses

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

from train.blocks import FIRST, LAST, block
from train.build import model_name
from train.commandline.freezing import frozen_blocks
from train.config import Config, Lora
from train.errors import UserError
from train.lora import linear_kernels, merged, with_matrices
from vit_jax.objectives.protocol import Objective

Paths = frozenset[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Partial:
    """The trained part of the parameters; by default all of them.

    Attributes:
        frozen: Paths of the parameters that are not trained.
        lora: LoRA's settings.
        evaluates: Whether modules run as in evaluation, because nothing before the head is trained: dropout is off, and
            batch norms use their running statistics, which stay as they are. Otherwise all modules run as in training,
            so the statistics of frozen batch norms change.
    """

    frozen: Paths = frozenset()
    lora: Lora = dataclasses.field(default_factory=Lora)
    evaluates: bool = False

    def extended(self, params: PyTree, key: Array) -> PyTree:
        """The parameters of the run, from those of the objective."""
        return with_matrices(params, self.lora, key, self.frozen)

    def merged(self, params: PyTree) -> PyTree:
        """The parameters of the objective, from those of the run."""
        return merged(params, self.lora)

    def trained(self, params: PyTree) -> PyTree:
        """The trained part of `params`, or of another tree with their structure."""
        if not self.frozen:
            return params
        return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if path not in self.frozen})

    def joined(self, trained: PyTree, params: PyTree) -> PyTree:
        """`params` with `trained` in place of their trained part."""
        return unflatten_dict(flatten_dict(params) | flatten_dict(trained)) if self.frozen else trained


EVERYTHING = Partial()


def make_partial(config: Config, objective: Objective, images: Array) -> Partial:
    """The part of the parameters that `config` trains.

    Args:
        config: Config of the run.
        objective: Its objective.
        images: Images (b, H, W, c), for shapes.

    Raises:
        UserError: If an option matches no parameters of the model, or nothing is left to train.
    """
    only_head = config.train_only == "head" or config.lora.rank > 0
    freeze = ("backbone",) if only_head else config.freeze
    if not freeze:
        return EVERYTHING
    params, extras = jax.eval_shape(objective.init, jax.random.key(0), images)

    trunk = trunk_paths(objective, params, extras, images)

    def matched(value: str) -> Paths:
        if value == "backbone":
            return trunk
        if value == "embeddings":
            return frozenset(path for path in trunk if block(path) == FIRST)
        return _in_blocks(config, value, trunk)

    found = {value: matched(value) for value in freeze}
    for value, paths in found.items():
        if not paths:
            raise UserError(f"--freeze {value}: no {value} are recognised in {model_name(config.model)}")
    frozen = frozenset().union(*found.values())
    if frozen >= flatten_dict(params).keys():
        raise UserError(f"--freeze {' '.join(freeze)} leaves nothing to train in {model_name(config.model)}")
    if config.lora.rank and not linear_kernels(params, frozen):
        rank = config.lora.rank
        raise UserError(f"--lora.rank {rank}: {model_name(config.model)} has no linear layers in blocks")
    return Partial(frozen, config.lora, evaluates="backbone" in freeze and not config.lora.rank)


def trunk_paths(objective: Objective, params: PyTree, extras: PyTree, images: Array) -> Paths:
    """Paths of the parameters of the trunk: for a classifier, of all but the head."""
    module, _ = objective.trunk(params, extras)
    own = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), images)["params"])
    return frozenset(objective.trunk_path + path for path in own).intersection(flatten_dict(params))


def _in_blocks(config: Config, value: str, trunk: Paths) -> Paths:
    """Paths of the parameters of the trunk that are in the blocks that `value` names."""
    first, last = frozen_blocks(value)
    order = sorted({block(path) for path in trunk} - {FIRST, LAST})
    if last >= len(order):
        there = f"has blocks 0 to {len(order) - 1}" if order else "has no blocks that are recognised"
        raise UserError(f"--freeze {value}: {model_name(config.model)} {there}")
    wanted = set(order[first : last + 1])
    return frozenset(path for path in trunk if block(path) in wanted)
