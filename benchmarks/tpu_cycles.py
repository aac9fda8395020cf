"""Cycles of a training step on a TPU v5e, as its compiler estimates them, of our ViT and of big_vision's.

    pip install '.[train,tpu]'
    git clone https://github.com/google-research/big_vision
    python benchmarks/tpu_cycles.py --big-vision big_vision                        # ViT-S/16, 224 pixels
    python benchmarks/tpu_cycles.py --big-vision big_vision --width 192 --pixels 512 --images 8
    python benchmarks/tpu_cycles.py --parts                                        # what a block costs

No TPU is needed. A step is the value and the gradient of the cross-entropy in bfloat16, with float32 parameters and the
batch divided among all chips. Compiling takes one to three minutes for each. Attention of many tokens is computed by
blocks of queries here, because the compiler has no estimate for a Pallas kernel.
"""

import collections
import contextlib
import dataclasses
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask the network for the machine's TPUs
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled

from benchmarks.big_vision_models import import_vit
from train import hlo
from train.topology import open_topology
from vit_jax import create_model
from vit_jax.layers.execution import execution

CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """The network, the batch and the chips."""

    big_vision: Path | None = None
    """Checkout of big_vision, to compare with."""
    depth: int = 12
    """Number of blocks."""
    width: int = 384
    """Width of a token; heads are 64 wide."""
    pixels: int = 224
    """Height and width of an image; patches have 16."""
    images: int = 32
    """Images per chip."""
    parts: bool = False
    """Also tell what a block costs, from networks of one and of three blocks."""
    topology: str = "v5e:2x4"
    """Chips to compile for."""
    operations: int = 12
    """Number of operations to print, those that cost most."""
    json: Path | None = None
    """File that the results are also written to."""


def main(options: Options) -> None:
    """Compile both steps, and print their cycles, memory and most expensive operations."""
    devices, _ = open_topology(options.topology)
    networks = {"vit-jax": ours} | ({"big_vision": theirs} if options.big_vision else {})
    results = {}
    for name, network in networks.items():
        compiled = compile_step(*network(options), options, devices)
        memory, text = compiled.memory_analysis(), compiled.as_text()
        results[name] = {
            "cycles": hlo.cycles(text),
            "temporary_bytes": memory.temp_size_in_bytes,
            "accessed_bytes": compiled.cost_analysis()["bytes accessed"],
        }
        print(
            f"{name}: {results[name]['cycles'] / 1e6:.2f} million cycles, "
            f"{memory.temp_size_in_bytes / 2**30:.2f} GiB of temporaries, "
            f"{results[name]['accessed_bytes'] / 2**30:.1f} GiB accessed",
            flush=True,
        )
        named = cycles_by_name(text)
        for operation, cycles in named.most_common(options.operations):
            print(f"  {cycles / 1e6:7.3f}  {operation}")
        if options.parts:
            results[name] |= cycles_of_parts(network, options, devices)
            results[name]["embedding_cycles"] = sum(
                named[each] for each in named if "embed" in each or each == "images"
            )
            print(
                "  a block {block_cycles:,}, all but the blocks {other_cycles:,}, of which the embedding of patches "
                "{embedding_cycles:,}".format(**results[name])
            )
    if options.big_vision:
        ratio = results["vit-jax"]["cycles"] / results["big_vision"]["cycles"]
        print(f"vit-jax takes {ratio:.3f} times big_vision's cycles")
    if options.json:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        given |= {"json": None, "big_vision": None, "jax": jax.__version__}
        options.json.write_text(json.dumps({"options": given, "results": results}, indent=2) + "\n")


def ours(options: Options) -> tuple[Callable, Callable]:
    """Functions to initialise our network, and to apply it."""
    width, size = options.width, options.pixels
    model = create_model(
        "vit",
        image_size=size,
        patch_size=16,
        num_classes=CLASSES,
        dim=width,
        depth=options.depth,
        heads=width // 64,
        mlp_dim=4 * width,
    )

    cast = lambda variables: jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return init, lambda variables, images: model.apply(cast(variables), images)


def theirs(options: Options) -> tuple[Callable, Callable]:
    """The same functions of big_vision's network."""
    width, size = options.width, options.pixels
    model = import_vit(options.big_vision).Model(
        CLASSES,
        width=width,
        depth=options.depth,
        mlp_dim=4 * width,
        num_heads=width // 64,
        patch_size=(16, 16),
        pool_type="tok",
        dtype_mm="bfloat16",
    )
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return init, lambda variables, images: model.apply(variables, images)[0]


def compile_step(init: Callable, apply: Callable, options: Options, devices: list[jax.Device]) -> Compiled:
    """Compile the value and the gradient of the loss, for a batch that all `devices` share."""
    mesh = Mesh(np.array(devices), ("data",))
    replicated, divided = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    batch = options.images * len(devices)
    images = jax.ShapeDtypeStruct((batch, options.pixels, options.pixels, 3), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def step(variables, images, labels):
        def loss(variables):
            logits = apply(variables, images).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.value_and_grad(loss)(variables)

    jitted = jax.jit(step, in_shardings=(replicated, divided, divided), out_shardings=(replicated, replicated))
    with on_tpus(divided):
        return jitted.lower(jax.eval_shape(init), images, labels).compile()


@contextlib.contextmanager
def on_tpus(batch: NamedSharding) -> Iterator[None]:
    """The trainer's settings, but without its Pallas kernel."""
    if "batch" not in inspect.signature(execution).parameters:  # of an older commit without a kernel, in tpu_zoo.py
        with execution(platform="tpu"):
            yield
        return
    no_kernel = mock.patch("vit_jax.layers.attention_forms.kernel_for", return_value=None)
    with execution(platform="tpu", batch=batch), no_kernel:
        yield


def cycles_of_parts(network: Callable, options: Options, devices: list[jax.Device]) -> dict[str, int]:
    """The cycles that a block adds to a network, and those of all but the blocks."""
    one, three = (
        hlo.cycles(compile_step(*network(dataclasses.replace(options, depth=depth)), options, devices).as_text())
        for depth in (1, 3)
    )
    block = (three - one) // 2
    return {"block_cycles": block, "other_cycles": one - block}


def cycles_by_name(text: str) -> collections.Counter[str]:
    """The cycles of all operations by their names; those of all blocks are added."""
    cycles = collections.Counter()
    for times, line in hlo.instructions(text):
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
            named = re.search(r'op_name="([^"]*)"', line)
            name = named[1] if named else line.strip().partition(" = ")[0]
            cycles[re.sub(r"\d+", "#", name)] += times * int(estimate[1])
    return cycles


if __name__ == "__main__":
    main(tyro.cli(Options))
