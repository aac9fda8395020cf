"""Measure how long a TPU compiler takes for equal blocks as a loop, unrolled, and for a single block.

    pip install '.[train,tpu]'
    python benchmarks/scan_compile.py

It compiles value and gradients of a stack of transformer blocks in bfloat16, ahead of time, for a topology that need
not exist. The three forms take turns. The compiler translates equal operations only once, so a loop saves less than
the number of blocks suggests, and a single operation can take half a minute in any form. The compiler's estimates of
the programs are printed too: memory, and the sum of the cycles of all operations.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parent.parent))

from train.errors import UserError
from train.hlo import cycles
from train.sharding import batch_sharding, make_mesh, replicated
from train.step import cast
from train.topology import open_topology
from vit_jax.layers.execution import execution
from vit_jax.models.vit import Transformer

WIDTHS = {"ti16": 192, "s16": 384, "b16": 768}


@dataclasses.dataclass(frozen=True)
class Options:
    """Models to compile, and repetitions."""

    sizes: tuple[str, ...] = tuple(WIDTHS)
    """Sizes of ViT whose blocks are compiled."""
    depths: tuple[int, ...] = (12, 24)
    """Numbers of blocks."""
    tokens: int = 197
    """Tokens per image."""
    batch_size: int = 256
    """Images over all chips."""
    repeats: int = 3
    """Number of times that each form is compiled; medians are reported."""
    topology: str = "v5e:2x4"
    """TPU topology."""
    json: Path | None = None
    """File that the table is also written to."""


class Compiled(NamedTuple):
    """Compile time, and the compiler's estimates: memory of temporaries, and millions of cycles."""

    seconds: float
    mib: float
    mcycles: float


def main(options: Options) -> None:
    """Print a line per stack: seconds to compile a loop and unrolled blocks, their ratio, memory and cycles."""
    devices, _ = open_topology(options.topology)
    mesh = make_mesh(devices=devices)
    print(f"jax {jax.__version__}, {mesh.size} x {devices[0].device_kind}, bfloat16, {options.batch_size} images")
    rows = []
    for depth in options.depths:
        for size in options.sizes:
            forms = {"loop": (depth, True), "unrolled": (depth, False), "one": (1, False)}
            found = {form: [] for form in forms}
            for _ in range(options.repeats):
                for form, (blocks, scan) in forms.items():
                    found[form].append(compiled(WIDTHS[size], blocks, scan, mesh, options))
            median = {
                form: Compiled(*map(statistics.median, zip(*several, strict=True))) for form, several in found.items()
            }
            loop, unrolled, one = median.values()
            row = {"blocks": size, "depth": depth, "ratio": round(loop.seconds / unrolled.seconds, 3)}
            row |= {form: {name: round(value, 2) for name, value in m._asdict().items()} for form, m in median.items()}
            rows.append(row)
            print(
                f"{depth} blocks of {size:<5} loop {loop.seconds:.1f} s, unrolled {unrolled.seconds:.1f} s: "
                f"{row['ratio']:.2f}; one block {one.seconds:.1f} s; {loop.mib:,.0f} MiB a chip against "
                f"{unrolled.mib:,.0f}; {loop.mcycles:.1f} M cycles against {unrolled.mcycles:.1f}",
                flush=True,
            )
            if options.json:
                head = {"jax": jax.__version__, **dataclasses.asdict(options), "json": None}
                options.json.write_text(json.dumps({"options": head, "stacks": rows}, indent=2) + "\n")


def compiled(width: int, depth: int, scan: bool, mesh: Mesh, options: Options) -> Compiled:
    """Compile value and gradients of `depth` blocks."""
    blocks = Transformer(dim=width, depth=depth, heads=width // 64, dim_head=64, mlp_dim=4 * width)
    one = jax.ShapeDtypeStruct((1, options.tokens, width), jnp.float32)
    params = jax.eval_shape(blocks.init, jax.random.key(0), one)["params"]
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=replicated(mesh)), params)
    shape = (options.batch_size, options.tokens, width)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=batch_sharding(mesh))

    def value_and_gradients(params, x, cotangent):
        with execution(scan=scan, platform="tpu", batch=batch_sharding(mesh)):
            value, gradients = jax.vjp(lambda p, x: blocks.apply({"params": cast(p, "bfloat16")}, x), params, x)
        return value, gradients(cotangent)

    lowered = jax.jit(value_and_gradients).lower(params, x, x)
    since = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - since
    return Compiled(seconds, program.memory_analysis().temp_size_in_bytes / 2**20, cycles(program.as_text()) / 1e6)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except UserError as mistake:
        sys.exit(f"scan_compile.py: {mistake}")
