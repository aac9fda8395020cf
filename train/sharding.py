"""Sharding: a mesh of devices, and how parameters and batches are split over it.

The mesh has three axes. A batch is split over "data" and "fsdp". The two matrices of a feed-forward, and the
computation with them, are split over "tensor". Between steps, the parameters, their averages and the optimizer state
are split over "fsdp" and "tensor"; a step gathers the parameters that it needs. Models contain no sharding, and no rule
is specific to a model.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from train.errors import UserError, shortened

AXES = ("data", "fsdp", "tensor")

# Parameters that remain split during a step, by the first pattern that matches the end of their path. The activations
# between the two matrices then remain on their device (Megatron-LM, arXiv:1909.08053). Attention is not split: the
# output of `to_qkv` is split into three before it is split into heads, so it would have to be exchanged between
# devices, which costs more than it saves.
RULES = (
    (r"/fc1/kernel", PartitionSpec(None, "tensor")),
    (r"/fc1/bias", PartitionSpec("tensor")),
    (r"/fc2/kernel", PartitionSpec("tensor", None)),
)

# Between steps, every other leaf is split along its longest divisible axis. A leaf with fewer numbers is on every
# device, because gathering it takes longer than the memory is worth.
LEAST_SPLIT = 256


def make_mesh(shape: str | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Create a mesh with the axes "data", "fsdp" and "tensor".

    Args:
        shape: Sizes of axes, such as "data=4,fsdp=2". An axis that is not named has size 1, except "data", which has
            all remaining devices.
        devices: The devices; all that JAX finds if None.

    Raises:
        UserError: If `shape` cannot be parsed, or the product of its sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {}
    for part in filter(None, (shape or "").split(",")):
        axis, _, size = part.partition("=")
        if axis not in AXES or axis in sizes or not re.fullmatch("[1-9][0-9]{0,6}", size):
            sizes = f"sizes of {', '.join(AXES)}, each once, as in data=4,fsdp=2"
            raise UserError(f"--mesh {shortened(shape)}: expected {sizes}")
        sizes[axis] = int(size)
    rest = math.prod(size for axis, size in sizes.items() if axis != "data")
    sizes = {axis: sizes.get(axis, max(1, len(devices) // rest) if axis == "data" else 1) for axis in AXES}
    if math.prod(sizes.values()) != len(devices):
        raise UserError(f"--mesh {shape}: its sizes need {math.prod(sizes.values())} devices; there are {len(devices)}")
    return Mesh(mesh_utils.create_device_mesh(tuple(sizes.values()), list(devices)), AXES)


def check_batch(option: str, size: int, mesh: Mesh, slices: int = 1) -> None:
    """Raises UserError unless each of `slices` equal slices of a batch of `size` splits evenly over the mesh."""
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    if size < 1 or size % (sharing * slices):
        raise UserError(
            f"{option} is {size}; it must be a positive multiple of {sharing * slices}: "
            f"{sharing} devices share a batch" + (f" in {slices} slices" if slices > 1 else "")
        )


def sufficient_batch(size: int, examples: int, mesh: Mesh) -> int:
    """`size`, or the smallest batch size that holds all `examples` and splits evenly over the mesh, if that is less."""
    sharing = math.lcm(mesh.shape["data"] * mesh.shape["fsdp"], jax.process_count())
    return min(size, -(-examples // sharing) * sharing)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split along the first axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(state: PyTree, mesh: Mesh) -> PyTree:
    """Shardings of an abstract state between steps. Moments have the sharding of their parameter, by its path."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, resting(path, leaf, mesh)), state)


def working_sharding(params: PyTree, mesh: Mesh) -> PyTree:
    """Shardings of all parameters during a step."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, working(path, leaf, mesh)), params)


def resting(path: tuple, leaf: Any, mesh: Mesh) -> PartitionSpec:
    """How a leaf is split between steps: as during a step, and also over the other axes of the mesh."""
    spec = working(path, leaf, mesh)
    unused = tuple(axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1 and axis not in spec)
    if not unused or math.prod(leaf.shape) < LEAST_SPLIT:
        return spec
    entries = list(spec) or [None] * len(leaf.shape)
    for axes in (unused, unused[:1]):
        parts = math.prod(mesh.shape[axis] for axis in axes)
        free = [i for i, entry in enumerate(entries) if entry is None and leaf.shape[i] % parts == 0]
        if free:
            entries[max(free, key=lambda i: leaf.shape[i])] = axes if len(axes) > 1 else axes[0]
            return PartitionSpec(*entries)
    return spec


def working(path: tuple, leaf: Any, mesh: Mesh) -> PartitionSpec:
    """How a leaf, and the computation with it, is split during a step."""
    name = "/" + "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
    for pattern, spec in RULES:
        if re.search(f"{pattern}$", name) and len(spec) == len(leaf.shape) and _divides(leaf, spec, mesh):
            return spec
    return PartitionSpec()


def _divides(leaf, spec: PartitionSpec, mesh: Mesh) -> bool:
    """Whether `spec` can split a leaf: every split axis is divisible, and split over more than one device."""
    sizes = [(n, mesh.shape[axis]) for n, axis in zip(leaf.shape, spec, strict=True) if axis is not None]
    return all(parts > 1 and n % parts == 0 for n, parts in sizes)


def to_devices(batch: PyTree, mesh: Mesh) -> PyTree:
    """The global batch, from this process's share of it."""
    sharding = batch_sharding(mesh)
    arrays = jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
    # On a CPU, JAX runs a program in another thread if its inputs are not ready (see `train.allocator`).
    return jax.block_until_ready(arrays) if mesh.devices.flat[0].platform == "cpu" else arrays
