"""Compile every model's train step for a TPU v5e, on a machine that has none.

    pip install '.[train,tpu]'
    python benchmarks/tpu_compile.py                                       # the tiny preset of every image classifier
    python benchmarks/tpu_compile.py --models vit/b16 --image-size 224     # any model and preset

The step is the trainer's own: augmentation, bfloat16, gradients, AdamW, over all chips of the topology. Memory is the
compiler's; `python -m train.plan` says more of a single model. Ends with status 1 when a model does not compile.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from train.build import DataInfo
from train.config import Augment, Config, UserError
from train.plan import open_topology, plan
from train.sharding import make_mesh
from vit_jax import list_models, list_presets
from vit_jax.registry import model_arguments


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled, and for what."""

    models: tuple[str, ...] = ()
    """NAME or NAME/PRESET each; default: the tiny preset of every image classifier."""
    image_size: int = 32
    """Height and width in pixels."""
    batch_size: int = 32
    """Images per step, over all chips."""
    topology: str = "v5e:2x4"
    """TPU topology."""
    json: Path | None = None
    """File to write the table to as well."""


def main(options: Options) -> int:
    """Print a line per model: seconds to compile, FLOPs of an image and memory of a chip. Returns the exit status."""
    devices, _ = open_topology(options.topology)
    mesh, side = make_mesh(devices=devices), options.image_size
    info = DataInfo(tuple(map(str, range(1000))), (side, side, 3), (0.5,) * 3, (0.25,) * 3)
    print(f"jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}, bfloat16, batch {options.batch_size}")
    rows, failed = {}, []
    for model in options.models or image_classifiers():
        config = Config(
            model=model,
            batch_size=options.batch_size,
            dtype="bfloat16",
            augment=Augment(crop_padding=4, flip=True, mixup=0.2),
        )
        try:
            found = plan(config, info, mesh)
        except UserError:
            raise
        except Exception as error:  # whatever the compiler objects to, the other models are wanted too
            failed.append(model)
            print(f"{model:44} FAILED: {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
            continue
        row = {
            "seconds": found.seconds,
            "gigaflops_per_image": found.flops_per_image / 1e9,
            "megabytes": found.memory_bytes / 2**20,
        }
        rows[model] = {name: round(value, 3) for name, value in row.items()}
        print("{:44} {:6.1f} s {:10.3f} GFLOP {:8.1f} MB".format(model, *rows[model].values()), flush=True)
        if options.json:
            head = {"jax": jax.__version__, **dataclasses.asdict(options), "json": None}
            options.json.write_text(json.dumps({"options": head, "models": rows}, indent=2) + "\n")
    print(f"{len(rows)} compiled" + (f", {len(failed)} failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def image_classifiers() -> list[str]:
    """Models with a tiny preset that take images and tell classes."""
    needed = {"image_size", "num_classes"}
    moving = {"frames", "num_frames", "max_frames"}
    fits = lambda name: needed <= set(model_arguments(name)) and not moving & set(model_arguments(name))
    return [name for name in list_models() if "tiny" in list_presets(name) and fits(name)]


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except UserError as mistake:
        sys.exit(f"tpu_compile.py: {mistake}")
