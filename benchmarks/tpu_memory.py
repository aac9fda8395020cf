"""Memory of a whole training step on a TPU v5e by the size of the images, with attention maps stored and not stored.

    pip install '.[train,tpu]'
    python benchmarks/tpu_memory.py                                         # ViT-B/16 at 512, 1024 and 2048 pixels

No TPU is needed. The step is the trainer's own, with augmentation, bfloat16 and AdamW, for one image per chip.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from train.config import Config, Data
from train.planning import TooLarge, data_like, plan
from train.sharding import make_mesh
from train.topology import open_topology


@dataclasses.dataclass(frozen=True)
class Options:
    """The model, the images and the chips."""

    model: str = "vit/b16"
    """Model and preset, with patches of 16 pixels."""
    pixels: tuple[int, ...] = (512, 1024, 2048)
    """Heights and widths of images."""
    attention: tuple[str, ...] = ("plain", "fused")
    """Forms of attention, as for the trainer's option."""
    topology: str = "v5e:2x4"
    """Chips to compile for; each has one image."""
    json: Path | None = None
    """File that the results are also written to."""


def main(options: Options) -> None:
    """Print a line per size and form: temporaries, and all memory of a chip with the state."""
    devices, chip = open_topology(options.topology)
    mesh = make_mesh(devices=devices)
    rows = []
    for pixels in options.pixels:
        for attention in options.attention:
            data = Data(name="tfds:imagenet2012", image_size=(pixels, pixels))
            config = Config(model=options.model, data=data, batch_size=mesh.size, dtype="bfloat16", attention=attention)
            row = {"pixels": pixels, "tokens": (pixels // 16) ** 2 + 1, "attention": attention}
            try:
                found = plan(config, data_like(config, 1000), mesh)
                sizes = {"temporary_bytes": found.temporary_bytes, "memory_bytes": found.memory_bytes}
                row |= sizes | {"fits": found.memory_bytes <= chip.memory, "cycles": found.cycles}
                note = f"{found.temporary_bytes / 2**30:7.2f} GiB of temporaries, {found.memory_bytes / 2**30:.2f} GiB"
            except TooLarge as error:
                row |= {"fits": False, "error": str(error)}
                note = f"does not fit: {error}"
            print(f"{pixels:5} pixels, {attention:5} {note}", flush=True)
            rows.append(row)
    if options.json:
        given = dataclasses.asdict(options) | {"json": None, "jax": jax.__version__}
        options.json.write_text(json.dumps({"options": given, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
