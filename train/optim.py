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


# Names of what precedes the blocks, and of heads that have numbers.
EMBEDDING = re.compile(
    r"to_patch_embedding|to_patches|to_freq_embedding|patch_(norm|norm_in|proj|norm_out)|(local|region)_encoder"
    r"|(jumbo_)?cls_token|class_token|distillation_token|reg_token|register_tokens|norm_pre|initial_ff"
    r"|pos_embedding|abs_pos_emb|positional_emb|pos_embed_(height|width)"
    r"|stem(_\w+)?|conv_proj|conv1|bn1|conv_\d+|(embed|patches|positions)_0|features_((conv|norm)?0)(_\d+)?"
)
HEAD = re.compile(r"classifier(_\d+)?")
# In attn_3, layer1_0 and features_5_3; not in ff1 and branch3x3.
NUMBER = re.compile(r"(?:^(?:layer|stage|block)|_|_(?:denseblock|denselayer|transition))(\d+)(?=_|$)")
WITHIN_STAGE = re.compile(r".*(attn|ff|ssa|iwsa|ff1|ff2|large|small)_\d+")  # other numbered parts belong to a block
BEFORE_STAGE = re.compile(r"(embed|patches|positions|down|reduce)_\d+")
FIRST, LAST = (-1,), (2,)  # sort before and after every block


def layer_scales(params, layer_decay: float):
    """Factor of each parameter's update, `layer_decay ** (n + 1 - layer)` for n blocks (BEiT, arXiv:2106.08254).

    Layer 0 has the embeddings, layers 1 to n are the blocks, and layer n + 1 has the other parameters: the last norm
    and the heads.
    """
    order = blocks_of(params)
    layers = {FIRST: 0, **{b: i for i, b in enumerate(order, 1)}, LAST: len(order) + 1}
    scale = lambda path, _: layer_decay ** (len(order) + 1 - layers[block(names(path))])
    return jax.tree_util.tree_map_with_path(scale, params)


def blocks_of(params) -> list[tuple]:
    """The index (see `block`) of every block that has parameters, in the order of the forward pass."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return sorted({block(names(path)) for path, _ in paths} - {FIRST, LAST})


def block(path: list[str]) -> tuple:
    """The index of a parameter's block; indices sort in the order of the forward pass.

    The index consists of the numbers in the path, outermost first: `transformer/attn_3/to_qkv/kernel` belongs to block
    3 and `stage_1/ff_0/fc1/kernel` to block (1, 0); `pool_1`, without an inner number, follows all blocks of stage 1,
    and `embed_1` precedes them. Parallel branches share an index. The blocks of CaiT's `cls_transformer` come after all
    others, because their input is the output of `patch_transformer`.
    """
    for depth, name in enumerate(path):
        if EMBEDDING.fullmatch(name):
            return FIRST
        if HEAD.fullmatch(name):
            return LAST
        if numbers := NUMBER.findall(name):
            inner = [NUMBER.findall(part)[-1] for part in path[depth + 1 :] if WITHIN_STAGE.fullmatch(part)]
            end = -math.inf if BEFORE_STAGE.fullmatch(name) else math.inf
            return ("cls_transformer" in path, *map(int, (*numbers, *inner)), end)
    return LAST


def names(path) -> list[str]:
    """The keys of a tree path as strings."""
    return [str(key.key) for key in path]
