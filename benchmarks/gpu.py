"""Images per second on one GPU: forward passes and training steps of vit-jax, timm (compiled) and big_vision.

    bash benchmarks/gpu.sh             # installs what this needs, and runs it

Each library runs in its own process. Those of a network compile at the same time and are then timed in turns. A step is
forward, backward and AdamW in bfloat16, with float32 parameters, on images that are already on the device. MFU is the
share of the GPU's published bfloat16 FLOP/s. The published speed of ViT-5-S is 8,003 images a second.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
CLASSES = 1000
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05


@dataclasses.dataclass(frozen=True)
class Network:
    """A network by its name in each library, the number of images per step, and the forward FLOPs of an image."""

    ours: str
    timm: str | None
    big_vision: str | None
    batch: int
    flops: float


# FLOPs are twice the multiplications of the matrix products.
NETWORKS = {
    "S/16": Network("timm/vit_small_patch16_224", "vit_small_patch16_224", "S/16", 512, 9.2e9),
    "B/16": Network("timm/vit_base_patch16_224", "vit_base_patch16_224", "B/16", 256, 35.1e9),
    "ViT-5-S": Network("vit_5/small", None, None, 512, 9.4e9),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Networks, libraries and length of the measurement."""

    big_vision: Path | None = None
    """Checkout of big_vision; default: it is left out."""
    torch_python: str = sys.executable
    """Python interpreter with torch and timm."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Networks to measure."""
    batch: int | None = None
    """Images per step; default: that of each network."""
    rounds: int = 5
    """Timed blocks of each library."""
    seconds: float = 2.0
    """Length of a block."""
    platform: Literal["cuda", "cpu"] = "cuda"
    """Device; the CPU only shows that the script works."""
    json: Path | None = None
    """File that the results are also written to."""


def main(options: Options) -> None:
    """Measure all networks, and print a table."""
    results = {name: measure(name, options) for name in options.networks}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(name: str, options: Options) -> dict:
    """Images per second of each library for one network: medians of blocks that alternate."""
    network = NETWORKS[name]
    has = {"vit-jax": True, "timm": network.timm, "big_vision": network.big_vision and options.big_vision}
    workers = {side: Worker(side, name, options) for side in has if has[side]}
    print(f"{name}: compiling in {', '.join(workers)} ...", flush=True)
    described = {side: worker.answer() for side, worker in workers.items()}
    result = {"device": described["vit-jax"]["device"], "versions": {s: d["version"] for s, d in described.items()}}
    for what, passes in (("forward", 1), ("train", 3)):
        blocks = {side: [] for side in workers}
        for _ in range(options.rounds):
            for side, worker in workers.items():
                blocks[side].append(worker.call(what, options.seconds))
        speeds = {side: statistics.median(numbers) for side, numbers in blocks.items()}
        result[what] = speeds
        for side, speed in speeds.items():
            share = mfu(speed * passes * network.flops, result["device"])
            ratio = speeds["vit-jax"] / speed
            print(f"  {what:8}{side:12}{speed:10,.0f} images/s{share:>12}   vit-jax / {side} {ratio:.2f}", flush=True)
    for worker in workers.values():
        worker.stop()
    return result


def mfu(flops: float, device: str) -> str:
    """FLOP/s as a share of what a GPU of this name can do, if that is known."""
    sys.path.insert(0, str(ROOT))
    from train.topology import GPUS

    peak = next((chip.flops for kind, chip in GPUS.items() if kind.upper() in device), None)
    return f"MFU {flops / peak:.1%}" if peak else ""


