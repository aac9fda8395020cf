"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

Its authors use it for the matrices of hidden layers, and AdamW for all other parameters. They split fused kernels of
queries, keys and values, and flatten the filters of a convolution into one matrix of inputs by outputs. A depthwise
filter mixes no channels, so AdamW updates it, as in timm.
"""

import math
import re

import jax
import optax
from jaxtyping import Array, PyTree
from optax.contrib import MuonDimensionNumbers

from train.blocks import FIRST, LAST, block, names
from train.errors import UserError
from train.lora import SUBTREE

MOMENTUM = 0.95  # the authors' value
# Root mean square of the updates, about that of AdamW's: learning rates and weight decay for AdamW therefore apply (Liu
# et al. 2025, arXiv:2502.16982, section 2.2).
RMS = 0.2
FUSED = {r"(.+_)?qkv|in_proj": 3, r"(.+_)?(kv|qk)": 2}  # layers with several kernels side by side


def hidden_matrices(params: PyTree) -> PyTree:
    """True for the parameters that Muon updates: kernels in blocks that mix channels, and LoRA's matrices.

    Leaves may be abstract. Raises UserError if there are none.
    """
    found = jax.tree_util.tree_map_with_path(lambda path, leaf: _is_hidden_matrix(names(path), leaf.shape), params)
    if not any(jax.tree.leaves(found)):
        raise UserError("--optim.name muon: none of the trained parameters is a matrix in a block; use adamw")
    return found


def scale_by_muon() -> optax.GradientTransformation:
    """Muon's updates, with the root mean square of AdamW's, of a tree of kernels (..., inputs, outputs)."""
    axes = MuonDimensionNumbers(reduction_axis=0, output_axis=-1)
    muon = optax.contrib.scale_by_muon(
        beta=MOMENTUM, weight_dimension_numbers=lambda matrices: jax.tree.map(lambda _: axes, matrices)
    )

    def init(params):
        return muon.init(_matrices_of(params))

    def update(updates, state, params=None):
        del params
        directions, state = muon.update(_matrices_of(updates), state)
        return jax.tree.map(lambda update, x: _scaled(x).reshape(update.shape), updates, directions), state

    return optax.GradientTransformation(init, update)


def _is_hidden_matrix(path: list[str], shape: tuple[int, ...]) -> bool:
    if path[0] == SUBTREE:
        return True
    is_depthwise = len(shape) > 2 and shape[-2] == 1
    return path[-1] == "kernel" and len(shape) > 1 and not is_depthwise and block(path) not in (FIRST, LAST)


def _matrices_of(kernels: PyTree) -> PyTree:
    """Each kernel as a matrix (inputs, outputs), or as n matrices (inputs, n, outputs) if it has n of them."""

    def matrices(path, kernel):
        inputs = math.prod(kernel.shape[:-1])
        n = _fused(names(path))
        return kernel.reshape(inputs, -1) if n == 1 else kernel.reshape(inputs, n, -1)

    return jax.tree_util.tree_map_with_path(matrices, kernels)


def _fused(path: list[str]) -> int:
    """Number of kernels side by side in the kernel at `path`; 1 for LoRA's matrices."""
    if path[0] == SUBTREE:
        return 1
    return next((n for layer, n in FUSED.items() if any(re.fullmatch(layer, name) for name in path)), 1)


def _scaled(directions: Array) -> Array:
    """Orthogonal matrices (inputs, ..., outputs), scaled to the root mean square RMS."""
    return RMS * math.sqrt(max(directions.shape[0], directions.shape[-1])) * directions
