"""XLA's options for the tests, which spend their time on compiling tiny programs and not on running them."""

QUICK = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",  # the emitters before them compile several times quicker
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)


def flags(devices: int) -> str:
    """The environment variable XLA_FLAGS for so many CPU devices."""
    return f"{QUICK} --xla_force_host_platform_device_count={devices}"
