"""Attention kernels of GPUs and TPUs, which never store the attention map.

Source: Dao et al. 2022, arXiv:2205.14135.
Axes: b batch, h heads, i query, j key, n tokens, d width of a head.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vit_jax.layers.execution import batch_parts, current_execution, target_platform

Kernel = Callable[[Array, Array, Array, float], Array]


def kernel_for(q: Float[Array, "*b h i d"], k: Float[Array, "*c h j d"], v: Float[Array, "*c h j e"]) -> Kernel | None:
    """Return the kernel for the target platform, a function of q, k, v and a scale; None if there is none for them."""
    width = q.shape[-1]
    if q.ndim < 4 or q.shape[:-2] != k.shape[:-2] or width != v.shape[-1]:
        return None
    if target_platform() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        return gpu_attention if width <= 128 and width % 8 == 0 and has_cudnn_attention() else None
    if target_platform() == "tpu" and q.dtype == jnp.bfloat16:
        return tpu_attention if width <= 128 and _can_divide(math.prod(q.shape[:-3])) else None
    return None


def has_cudnn_attention() -> bool:
    """Whether cuDNN's kernel supports the local devices: NVIDIA's of compute capability 8.0 or later."""
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # "8.0"; AMD's is like "gfx90a"
    return capability[:1].isdigit() and float(capability) >= 8


def gpu_attention(
    q: Float[Array, "*b h i d"], k: Float[Array, "*b h j d"], v: Float[Array, "*b h j d"], scale: float
) -> Float[Array, "*b h i d"]:
    """Attention by cuDNN's kernel. XLA divides the batch among the devices of a mesh.

    JAX refuses the gradient for odd numbers of tokens, so an odd number is padded by one that is not attended to.
    """
    even = lambda x: jnp.pad(_merge_batch(x), ((0, 0), (0, 0), (0, x.shape[-2] % 2), (0, 0)))
    tokens_first = [rearrange(even(x), "b h n d -> b n h d") for x in (q, k, v)]
    lengths = {}
    if q.shape[-2] % 2 or k.shape[-2] % 2:
        full = lambda x: jnp.full(len(tokens_first[0]), x.shape[-2], jnp.int32)
        lengths = {"query_seq_lengths": full(q), "key_value_seq_lengths": full(k)}
    out = jax.nn.dot_product_attention(*tokens_first, scale=scale, implementation="cudnn", **lengths)
    return rearrange(out, "b n h d -> b h n d")[:, :, : q.shape[-2]].reshape(q.shape)


def tpu_attention(
    q: Float[Array, "*b h i d"], k: Float[Array, "*b h j d"], v: Float[Array, "*b h j d"], scale: float
) -> Float[Array, "*b h i d"]:
    """Attention by JAX's Pallas kernel for TPUs. Every device computes its part of the batch (`execution(batch=)`).

    Tokens are padded to whole tiles. Padding is a segment of its own, so that no token attends to it.
    """
    sharding = current_execution().batch
    on_device = jax.shard_map(
        lambda q, k, v: _tiled(q, k, v, scale),
        mesh=sharding.mesh,
        in_specs=sharding.spec,
        out_specs=sharding.spec,
        check_vma=False,  # a Pallas call does not say over which axes its results vary
    )
    return on_device(*map(_merge_batch, (q, k, v))).reshape(q.shape)


def _tiled(q: Array, k: Array, v: Array, scale: float) -> Array:
    """The kernel on arrays (b, h, n, d) of one device."""
    from jax.experimental.pallas.ops.tpu import flash_attention  # takes a while to import

    (rows, i), (columns, j) = _tile(q.shape[2]), _tile(k.shape[2])
    pad = lambda x, n: jnp.pad(x, ((0, 0), (0, 0), (0, n - x.shape[2]), (0, 0)))
    segments = lambda x, n: jnp.broadcast_to((jnp.arange(n) >= x.shape[2]).astype(jnp.int32), (x.shape[0], n))
    out = flash_attention.flash_attention(
        pad(q, i),
        pad(k, j),
        pad(v, j),
        segment_ids=flash_attention.SegmentIds(segments(q, i), segments(k, j)),
        sm_scale=scale,
        block_sizes=flash_attention.BlockSizes(
            block_b=1,
            **dict.fromkeys(("block_q", "block_q_major_dkv", "block_q_dkv", "block_q_dq"), rows),
            **dict.fromkeys(("block_k_major", "block_k", "block_k_major_dkv", "block_k_dkv"), columns),
            **dict.fromkeys(("block_k_major_dq", "block_k_dq"), columns),
        ),
    )
    return out[:, :, : q.shape[2]]


def _tile(tokens: int) -> tuple[int, int]:
    """The size of a tile, and the tokens of all tiles: the fewest, where the start of a tile counts as 128 tokens."""
    size = min((128, 256, 384, 512), key=lambda size: -(-tokens // size) * (size + 128))
    return size, -(-tokens // size) * size


def _merge_batch(x: Array) -> Array:
    return x.reshape(-1, *x.shape[-3:])


def _can_divide(batch: int) -> bool:
    """Whether the sharding of a batch is known and even; XLA cannot divide a TPU kernel among devices."""
    return current_execution().batch is not None and batch % batch_parts() == 0
