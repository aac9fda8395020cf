"""Compile a training step of every model for a TPU v5e, on a machine without TPUs.

    pip install '.[train,tpu]'
    python benchmarks/tpu_compile.py                                       # every model of the registry
    python benchmarks/tpu_compile.py --models vit/b16 --image-size 224     # any image classifier and preset

Of image classifiers, the tiny preset is compiled in the trainer's own step: augmentation, bfloat16, gradients and
AdamW, over all chips of the topology. Models with other inputs (videos, series, actions) and parts of models are
compiled at the size of their first row in tests/cases, in a bare step: gradients of the mean square of the outputs in
bfloat16, and AdamW. The compiler reports the memory; `python -m train.plan` prints more about a single model. The exit
status is 1 if a model does not compile.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.cases import FIRST
from tests.cases.case import Case, build
from train.build import DataInfo
from train.config import Augment, Config
from train.errors import UserError
from train.planning import plan
from train.sharding import batch_sharding, make_mesh, replicated
from train.topology import open_topology
from vit_jax import list_models, list_presets
from vit_jax.layers.execution import execution
from vit_jax.registry import model_arguments


@dataclasses.dataclass(frozen=True)
class Options:
    """Models to compile, and the topology."""

    models: tuple[str, ...] = ()
    """Image classifiers, as NAME or NAME/PRESET; default: all models, image classifiers as their tiny preset."""
    image_size: int = 32
    """Height and width in pixels."""
    batch_size: int = 32
    """Images per step, over all chips."""
    topology: str = "v5e:2x4"
    """TPU topology."""
    json: Path | None = None
    """File that the table is also written to."""


def main(options: Options) -> int:
    """Print a line per model: compile time, FLOPs per example and memory per chip. Returns the exit status."""
    devices, _ = open_topology(options.topology)
    mesh = make_mesh(devices=devices)
    print(f"jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}, bfloat16, batch {options.batch_size}")
    rows, failed = {}, []
    for model in options.models or every_model():
        try:
            row = bare_step(FIRST[model], mesh) if model in FIRST else trainers_step(model, mesh, options)
        except UserError:
            raise
        except Exception as error:  # if one model fails, the others are still compiled
            failed.append(model)
            print(f"{model:44} FAILED: {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
            continue
        rows[model] = {name: value if name == "step" else round(value, 4) for name, value in row.items()}
        print("{:32} {:>8} {:6.1f} s {:10.3f} GFLOP {:8.1f} MB".format(model, *rows[model].values()), flush=True)
        if options.json:
            head = {"jax": jax.__version__, **dataclasses.asdict(options), "json": None}
            options.json.write_text(json.dumps({"options": head, "models": rows}, indent=2) + "\n")
    print(f"{len(rows)} compiled" + (f", {len(failed)} failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def every_model() -> list[str]:
    """NAME/tiny of models that the trainer supports, NAME of all others."""
    return [f"{name}/tiny" if takes_images(name) else name for name in list_models()]


def takes_images(name: str) -> bool:
    """Whether a model has a tiny preset, takes single images and is a classifier."""
    arguments = set(model_arguments(name))
    moving = {"frames", "num_frames", "max_frames"}
    return "tiny" in list_presets(name) and {"image_size", "num_classes"} <= arguments and not moving & arguments


def trainers_step(model: str, mesh: Mesh, options: Options) -> dict[str, str | float]:
    """A row of the table, for the trainer's own step."""
    side = options.image_size
    info = DataInfo(tuple(map(str, range(1000))), (side, side, 3), (0.5,) * 3, (0.25,) * 3)
    augment = Augment(crop_padding=4, flip=True, mixup=0.2)
    found = plan(Config(model=model, batch_size=options.batch_size, dtype="bfloat16", augment=augment), info, mesh)
    return {
        "step": "trainer",
        "seconds": found.seconds,
        "gigaflops": found.flops_per_image / 1e9,
        "megabytes": found.memory_bytes / 2**20,
    }


def bare_step(case: Case, mesh: Mesh) -> dict[str, str | float]:
    """A row of the table, for a step of gradients and AdamW only, with one example per chip if inputs are batches."""
    model, (x, keywords) = build(case), case.inputs(np.random.default_rng(0))
    optimizer, batch = optax.adamw(1e-3), 2
    divided = None if case.takes_list else batch_sharding(mesh)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), x, **keywords))
    params = variables.pop("params")

    def half(tree):
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, tree)

    def step(params, state, others, x, keywords):
        def loss(params):
            with execution(platform="tpu", batch=divided):
                outputs = model.apply({**others, "params": half(params)}, half(x), **half(keywords))
            return sum(jnp.square(out.astype(jnp.float32)).mean() for out in jax.tree.leaves(outputs))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def place(leaf):
        """An abstract leaf: on every chip, or if it is a batch, one example on each."""
        shared = divided is not None and leaf.ndim > 0 and leaf.shape[0] == batch
        shape = (mesh.size, *leaf.shape[1:]) if shared else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=divided if shared else everywhere)

    everywhere = replicated(mesh)
    held, inputs = (params, jax.eval_shape(optimizer.init, params), variables), jax.tree.map(np.asarray, (x, keywords))
    flops = jax.jit(step).lower(*held, *inputs).cost_analysis()["flops"]  # for the CPU: for TPUs there are none
    held = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), held)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*held, *jax.tree.map(place, inputs))
    since = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    held_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "step": "bare",
        "seconds": time.perf_counter() - since,
        "gigaflops": flops / batch / 1e9,
        "megabytes": (held_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes) / 2**20,
    }


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except UserError as mistake:
        sys.exit(f"tpu_compile.py: {mistake}")
