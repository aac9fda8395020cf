"""LoRA: low-rank changes of frozen linear layers (Hu et al. 2021, arXiv:2106.09685).

The parameters of a run get a subtree "lora" with two matrices for every linear layer of the blocks, 1x1 convolutions
included: the layer `transformer/attn_0/to_qkv` has `lora/transformer/attn_0/to_qkv/a` (i, r) and `b` (r, o). The model
sees the kernel `kernel + alpha / rank * a @ b`, so models and objectives are the same as without LoRA.
Differs from the paper: the product of a and b is added to the kernel, not to the layer's output. Merged in float32, a
small change of a kernel is kept as in training of the whole model, but the gradient of every kernel is computed.
"""

import math
from collections.abc import Set

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

from train.blocks import FIRST, LAST, block
from train.config import Lora

SUBTREE = "lora"


def linear_kernels(params: PyTree, trunk: Set[tuple[str, ...]] | None = None) -> list[tuple[str, ...]]:
    """Paths of the kernels of linear layers and 1x1 convolutions in blocks (see `train.blocks.block`).

    If `trunk` is given, only those of its paths.
    """
    is_linear = lambda shape: len(shape) >= 2 and math.prod(shape[:-2]) == 1
    return sorted(
        path
        for path, leaf in flatten_dict(params).items()
        if (trunk is None or path in trunk)
        and path[-1] == "kernel"
        and is_linear(leaf.shape)
        and block(path) not in (FIRST, LAST)
    )


def with_matrices(params: PyTree, lora: Lora, key: Array, trunk: Set[tuple[str, ...]] | None = None) -> PyTree:
    """`params` with new LoRA matrices, which do not change the model yet: `b` is zero.

    If `trunk` is given, only its layers get matrices. `a` is uniform between -i**-0.5 and i**-0.5, as in PEFT. Without
    LoRA, the result is `params` itself.
    """
    if not lora.rank:
        return params
    flat, matrices = flatten_dict(params), {}
    for number, (*layer, _) in enumerate(linear_kernels(params, trunk)):
        inputs, outputs = flat[*layer, "kernel"].shape[-2:]
        numbers = jax.random.uniform(jax.random.fold_in(key, number), (inputs, lora.rank), minval=-1.0)
        matrices[*layer, "a"] = numbers * inputs**-0.5
        matrices[*layer, "b"] = jnp.zeros((lora.rank, outputs))
    return {**params, SUBTREE: unflatten_dict(matrices)}


def without_matrices(params: PyTree) -> PyTree:
    """`params` without LoRA's subtree, if there is one."""
    return {name: tree for name, tree in params.items() if name != SUBTREE}


def merged(params: PyTree, lora: Lora) -> PyTree:
    """The parameters of the model, with LoRA's changes added to its kernels. Without LoRA, `params` itself."""
    if not lora.rank:
        return params
    base = flatten_dict(without_matrices(params))
    matrices = flatten_dict(params[SUBTREE])
    scale = (lora.rank if lora.alpha is None else lora.alpha) / lora.rank
    for *layer, name in matrices:
        if name == "a":
            change = jnp.matmul(matrices[*layer, "a"], matrices[*layer, "b"], precision=jax.lax.Precision.HIGHEST)
            kernel = base[*layer, "kernel"]
            base[*layer, "kernel"] = kernel + scale * change.reshape(kernel.shape)
    return unflatten_dict(base)
