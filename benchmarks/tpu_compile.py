"""Compile every model's train step for a TPU v5e, on a machine that has none.

    pip install '.[train,tpu]'
    python benchmarks/tpu_compile.py                                       # the tiny preset of every classifier
    python benchmarks/tpu_compile.py --models vit/b16 --image-size 224     # any model and preset

The step is the trainer's own: augmentation, bfloat16, gradients, AdamW, over a mesh of four chips. Memory and FLOPs are
the compiler's. Ends with status 1 when a model does not compile.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # parameters are abstract; nothing runs on a TPU
os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")  # libtpu would ask a cloud host for them

import jax
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parent.parent))

from train.build import DataInfo, build_objective
from train.config import Augment, Config, UserError
from train.loop import abstract_batch, init_inputs, prepare_training, with_sharding
from train.optim import make_optimizer
from train.sharding import replicated
from train.step import init_state, make_train_step
from vit_jax import list_models, list_presets


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled, and for what."""

    models: tuple[str, ...] = ()
    """NAME or NAME/PRESET each; default: the tiny preset of every classifier."""
    image_size: int = 32
    """Height and width in pixels."""
    batch_size: int = 32
    """Images per step, over all chips."""
    topology: str = "v5e:2x2"
    """TPU topology."""
    json: Path | None = None
    """File to write the table to as well."""


def main(options: Options) -> int:
    """Print a line per model: seconds to compile, FLOPs and memory of a step on one chip. Returns the exit status."""
    devices = topologies.get_topology_desc(options.topology, platform="tpu").devices
    mesh = Mesh(np.reshape(devices, (-1, 1)), ("data", "model"))
    models = options.models or [name for name in list_models() if "tiny" in list_presets(name)]
    print(f"jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}, bfloat16, batch {options.batch_size}")
    rows, failed = {}, []
    for model in models:
        try:
            rows[model] = compile_step(model, options, mesh)
        except UserError:
            raise
        except Exception as error:  # whatever the compiler objects to, the other models are wanted too
            failed.append(model)
            print(f"{model:44} FAILED: {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
        else:
            seconds, gigaflops, megabytes = rows[model].values()
            print(f"{model:44} {seconds:6.1f} s {gigaflops:10.3f} GFLOP {megabytes:8.1f} MB", flush=True)
    if options.json:
        head = {"jax": jax.__version__, **dataclasses.asdict(options), "json": None}
        options.json.write_text(json.dumps({"options": head, "models": rows}, indent=2) + "\n")
    print(f"{len(rows)} compiled" + (f", {len(failed)} failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def compile_step(model: str, options: Options, mesh: Mesh) -> dict[str, float]:
    """Seconds that the compiler takes, and a chip's GFLOP and MB in one train step."""
    side = options.image_size
    info = DataInfo(tuple(map(str, range(1000))), (side, side, 3), (0.5,) * 3, (0.25,) * 3)
    augmentation = Augment(crop_padding=4, flip=True, mixup=0.2)
    config = Config(model=model, batch_size=options.batch_size, dtype="bfloat16", augment=augmentation)
    objective = build_objective(config, info)
    inputs = init_inputs(config, info)
    optimizer = make_optimizer(config.optim, lambda step: 1e-3, jax.eval_shape(objective.init, *inputs)[0])
    new_state = lambda key, images: init_state(objective, optimizer, key, images, ema=False)
    state = with_sharding(jax.eval_shape(new_state, *inputs), mesh)
    step = jax.jit(
        make_train_step(objective, optimizer, prepare_training(config, info), seed=0, dtype=config.dtype),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)),
    )
    since = time.perf_counter()
    compiled = step.lower(state, abstract_batch(config, info, mesh), {}).compile()
    memory = compiled.memory_analysis()
    return {
        "seconds": time.perf_counter() - since,
        "gigaflops": compiled.cost_analysis()["flops"] / 1e9,
        "megabytes": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20,
    }


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except UserError as mistake:
        sys.exit(f"tpu_compile.py: {mistake}")
