"""The trunk of a run, which other runs start from: a pretrained encoder, or a classifier without its head."""

from typing import NamedTuple

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from train.errors import UserError
from train.run.stored import Run, load_run
from vit_jax.objectives.protocol import Objective


class Trunk(NamedTuple):
    """A module that computes features, and its variables."""

    module: nn.Module
    variables: PyTree


def trunk_of(run: Run) -> Trunk:
    """The trunk of a run, without parameters of the parts that used its features."""
    module, variables = run.objective.trunk(run.params, run.extras)
    own = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), run.info.images))
    return Trunk(module, unflatten_dict({path: leaf for path, leaf in flatten_dict(variables).items() if path in own}))


def load_trunk(workdir: str, objective: Objective, params: PyTree) -> Trunk:
    """Load the trunk of a run, as the initial trunk of another.

    Args:
        workdir: The run to load from.
        objective: The objective of the new run.
        params: Parameters of the new run, which may be abstract.

    Raises:
        UserError: If the trunk does not fit into `params`; the message lists the differences.
    """
    trunk = trunk_of(load_run(workdir))
    here = flatten_dict(params)
    misfits = []
    for path, leaf in flatten_dict(trunk.variables["params"]).items():
        place = here.get(objective.trunk_path + path)
        if place is None or place.shape != leaf.shape:
            misfits.append(f"{'/'.join(path)} is {leaf.shape} there and {place.shape if place else 'missing'} here")
    if misfits:
        raise UserError(f"--init-from {workdir} does not fit this model: {'; '.join(misfits)}")
    return trunk
