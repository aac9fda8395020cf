"""Forms of softmax(q kᵀ scale + bias) v: with the whole attention map, by blocks of queries, and a device's kernel.

The memory of the first form grows with the square of the tokens, that of the others with the tokens.
Sources: Rabe and Staats 2021, arXiv:2112.05682, for blocks of queries; `attention_kernels` for kernels.
Axes: b batch, h heads, i query, j key, d width of queries and keys, e width of values.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vit_jax.layers.attention_kernels import kernel_for
from vit_jax.layers.attention_scores import are_wide, attention_scores
from vit_jax.layers.execution import current_execution, target_platform
from vit_jax.layers.softmax import softmax

# With attention="auto", maps of at least this number of tokens are not stored (docs/trainer.md); and on a TPU, the
# backward pass recomputes maps of at least RECOMPUTED tokens, if its fast memory holds them in float32.
TOKENS_ON_CPU, TOKENS = 1536, 1024
RECOMPUTED = 128
QUERIES = 256  # of a block. On a CPU, the fastest of 128, 256 and 512 for 2,049 and 4,097 tokens
# On a TPU a loop copies its operands: by its compiler's estimate, 3 blocks of 1,025 tokens take 1.62 million cycles in
# a loop, 1.32 unrolled. So up to UNROLLED blocks are unrolled. They start at whole tiles of ROWS queries.
QUERIES_ON_TPU, UNROLLED, ROWS = 384, 8, 16

Queries = Float[Array, "*b h i d"]
Keys = Float[Array, "*b h j d"]
Values = Float[Array, "*b h j e"]
Bias = Float[Array, "*#b #h #i j"] | None
Mask = Bool[Array, "*#b #h #i j"] | None
Heads = Float[Array, "*b h i e"]


def attention(q: Queries, k: Keys, v: Values, scale: float | Array, bias: Bias, mask: Mask) -> Heads:
    """Return the attention output, in the form that `execution` sets or, by default, that suits the tokens."""
    setting, platform = current_execution().attention, target_platform()
    tokens = (q.shape[-2] * k.shape[-2]) ** 0.5
    if setting == "plain" or (setting == "auto" and tokens < (TOKENS_ON_CPU if platform == "cpu" else TOKENS)):
        recomputed = setting == "auto" and platform == "tpu" and tokens >= RECOMPUTED and are_wide(q, k)
        form = jax.checkpoint(attention_by_map) if recomputed else attention_by_map
        return form(q, k, v, scale, bias, mask)
    is_basic = bias is None and mask is None and isinstance(scale, float)
    if is_basic and (kernel := kernel_for(q, k, v)):
        return kernel(q, k, v, scale)
    return attention_by_blocks(q, k, v, scale, bias, mask)


def attention_map(
    q: Queries, k: Keys, scale: float | Array, bias: Bias = None, mask: Mask = None
) -> Float[Array, "*b h i j"]:
    """Return the weights of the values, for every query."""
    scores = attention_scores(q, k, scale)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return softmax(scores)


def attention_by_map(q: Queries, k: Keys, v: Values, scale: float | Array, bias: Bias, mask: Mask) -> Heads:
    """The plain form, which computes and stores the whole attention map."""
    attn = attention_map(q, k, scale, bias, mask).astype(v.dtype)
    return jnp.einsum("...ij,...je->...ie", attn, v)


def attention_by_blocks(q: Queries, k: Keys, v: Values, scale: float | Array, bias: Bias, mask: Mask) -> Heads:
    """Attention of a block of queries at a time, whose map the backward pass recomputes."""
    queries, on_tpu = q.shape[-2], target_platform() == "tpu"
    count = -(-queries // (QUERIES_ON_TPU if on_tpu else QUERIES))
    given = {name: x for name, x in {"q": q, "bias": bias, "mask": mask}.items() if x is not None}
    by_query = {name: x for name, x in given.items() if x.shape[-2] == queries}
    common = {"bias": None, "mask": None} | {name: x for name, x in given.items() if name not in by_query}
    block = lambda part: attention_by_map(k=k, v=v, scale=scale, **(common | part))
    if on_tpu and count <= UNROLLED:
        return _unrolled(block, by_query, count)
    return _looped(block, by_query, count)[..., :queries, :]


def _unrolled(block: Callable, by_query: dict[str, Array], count: int) -> Array:
    """Apply `block` to at most `count` parts of the arrays `by_query`, of which the last may have fewer rows."""
    queries = by_query["q"].shape[-2]
    rows = -(-queries // count)
    rows += -rows % ROWS
    parts = ({name: x[..., i : i + rows, :] for name, x in by_query.items()} for i in range(0, queries, rows))
    return jnp.concatenate([jax.checkpoint(block)(part) for part in parts], axis=-2)


def _looped(block: Callable, by_query: dict[str, Array], count: int) -> Array:
    """Apply `block` to `count` parts of the arrays `by_query`, which are padded to equal parts, in a loop."""

    def divided(x: Array) -> Array:
        rows = -(-x.shape[-2] // count)  # blocks of equal size need the least padding
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, count * rows - x.shape[-2]), (0, 0)])
        return jnp.moveaxis(x.reshape(*x.shape[:-2], count, rows, x.shape[-1]), -3, 0)

    blocks = jax.lax.map(jax.checkpoint(block, prevent_cse=False), jax.tree.map(divided, by_query))
    return jax.lax.collapse(jnp.moveaxis(blocks, 0, -3), -3, -1)
