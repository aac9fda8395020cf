"""How long a TPU's compiler takes for equal blocks in a loop, against the same blocks one after the other.

    pip install '.[train,tpu]'
    python benchmarks/scan_compile.py

What is compiled is value and gradients of a stack of transformer blocks in bfloat16, ahead of time, for a topology that
need not be there. Both forms take turns. The compiler translates equal operations once, so that the loop saves what
depends on the depth alone; and single operations may take it half a minute, in either form.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parent.parent))

from train.config import UserError
from train.plan import open_topology
from train.sharding import batch_sharding, make_mesh, replicated
from train.step import cast
from vit_jax.layers import Transformer
from vit_jax.layers.execution import execution

WIDTHS = {"ti16": 192, "s16": 384, "b16": 768}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled, and how often."""

    sizes: tuple[str, ...] = tuple(WIDTHS)
    """ViTs whose blocks are compiled."""
    depths: tuple[int, ...] = (12, 24)
    """Numbers of blocks."""
    tokens: int = 197
    """Tokens of an image."""
    batch_size: int = 256
    """Images over all chips."""
    repeats: int = 3
    """How often each form is compiled; medians are told."""
    topology: str = "v5e:2x4"
    """TPU topology."""
    json: Path | None = None
    """File to write the table to as well."""


def main(options: Options) -> None:
    """Print a line per stack: seconds in a loop, unrolled, their ratio, and what both need for activations."""
    devices, _ = open_topology(options.topology)
    mesh = make_mesh(devices=devices)
    print(f"jax {jax.__version__}, {mesh.size} x {devices[0].device_kind}, bfloat16, {options.batch_size} images")
    rows = []
    for depth in options.depths:
        for size in options.sizes:
            forms = {True: [], False: []}
            for _ in range(options.repeats):
                for scan, found in forms.items():
                    found.append(compiled(WIDTHS[size], depth, scan, mesh, options))
            seconds = {scan: statistics.median(s for s, _ in found) for scan, found in forms.items()}
            loop, unrolled = seconds[True], seconds[False]
            row = {
                "blocks": size,
                "depth": depth,
                "loop_seconds": round(loop, 2),
                "unrolled_seconds": round(unrolled, 2),
                "ratio": round(loop / unrolled, 3),
                "loop_mib": round(forms[True][0][1] / 2**20),
                "unrolled_mib": round(forms[False][0][1] / 2**20),
            }
            rows.append(row)
            print(
                f"{depth} blocks of {size:<5} loop {loop:6.1f} s, unrolled {unrolled:6.1f} s: {row['ratio']:.2f}; "
                f"{row['loop_mib']:,} MiB a chip against {row['unrolled_mib']:,}",
                flush=True,
            )
            if options.json:
                head = {"jax": jax.__version__, **dataclasses.asdict(options), "json": None}
                options.json.write_text(json.dumps({"options": head, "stacks": rows}, indent=2) + "\n")


def compiled(width: int, depth: int, scan: bool, mesh: Mesh, options: Options) -> tuple[float, int]:
    """Seconds to compile a stack of blocks, and bytes that a chip needs besides arguments and results."""
    blocks = Transformer(dim=width, depth=depth, heads=width // 64, dim_head=64, mlp_dim=4 * width)
    one = jax.ShapeDtypeStruct((1, options.tokens, width), jnp.float32)
    params = jax.eval_shape(blocks.init, jax.random.key(0), one)["params"]
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=replicated(mesh)), params)
    shape = (options.batch_size, options.tokens, width)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=batch_sharding(mesh))

    def value_and_gradients(params, x, cotangent):
        with execution(scan=scan, device="tpu"):
            value, gradients = jax.vjp(lambda p, x: blocks.apply({"params": cast(p, "bfloat16")}, x), params, x)
        return value, gradients(cotangent)

    lowered = jax.jit(value_and_gradients).lower(params, x, x)
    since = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    return time.perf_counter() - since, memory.temp_size_in_bytes


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except UserError as mistake:
        sys.exit(f"scan_compile.py: {mistake}")
