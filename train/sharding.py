"""Where arrays live: a mesh of devices, and which axis of which parameter is split over it.

Models know nothing of this. The compiler moves the data; these rules only say where it rests.
"""

import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from train.config import UserError

# The first pattern that a parameter's path ends on decides. The two matrices of a block are split so that what lies
# between them stays on its device (Megatron-LM, arXiv:1909.08053). All else is on every device.
RULES = (
    (r"/(to_qkv|to_q|to_kv|fc1)/kernel", PartitionSpec(None, "model")),
    (r"/fc1/bias", PartitionSpec("model")),
    (r"/(to_out|fc2)/kernel", PartitionSpec("model", None)),
)


def make_mesh(model_parallel: int = 1) -> Mesh:
    """All devices as ("data", "model"), `model_parallel` of them along the second axis.

    Raises UserError when that does not divide their number.
    """
    devices = jax.device_count()
    if model_parallel < 1 or devices % model_parallel:
        raise UserError(f"--model-parallel is {model_parallel}; it must divide the {devices} devices")
    return Mesh(np.reshape(jax.devices(), (devices // model_parallel, model_parallel)), ("data", "model"))


def check_batch(option: str, size: int, mesh: Mesh, slices: int = 1) -> None:
    """Raises UserError unless `size` examples spread evenly over the mesh, in each of `slices`."""
    shares = mesh.shape["data"] * slices
    if size < 1 or size % shares:
        raise UserError(
            f"{option} is {size}; it must be a positive multiple of {shares}: "
            f"{mesh.shape['data']} devices share a batch" + (f" in {slices} slices" if slices > 1 else "")
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split along the first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(state: PyTree, mesh: Mesh) -> PyTree:
    """The sharding of every leaf of an abstract state; moments lie as the parameter whose path they end on."""

    def sharding(path, leaf):
        name = "/" + "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        for pattern, spec in RULES:
            if re.search(f"{pattern}$", name) and len(spec) == len(leaf.shape) and _divides(leaf, spec, mesh):
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def _divides(leaf, spec: PartitionSpec, mesh: Mesh) -> bool:
    return all(axis is None or n % mesh.shape[axis] == 0 for n, axis in zip(leaf.shape, spec, strict=True))


def to_devices(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process's share of a batch, as part of the one global batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