class Worker:
    """A process with one library and one network. It answers a line of JSON for each line that it is given."""

    def __init__(self, side: str, name: str, options: Options):
        python = options.torch_python if side == "timm" else sys.executable
        given = [side, name, str(options.batch or NETWORKS[name].batch), options.platform, str(options.big_vision)]
        # The libraries share the memory of the GPU.
        env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_PLATFORMS": options.platform}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([python, __file__, "--worker", *given], env=env, **pipes)

    def answer(self):
        """Wait for the next answer."""
        while line := self.process.stdout.readline():
            if line.startswith("{"):  # anything else is output of the library
                return json.loads(line)["answer"]
        raise SystemExit("gpu.py: a worker stopped; its error is above")

    def call(self, what: str, seconds: float) -> float:
        """Images per second of `what`, over about `seconds`."""
        self.process.stdin.write(f"{what} {seconds}\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End the process, which frees its memory."""
        self.process.stdin.close()
        self.process.wait()


def work(side: str, name: str, batch: str, platform: str, checkout: str) -> None:
    """Be the process of a `Worker`: compile both functions, then time them as asked."""
    answer = lambda value: print(json.dumps({"answer": value}), flush=True)
    make = torch_side if side == "timm" else jax_side
    functions, finish, described = make(side, NETWORKS[name], int(batch), platform, checkout)
    for function in functions.values():
        function()
        function()
    finish()
    answer(described)
    for line in sys.stdin:
        what, seconds = line.split()
        answer(int(batch) / block(functions[what], finish, float(seconds)))


def block(function: Callable, finish: Callable, seconds: float) -> float:
    """Seconds per call, of calls that are dispatched for about `seconds` without waiting for each other."""
    start = time.perf_counter()
    function()
    finish()
    calls = max(1, round(seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    for _ in range(calls):
        function()
    finish()
    return (time.perf_counter() - start) / calls


def torch_side(side: str, network: Network, batch: int, platform: str, checkout: str):
    """timm's network, compiled, with automatic mixed precision and the fused AdamW."""
    import timm
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_float32_matmul_precision("high")
    model = torch.compile(timm.create_model(network.timm, num_classes=CLASSES).to(platform))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    images = torch.randn(batch, 3, 224, 224, device=platform)
    labels = torch.randint(CLASSES, (batch,), device=platform)

    def forward() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(platform, torch.bfloat16):
            model(images)

    def train() -> None:
        model.train()
        with torch.autocast(platform, torch.bfloat16):
            loss = cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    finish = torch.cuda.synchronize if platform == "cuda" else lambda: None
    device = torch.cuda.get_device_name() if platform == "cuda" else platform
    version = f"torch {torch.__version__}, timm {timm.__version__}"
    return dict(forward=forward, train=train), finish, {"device": device, "version": version}


def jax_side(side: str, network: Network, batch: int, platform: str, checkout: str):
    """Our network or big_vision's, with optax's AdamW; the state is donated."""
    import jax
    import jax.numpy as jnp
    import optax

    init, apply = our_network(network) if side == "vit-jax" else their_network(network, checkout)
    images = jax.random.normal(jax.random.key(0), (batch, 224, 224, 3), jnp.bfloat16)
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, CLASSES)
    params = jax.jit(init)()
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    compiled_apply = jax.jit(apply)

    def loss(params):
        logits = apply(params, images).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(params, state):
        changes, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, changes), state

    compiled_update = jax.jit(update, donate_argnums=(0, 1))
    trained, latest = [jax.tree.map(jnp.copy, params), optimizer.init(params)], []

    def forward() -> None:
        latest[:] = [compiled_apply(params, images)]

    def train() -> None:
        trained[:] = compiled_update(*trained)

    finish = lambda: jax.block_until_ready((trained, latest))
    described = {"device": jax.devices()[0].device_kind, "version": f"jax {jax.__version__}"}
    return dict(forward=forward, train=train), finish, described


def our_network(network: Network):
    """Functions to initialise our network, and to apply it in bfloat16."""
    sys.path.insert(0, str(ROOT))
    import jax
    import jax.numpy as jnp

    from train.step import cast
    from vit_jax import create_model

    model = create_model(network.ours, num_classes=CLASSES)
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    return init, lambda params, images: model.apply(cast(params, "bfloat16"), images)


def their_network(network: Network, checkout: str):
    """The same functions of big_vision's network."""
    sys.path.insert(0, str(ROOT))
    import jax
    import jax.numpy as jnp

    from benchmarks.big_vision_models import import_vit

    model = import_vit(Path(checkout)).Model(CLASSES, variant=network.big_vision, pool_type="tok", dtype_mm="bfloat16")
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    return init, lambda params, images: model.apply(params, images)[0]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        import tyro

        main(tyro.cli(Options, description=__doc__))
