"""The trunk of a run, which other runs start from: a pretrained encoder, or a classifier without its head."""

from typing import NamedTuple

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from train.run.stored import Run


class Trunk(NamedTuple):
    """A module that computes features, and its variables."""

    module: nn.Module
    variables: PyTree


def trunk_of(run: Run) -> Trunk:
    """The trunk of a run, without parameters of the parts that used its features."""
    module, variables = run.objective.trunk(run.params, run.extras)
    own = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), run.info.images))
    return Trunk(module, unflatten_dict({path: leaf for path, leaf in flatten_dict(variables).items() if path in own}))
