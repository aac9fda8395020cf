"""Where arrays live: a mesh of devices, and which axis of which parameter is split over it.

The mesh has three axes. Each place of "data" and "fsdp" takes a share of the batch. Over "tensor" the two matrices of a
feed-forward are split, and the work with them. Between steps parameters, their averages and the optimizer's state rest
split over all of "fsdp" and "tensor"; a step gathers the parameters that it computes with. Models know nothing of this,
and no rule names one.
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

# What is worked with in parts: the first pattern that a parameter's path ends on decides. What lies between the two
# matrices then stays on its device (Megatron-LM, arXiv:1909.08053). Attention is not split: `to_qkv` is cut in three
# before it is cut into heads, so that its activations would have to be exchanged, which costs more than is won.
RULES = (
    (r"/fc1/kernel", PartitionSpec(None, "tensor")),
    (r"/fc1/bias", PartitionSpec("tensor")),
    (r"/fc2/kernel", PartitionSpec("tensor", None)),
)

# Every other leaf rests split along its longest axis that divides. One of fewer is on every device: to gather it
# takes longer than it is worth.
LEAST_SPLIT = 256


def make_mesh(shape: str | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All `devices` as ("data", "fsdp", "tensor"), sized as `shape` says: "data=4,fsdp=2".

    An axis that is not named has size 1, but "data" has what the others leave. Raises UserError for another form, and
    unless the sizes' product is the number of devices.
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
        raise UserError(f"--mesh {shape}: has {math.prod(sizes.values())} places for the {len(devices)} devices")
    return Mesh(mesh_utils.create_device_mesh(tuple(sizes.values()), list(devices)), AXES)


def check_batch(option: str, size: int, mesh: Mesh, slices: int = 1) -> None:
    """Raises UserError unless `size` examples spread evenly over the mesh, in each of `slices`."""
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    if size < 1 or size % (sharing * slices):
        raise UserError(
            f"{option} is {size}; it must be a positive multiple of {sharing * slices}: "
            f"{sharing} devices share a batch" + (f" in {slices} slices" if slices > 1 else "")
        )


def sufficient_batch(size: int, examples: int, mesh: Mesh) -> int:
    """A batch of `size`, or one of fewer if all `examples` fit into it, that spreads evenly over the mesh."""
    sharing = math.lcm(mesh.shape["data"] * mesh.shape["fsdp"], jax.process_count())
    return min(size, -(-examples // sharing) * sharing)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split along the first axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(state: PyTree, mesh: Mesh) -> PyTree:
    """Where every leaf of an abstract state rests; moments lie as the parameter whose path they end on."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, resting(path, leaf, mesh)), state)


def working_sharding(params: PyTree, mesh: Mesh) -> PyTree:
    """Where every parameter is while a step computes with it."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, working(path, leaf, mesh)), params)


def resting(path: tuple, leaf: Any, mesh: Mesh) -> PartitionSpec:
    """How a leaf is split between steps: as in a step, and over the axes of the mesh that this leaves."""
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
    """How a leaf is split in a step, and the work with it."""
    name = "/" + "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
    for pattern, spec in RULES:
        if re.search(f"{pattern}$", name) and len(spec) == len(leaf.shape) and _divides(leaf, spec, mesh):
            return spec
    return PartitionSpec()


def _divides(leaf, spec: PartitionSpec, mesh: Mesh) -> bool:
    """Whether every split axis of a leaf divides. Over an axis of one device nothing is split."""
    sizes = [(n, mesh.shape[axis]) for n, axis in zip(leaf.shape, spec, strict=True) if axis is not None]
    return all(parts > 1 and n % parts == 0 for n, parts in sizes)


def to_devices(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process's share of a batch, as part of the one global batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
