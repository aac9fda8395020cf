"""The optimizers of `--optim.name`, as chains of optax's transformations."""

import jax
import optax
from jaxtyping import PyTree

from train.blocks import FIRST, LAST, block, blocks_of, names
from train.commandline.ranges import check_values
from train.config import Optim
from train.lora import SUBTREE
from train.optim.cautious import cautious
from train.optim.muon import hidden_matrices, scale_by_muon
from train.partial import EVERYTHING, Partial


def make_optimizer(
    config: Optim, schedule: optax.Schedule, params: PyTree, partial: Partial = EVERYTHING
) -> optax.GradientTransformation:
    """Gradient clipping and the optimizer that `config` names, with decoupled weight decay.

    Weight decay is decoupled for all optimizers: it does not enter the moments, and is scaled by the learning rate (for
    SGD: Loshchilov and Hutter 2017, arXiv:1711.05101). Neither is it masked by cautious updates.

    Args:
        config: The settings.
        schedule: Learning rate by step.
        params: All parameters, which may be abstract, since only their paths and shapes are used.
        partial: The part of them that is trained, for which the optimizer is.

    Raises:
        UserError: If a value is out of range, or Muon has no matrix to update.
    """
    check_values(config, "optim.")
    matrices = partial.trained(decay_mask(params))
    scaling = _scaling(config, partial.trained(params))
    parts = [cautious(scaling) if config.cautious else scaling]
    if config.clip_norm:
        parts = [optax.clip_by_global_norm(config.clip_norm), *parts]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, matrices))
    if config.name == "lamb":
        # |w| / |update| would keep biases near zero, where they start. The authors' code excludes them too.
        parts.append(optax.masked(optax.scale_by_trust_ratio(), matrices))
    if config.layer_decay < 1:
        scales = partial.trained(layer_scales(params, config.layer_decay))
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales)))
    optimizer = optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    if config.name == "schedule_free_adamw":
        return optax.contrib.schedule_free(optimizer, schedule, b1=config.beta1)
    return optimizer


def _scaling(config: Optim, params: PyTree) -> optax.GradientTransformation:
    """The part without clipping, weight decay and learning rate. `params` are the trained parameters."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, eps=1e-6 if config.name == "lamb" else 1e-8)
    match config.name:
        case "adamw" | "lamb":
            return adam
        case "sgd":
            return optax.trace(config.beta1, nesterov=True)
        case "lion":
            return optax.scale_by_lion(config.beta1, config.beta2)
        case "muon":
            labels = jax.tree.map(lambda is_matrix: "muon" if is_matrix else "adam", hidden_matrices(params))
            return optax.partition({"muon": scale_by_muon(), "adam": adam}, labels)
        case "schedule_free_adamw":  # Adam without the first moment, which the average replaces
            return optax.scale_by_rms(config.beta2, eps=1e-8, eps_in_sqrt=False, bias_correction=True)


def decay_mask(params):
    """True for parameters with weight decay: weight matrices and filters, named `kernel`, and LoRA's matrices.

    Other parameters have none: `scale`, `bias`, tokens, positions, layer scales and mixes of heads.
    """
    is_matrix = lambda names: names[-1] == "kernel" or names[0] == SUBTREE
    return jax.tree_util.tree_map_with_path(lambda path, _: is_matrix(names(path)), params)


def layer_scales(params, layer_decay: float):
    """Factor of each parameter's update, `layer_decay ** (n + 1 - layer)` for n blocks (BEiT, arXiv:2106.08254).

    Layer 0 has the embeddings, layers 1 to n are the blocks, and layer n + 1 has the other parameters: the last norm
    and the heads.
    """
    order = blocks_of(params)
    layers = {FIRST: 0, **{b: i for i, b in enumerate(order, 1)}, LAST: len(order) + 1}
    scale = lambda path, _: layer_decay ** (len(order) + 1 - layers[block(names(path))])
    return jax.tree_util.tree_map_with_path(scale, params)
