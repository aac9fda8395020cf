"""Devices that a program can be compiled for without having them: TPUs, GPUs, and virtual CPUs."""

import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from train.errors import UserError, shortened


class Chip(NamedTuple):
    """Published figures of a chip: memory in bytes, bandwidth in bytes/s, dense bfloat16 FLOP/s.

    Source: the system architecture pages of Google's Cloud TPU documentation; NVIDIA's data sheets, SXM versions.
    """

    memory: int | float
    bandwidth: int | float
    flops: int | float


TPUS = {
    "v4": Chip(32 * 2**30, 1228e9, 275e12),
    "v5e": Chip(16 * 2**30, 819e9, 197e12),
    "v5p": Chip(95 * 2**30, 2765e9, 459e12),
    "v6e": Chip(32 * 2**30, 1640e9, 918e12),
}
GPUS = {
    "a100": Chip(80e9, 2039e9, 312e12),
    "h100": Chip(80e9, 3350e9, 989e12),
    "h200": Chip(141e9, 4800e9, 989e12),
}

# What XLA asks of a GPU that it compiles for. Source: NVIDIA's tuning guides for compute capability 8.0 and 9.0.
_AMPERE = dict(major=8, cores=108, lanes=64, shared_per_core=167_936, shared_per_block=166_912, cache=40, ghz=1.41)
_HOPPER = dict(major=9, cores=132, lanes=128, shared_per_core=233_472, shared_per_block=232_448, cache=50, ghz=1.98)
_ARCHITECTURES = {"a100": _AMPERE, "h100": _HOPPER, "h200": _HOPPER}


def open_topology(name: str) -> tuple[list[jax.Device], Chip | None]:
    """Open devices that need not exist.

    Args:
        name: GENERATION:SHAPE of TPUs (v5e:2x4), TYPE:NUMBER of GPUs in one machine (h100:8), or cpu:NUMBER.

    Returns:
        The devices, and the figures of such a chip; None for CPUs.

    Raises:
        UserError: If the topology is unknown, or its compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    counted = re.fullmatch("[1-9][0-9]{0,3}", shape) is not None
    jax.config.update("jax_platforms", "cpu")  # the program is compiled, not run
    if kind == "cpu" and counted:
        jax.config.update("jax_num_cpu_devices", int(shape))
        return jax.devices(), None
    if kind in TPUS:
        return _tpus(name), TPUS[kind]
    if kind in GPUS and counted:
        return _gpus(kind, int(shape)), GPUS[kind]
    raise UserError(
        f"--topology {shortened(name)}: expected cpu:N, {', '.join(GPUS)} with a number, as in h100:8, or "
        f"{', '.join(TPUS)} with a shape, as in v5e:2x4"
    )


def _tpus(name: str) -> list[jax.Device]:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # otherwise libtpu queries the metadata server of a cloud host
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:  # libtpu is missing, or rejects the shape; the type of the error depends on its version
        raise UserError(f"--topology {shortened(name)} cannot be compiled for: {str(error).splitlines()[0]}") from error


def _gpus(kind: str, number: int) -> list[jax.Device]:
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which would look for the libraries of CUDA
    try:
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name=kind,
            topology=f"1x1x{number}",  # slices, machines, GPUs
            target_config=_target(kind),
        )
        return list(described.devices)
    except Exception as error:  # as for TPUs
        raise UserError(
            f"--topology {kind}:{number} needs JAX's compiler for CUDA: pip install --no-deps "
            f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__} ({str(error).splitlines()[0]})"
        ) from error


def _target(kind: str) -> str:
    """The description of a GPU that XLA compiles for, as the text of its protocol buffer."""
    chip, has = GPUS[kind], _ARCHITECTURES[kind]
    return f"""
        platform_name: "CUDA"
        device_description_str: "NVIDIA {kind.upper()}"
        dnn_version_info {{ major: 9 minor: 12 }}
        runtime_version {{ major: 13 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {has["major"]} }}
          core_count: {has["cores"]}
          fpus_per_core: {has["lanes"]}
          clock_rate_ghz: {has["ghz"]}
          device_memory_size: {chip.memory:.0f}
          memory_bandwidth: {chip.bandwidth:.0f}
          l2_cache_size: {has["cache"] * 2**20}
          shared_memory_per_core: {has["shared_per_core"]}
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: {has["shared_per_block"]}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
        }}
    """
