"""XLA's options for the tests, which spend their time on compiling tiny programs and not on running them."""

import jaxlib.version

QUICK = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# The emitters that preceded fusion emitters compile several times quicker. Newer versions do not have them, and end the
# process at an option that they do not know.
DEFAULT_FUSION = {}  # `compiler_options` of `jax.jit` for the few tests whose tolerance needs the usual rounding
if tuple(map(int, jaxlib.version.__version__.split(".")[:2])) < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
    DEFAULT_FUSION["xla_cpu_use_fusion_emitters"] = True


def flags(devices: int) -> str:
    """The environment variable XLA_FLAGS for so many CPU devices."""
    return " ".join([*QUICK, f"--xla_force_host_platform_device_count={devices}"])
