"""XLA options for the tests: compile quickly, since the tests run tiny programs."""

import jaxlib.version

QUICK = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# Without fusion emitters, XLA compiles several times faster. Newer versions lack this option, and abort the process if
# it is given.
DEFAULT_FUSION = {}  # `compiler_options` of `jax.jit` for the few tests whose tolerance needs the usual rounding
if tuple(map(int, jaxlib.version.__version__.split(".")[:2])) < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
    DEFAULT_FUSION["xla_cpu_use_fusion_emitters"] = True


def flags(devices: int) -> str:
    """Value of the environment variable XLA_FLAGS for this number of CPU devices."""
    return " ".join([*QUICK, f"--xla_force_host_platform_device_count={devices}"])
