"""The block that a parameter belongs to, by its path: for layer-wise decay, frozen blocks and LoRA."""

import math
import re
from collections.abc import Sequence

import jax

# Names of what precedes the blocks, and of heads that have numbers.
EMBEDDING = re.compile(
    r"to_patch_embedding|patch_embed|to_patches|to_freq_embedding|patch_(norm|norm_in|proj|norm_out)|(local|region)_encoder"
    r"|(jumbo_)?cls_token|class_token|distillation_token|reg_token|register_tokens|norm_pre|initial_ff"
    r"|pos_embed|pos_embedding|abs_pos_emb|positional_emb|pos_embed_(height|width)"
    r"|stem(_\w+)?|conv_proj|conv1|bn1|conv_\d+|(embed|patches|positions)_0|features_((conv|norm)?0)(_\d+)?"
)
HEAD = re.compile(r"classifier(_\d+)?")
# In attn_3, layer1_0 and features_5_3; not in ff1 and branch3x3.
NUMBER = re.compile(r"(?:^(?:layer|stage|block)|_|_(?:denseblock|denselayer|transition))(\d+)(?=_|$)")
# The stage and a part of it that has a number of its own; other numbered parts belong to the block that they are in.
WITHIN_STAGE = re.compile(r"stage_\d+/block_\d+|.*/(.*_)?(attn|ff|ssa|iwsa|ff1|ff2|large|small)_\d+")
BEFORE_STAGE = re.compile(r"(embed|patches|positions|down|reduce)_\d+")
FIRST, LAST = (-1,), (2,)  # sort before and after every block


def blocks_of(params) -> list[tuple]:
    """The index (see `block`) of every block that has parameters, in the order of the forward pass."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return sorted({block(names(path)) for path, _ in paths} - {FIRST, LAST})


def block(path: Sequence[str]) -> tuple:
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
            inner = [NUMBER.findall(part)[-1] for part in path[depth + 1 :] if WITHIN_STAGE.fullmatch(f"{name}/{part}")]
            end = -math.inf if BEFORE_STAGE.fullmatch(name) else math.inf
            return ("cls_transformer" in path, *map(int, (*numbers, *inner)), end)
    return LAST


def names(path) -> list[str]:
    """The keys of a tree path as strings."""
    return [str(key.key) for key in path]
