"""Memory and cost of a training step, as the compiler reports them, for devices that need not exist.

`train.plan` is the command.
"""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from train.build import DataInfo, build_objective, make_network, model_name
from train.capacity import local_bytes
from train.commandline.arguments import parse_arguments
from train.commandline.ranges import accepts, expected
from train.config import Config, Side
from train.errors import UserError, one_line, shortened
from train.hlo import collectives, cycles
from train.memory import in_words
from train.program import Program, build_program
from train.published import with_published
from train.sharding import check_batch, make_mesh
from train.small_data import with_length
from train.topology import Chip, open_topology
from train.validation import check_options, validate


class Plan(NamedTuple):
    """The compiler's figures for a step, per chip except `parameters` and `flops_per_image`."""

    parameters: int
    flops_per_image: float
    state_bytes: int
    memory_bytes: int
    temporary_bytes: int  # part of the memory: what the step itself keeps
    least_moved_bytes: int  # arguments read once, results written once, temporaries written and read once
    accessed_bytes: float  # by all operations, in on-chip or off-chip memory; 0 if the compiler gives no figure
    collectives: dict[str, tuple[int, int]]  # kind: (number, bytes of results)
    cycles: int  # 0 if the compiler gives no estimate
    seconds: float


STEPS = 1000  # length of the run; no figure depends on it


class TooLarge(Exception):
    """The compiler reports that a step does not fit into memory."""


def plan(config: Config, info: DataInfo, mesh: Mesh) -> Plan:
    """Compile the training step of a run.

    Args:
        config: Config of the run.
        info: Properties of the assumed data.
        mesh: Devices to compile for; they need not exist.

    Raises:
        UserError: If the run could not start.
        TooLarge: If the compiler reports that the step does not fit into memory.
    """
    check_options(config)
    config = with_length(config, None, mesh)
    check_batch("--batch-size", config.batch_size, mesh, config.optim.accumulate)
    objective = build_objective(config, info)
    program = build_program(config, info, mesh, objective, STEPS, float(STEPS))
    since = time.perf_counter()
    try:
        compiled = lowered(program).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            used = re.search(r"Used \S+ of \S+ hbm", str(error))
            raise TooLarge(used[0] if used else one_line(error)) from error
        raise
    seconds = time.perf_counter() - since
    memory, text = compiled.memory_analysis(), compiled.as_text()
    passed, kept = memory.argument_size_in_bytes + memory.output_size_in_bytes, memory.temp_size_in_bytes
    return Plan(
        parameters=sum(x.size for x in jax.tree.leaves(program.state.params)),
        flops_per_image=flops_per_image(config, info),
        state_bytes=local_bytes(program.state),
        memory_bytes=passed - memory.alias_size_in_bytes + kept + memory.generated_code_size_in_bytes,
        temporary_bytes=kept,
        least_moved_bytes=passed + 2 * kept,
        accessed_bytes=(compiled.cost_analysis() or {}).get("bytes accessed", 0.0),
        collectives=collectives(text),
        cycles=cycles(text),
        seconds=seconds,
    )


