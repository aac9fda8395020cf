"""Learning-rate schedules and optimizers, in optax."""

import math
import re

import jax
import jax.numpy as jnp
import optax

from train.commandline.ranges import check_values
from train.config import MOST_STEPS, Optim
from train.errors import UserError


def make_schedule(config: Optim, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Learning rate by step (from 0): a linear warm-up from zero to `config.lr`, then `config.schedule`.

    Args:
        config: The settings.
        total_steps: Length of the run, after which `cosine` and `linear` reach `config.final_lr`. A run shorter than
            the warm-up ends during the warm-up.
        steps_per_epoch: Optimizer steps per epoch.

    Raises:
        UserError: If a value is out of range, or there are more than MOST_STEPS steps.
    """
    check_values(config, "optim.")
    warmup = round(config.warmup_epochs * steps_per_epoch)
    for what, steps in (("the run has", total_steps), ("--optim.warmup-epochs makes", warmup)):
        if steps > MOST_STEPS:
            raise UserError(f"{what} {steps:,} steps, {steps_per_epoch:g} an epoch; it must be at most {MOST_STEPS:,}")
    rest = max(total_steps - warmup, 1)
    shapes = {
        "cosine": optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr / config.lr),
        "linear": optax.linear_schedule(config.lr, config.final_lr, rest),
        "constant": optax.constant_schedule(config.lr),
        # `join_schedules` calls it with negative steps too.
        "rsqrt": lambda step: config.lr / jnp.sqrt(1 + jnp.maximum(step, 0) / max(warmup, 1)),
    }
    if not warmup:
        return shapes[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), shapes[config.schedule]], [warmup])


def make_optimizer(config: Optim, schedule: optax.Schedule, params) -> optax.GradientTransformation:
    """Gradient clipping and the optimizer that `config` names, with decoupled weight decay.

    Weight decay is decoupled for all optimizers: it does not enter the moments, and is scaled by the learning rate (for
    SGD: Loshchilov and Hutter 2017, arXiv:1711.05101). `params` may be abstract, since only its paths are used. Raises
    UserError for a value out of range.
    """
    check_values(config, "optim.")
    matrices = decay_mask(params)
    parts = {
        "adamw": [optax.scale_by_adam(config.beta1, config.beta2)],
        "sgd": [optax.trace(config.beta1, nesterov=True)],
        "lamb": [optax.scale_by_adam(config.beta1, config.beta2, eps=1e-6)],
        "lion": [optax.scale_by_lion(config.beta1, config.beta2)],
    }[config.name]
    if config.clip_norm:
        parts = [optax.clip_by_global_norm(config.clip_norm), *parts]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, matrices))
    if config.name == "lamb":
        # |w| / |update| would keep biases near zero, where they start. The authors' code excludes them too.
        parts.append(optax.masked(optax.scale_by_trust_ratio(), matrices))
    if config.layer_decay < 1:
        scales = layer_scales(params, config.layer_decay)
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales)))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def decay_mask(params):
    """True for parameters with weight decay: weight matrices and filters, which are the leaves named `kernel`.

    Other parameters have none: `scale`, `bias`, tokens, positions, layer scales and mixes of heads.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: names(path)[-1] == "kernel", params)


EMBEDDINGS = {"to_patch_embedding", "cls_token", "distillation_token", "reg_token", "pos_embedding", "norm_pre"}
FIRST, LAST = (-1,), (2,)  # sort before and after every block


def layer_scales(params, layer_decay: float):
    """Factor of each parameter's update, `layer_decay ** (n + 1 - layer)` for n blocks (BEiT, arXiv:2106.08254).

    Layer 0 has all parameters under a name in EMBEDDINGS, layers 1 to n are the blocks, and layer n + 1 has the other
    parameters: the last norm and the heads.
    """
    blocks = jax.tree_util.tree_map_with_path(lambda path, _: block(names(path)), params)
    is_block = lambda x: isinstance(x, tuple)
    order = sorted(set(jax.tree.leaves(blocks, is_leaf=is_block)) - {FIRST, LAST})
    layers = {FIRST: 0, **{b: i for i, b in enumerate(order, 1)}, LAST: len(order) + 1}
    return jax.tree.map(lambda b: layer_decay ** (len(order) + 1 - layers[b]), blocks, is_leaf=is_block)


def block(path: list[str]) -> tuple:
    """The index of a parameter's block; indices sort in the order of the forward pass.

    The index consists of the numbers in the path, outermost first: `transformer/attn_3/to_qkv/kernel` belongs to block
    3 and `stage_1/ff_0/fc1/kernel` to block (1, 0); `pool_1`, without an inner number, follows all blocks of stage 1.
    Parallel branches share an index. The blocks of CaiT's `cls_transformer` come after all others, because their input
    is the output of `patch_transformer`.
    """
    if EMBEDDINGS & set(path):
        return FIRST
    numbers = [int(match[1]) for match in (re.search(r"_(\d+)$", name) for name in path) if match]
    if not numbers:
        return LAST
    return ("cls_transformer" in path, *numbers, math.inf)


def names(path) -> list[str]:
    """The keys of a tree path as strings."""
    return [str(key.key) for key in path]
