"""A process of `tpu_zoo.py`: compiles models of the `vit_jax` in the folder that PYTHONPATH names."""

import json
import os
import sys
from pathlib import Path

import vit_jax  # before the folder of this checkout is searched

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp

from benchmarks.tpu_cycles import Options, compile_step, cycles_by_name
from train.commandline.arguments import parse_arguments
from train.topology import open_topology


def work() -> None:
    """Answer requests from stdin, each a line of JSON, until it is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with the answers
    devices, _ = open_topology(Options.topology)
    for request in map(json.loads, sys.stdin):
        try:
            answer = measured(devices, **request)
        except Exception as error:  # if one model fails, the others are still compiled
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


def measured(devices: list[jax.Device], model: str, images: int) -> dict:
    """The cycles of value and gradients of a model that is trained, in all and by operation, and its temporaries."""
    name, *arguments = model.split()
    network = vit_jax.create_model(name, num_classes=1000, **parse_arguments("--models", tuple(arguments)))
    key = jax.random.key(0)
    pixels = network.image_size

    def init():
        return network.init(key, jnp.zeros((1, pixels, pixels, 3)))

    def apply(variables, x):
        half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), variables["params"])
        outputs, _ = network.apply(
            variables | {"params": half}, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return jax.tree.leaves(outputs)[0]

    compiled = compile_step(init, apply, Options(pixels=pixels, images=images), devices)
    operations = cycles_by_name(compiled.as_text())
    return {
        "cycles": operations.total(),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "operations": operations,
    }


if __name__ == "__main__":
    work()