def flops_per_image(config: Config, info: DataInfo) -> float:
    """FLOPs of a training step per image.

    They are counted before compilation, so that they do not depend on the device; without --scan-blocks, because XLA
    counts the body of a loop once; and without --remat.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    config = dataclasses.replace(with_length(config, None, mesh), scan_blocks=False, remat="none", mesh=None)
    program = build_program(config, info, mesh, build_objective(config, info), STEPS, float(STEPS))
    return lowered(program).cost_analysis()["flops"] / config.batch_size


def lowered(program: Program) -> jax.stages.Lowered:
    """The training step, traced but not compiled."""
    return program.train_step.lower(program.state, program.batch, {})


def report(found: Plan, config: Config, mesh: Mesh, chip: Chip | None) -> list[str]:
    """Format a plan as lines of "name  value" for the user."""
    images = config.batch_size / mesh.size
    lines = [
        ("parameters", f"{found.parameters:,}"),
        (
            "FLOPs",
            f"{found.flops_per_image / 1e9:,.2f} G per image, forward and backward, without recomputation by --remat",
        ),
        ("state", f"{in_words(found.state_bytes)} per chip: parameters, their averages, optimizer state"),
        ("memory", f"{in_words(found.memory_bytes)} per chip" + (_against(found.memory_bytes, chip) if chip else "")),
        ("moved", f"at least {in_words(found.least_moved_bytes)} per chip and step, to and from its memory"),
    ]
    if found.accessed_bytes:
        size = in_words(found.accessed_bytes)
        lines.append(("accessed", f"{size}, on-chip and off-chip; the body of a loop counts once"))
    for kind, (number, size) in found.collectives.items():
        lines.append((kind, f"{number}, {in_words(size)}"))
    if not found.collectives:
        lines.append(("collectives", "none"))
    if chip:
        work, traffic = found.flops_per_image * images / chip.flops, found.least_moved_bytes / chip.bandwidth
        bound = "arithmetic" if work > traffic else "bandwidth"
        lines.append(
            (
                "step time",
                f"at least {max(work, traffic) * 1e3:.2f} ms, by {bound}: {work * 1e3:.2f} ms of arithmetic, "
                f"{traffic * 1e3:.2f} ms of traffic, communication not counted",
            )
        )
    if found.cycles:
        lines.append(
            ("cycles", f"{found.cycles / 1e6:,.1f} M per step, sum over all operations, estimated by the compiler")
        )
    lines.append(("compiled", f"in {found.seconds:.1f} s"))
    return [f"{name:<19} {value}" for name, value in lines]


def _against(count: int | float, chip: Chip) -> str:
    verdict = "fits" if count <= chip.memory else f"too much by {in_words(count - chip.memory)}"
    return f" of {in_words(chip.memory)}: {verdict}"


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number for which `fits` is true, to within an eighth; 0 if 1 does not fit."""
    number = 1
    while fits(number):
        number *= 2
    low, high = number // 2, number
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def data_like(config: Config, classes: int) -> DataInfo:
    """Assumed properties of the data: the image size is --data.image-size, otherwise that of the preset.

    Raises UserError if the model cannot be built.
    """
    arguments = parse_arguments("--model-args", config.model_args)
    try:
        network = make_network(config.model, **arguments, num_classes=classes)
    except (ArithmeticError, MemoryError, TypeError, ValueError) as error:
        raise UserError(f"--model {model_name(config.model)}: {error}") from error
    size = config.data.image_size or getattr(network, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        if not accepts(Side, side):
            raise UserError(f"--model-args image_size={shortened(size)}: a side must be {expected(Side)}")
    return DataInfo(tuple(map(str, range(classes))), (height, width, 3), (0.5,) * 3, (0.25,) * 3)


def show_plan(config: Config, topology: str, classes: int, *, largest_batch: bool) -> None:
    """Print the plan of a run on `topology`, or the largest batch that fits there."""
    if config.distill.teacher is not None:
        raise UserError("a plan includes no teacher: leave out --distill.teacher and the options that need it")
    config = with_published(dataclasses.replace(config, workdir=None))  # no workdir is written
    validate(config)
    devices, chip = open_topology(topology)
    mesh = make_mesh(config.mesh, devices)
    config = with_length(dataclasses.replace(config, workdir=None), None, mesh)
    info = data_like(config, classes)
    height, width, _ = info.image_shape
    print(f"{'model':<19} {' '.join((model_name(config.model), *config.model_args))}, {height}x{width} pixels")
    print(f"{'devices':<19} {mesh.size} x {devices[0].device_kind}, mesh {dict(mesh.shape)}, {config.dtype}")
    if largest_batch:
        sweep(config, info, mesh, chip)
        return
    print(f"{'batch':<19} {config.batch_size} images; compiling ...", flush=True)
    try:
        print("\n".join(report(plan(config, info, mesh), config, mesh, chip)))
    except TooLarge as error:
        print(f"{'memory':<19} does not fit: {error}")


def sweep(config: Config, info: DataInfo, mesh: Mesh, chip: Chip | None) -> None:
    """Print the memory of batches of increasing size, and the largest that fits."""
    if chip is None:
        raise UserError("--sweep needs a topology whose memory is known, such as v5e:2x4")
    least = mesh.shape["data"] * mesh.shape["fsdp"] * config.optim.accumulate

    def fits(share: int) -> bool:
        batch = dataclasses.replace(config, batch_size=share * least)
        try:
            found = plan(batch, info, mesh)
        except TooLarge as error:
            print(f"{share * least:>8} images  does not fit: {error}", flush=True)
            return False
        verdict = found.memory_bytes <= chip.memory
        print(
            f"{share * least:>8} images  {in_words(found.memory_bytes)}, compiled in {found.seconds:.0f} s", flush=True
        )
        return verdict

    most = largest(fits) * least
    print(f"{'largest batch':<19} {most} images, {most // mesh.size} per chip" if most else "no batch fits")
