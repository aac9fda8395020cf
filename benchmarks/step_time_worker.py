"""A process of `step_time.py`, with upstream's model in torch or with ours: `python step_time_worker.py torch|jax`."""

import dataclasses
import inspect
import os
import pickle
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.step_time import Options

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.05, 1.0


def work(side: str) -> None:
    """Answer requests from stdin until it is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with the answers
    (options,) = pickle.load(sys.stdin.buffer)
    worker = {"torch": TorchSide, "jax": JaxSide}[side](Options(**options))
    pickle.dump(None, answers)
    answers.flush()
    while True:
        try:
            name, *args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(getattr(worker, name)(*args), answers)
        answers.flush()


def make_model(options: Options):
    """Our Flax module. Upstream's module is created from its fields."""
    from train.build import model_name
    from train.commandline.arguments import parse_arguments
    from vit_jax import create_model

    size = {} if options.image_size is None else {"image_size": options.image_size}
    arguments = parse_arguments("--model-args", options.model_args)
    return create_model(model_name(options.model), **{"num_classes": 1000, **size, **arguments})


def make_batch(model, batch_size: int):
    """Images (b, H, W, c) and labels (b,), the same for both sides."""
    import numpy as np

    from vit_jax.layers.check import pair

    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, *pair("image_size", model.image_size), model.channels), np.float32)
    return images, rng.integers(model.num_classes, size=batch_size)


def product_operands(vit, batch_size: int) -> list[tuple]:
    """The operands of all matrix products in a block of ViT, of random numbers; attention's have an axis of heads."""
    import numpy as np

    from vit_jax.layers.check import patch_grid

    rows, columns = patch_grid(vit.image_size, vit.patch_size)
    tokens, inner = rows * columns + 1, vit.heads * vit.dim_head
    linear = [(vit.dim, 3 * inner), (inner, vit.dim), (vit.dim, vit.mlp_dim), (vit.mlp_dim, vit.dim)]
    shapes = [((batch_size * tokens, width), (width, out)) for width, out in linear]
    for width, out in ((vit.dim_head, tokens), (tokens, vit.dim_head)):
        heads = batch_size * vit.heads
        shapes.append(((heads, tokens, width), (heads, width, out)))
    rng = np.random.default_rng(0)
    return [tuple(rng.standard_normal(shape, np.float32) for shape in pair) for pair in shapes]


class TorchSide:
    """Upstream's model, torch's AdamW and eager (or compiled) PyTorch."""

    def __init__(self, options: Options):
        import torch

        torch.manual_seed(0)
        ours = make_model(options)
        images, labels = make_batch(ours, options.batch_size)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.from_numpy(labels)
        self.model = torch_twin(ours)
        if options.products:
            self.depth = ours.depth
            self.operands = [tuple(map(torch.from_numpy, pair)) for pair in product_operands(ours, options.batch_size)]
        torch.set_num_threads(options.threads)
        self.run = torch.compile(self.model) if options.compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def versions(self) -> dict[str, str]:
        import torch

        return {"torch": torch.__version__}

    def state(self) -> dict:
        return {key: value.numpy() for key, value in self.model.state_dict().items()}

    def logits(self):
        import torch

        with torch.inference_mode():
            outputs = self.model.eval()(self.images)
        return (outputs[0] if isinstance(outputs, tuple) else outputs).numpy()

    def milliseconds(self, what: str, calls: int) -> float:
        """Mean time of one forward pass or train step, of `calls` in a row."""
        self.run.train(what == "train")
        step = {"forward": self.forward, "train": self.train, "products": self.products}[what]
        start = time.perf_counter()
        for _ in range(calls):
            step()
        return 1000 * (time.perf_counter() - start) / calls

    def forward(self) -> None:
        import torch

        with torch.inference_mode():
            self.run(self.images)

    def products(self) -> None:
        import torch

        with torch.inference_mode():
            for _ in range(self.depth):
                for x, kernel in self.operands:
                    x @ kernel

    def train(self) -> None:
        import torch
        from torch.nn.functional import cross_entropy

        outputs = self.run(self.images)
        logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, 0.0)
        loss = cross_entropy(logits, self.labels) + auxiliary
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        loss.item(), norm.item(), (logits.argmax(1) == self.labels).float().mean().item()


def torch_twin(ours):
    """Upstream's module, with those arguments of `ours` that it accepts, including modules.

    If upstream's code crashes, it is repaired as in the first row of its tests. The repaired module may accept more
    arguments.
    """
    from tests.cases import FIRST
    from tests.cases.case import build_upstream, upstream_class
    from vit_jax.registry import MODELS

    target = f"{type(ours).__module__}:{type(ours).__name__}"
    case = FIRST[next(name for name in MODELS if MODELS[name] == target)]
    accepted = inspect.signature(upstream_class(case)).parameters
    fields = {field.name for field in dataclasses.fields(ours)} - {"parent", "name"}
    arguments = {key: getattr(ours, key) for key in fields & (accepted.keys() | case.kwargs.keys())}
    arguments = {
        key: torch_twin(value) if dataclasses.is_dataclass(value) else value for key, value in arguments.items()
    }
    return build_upstream(dataclasses.replace(case, kwargs=arguments))


class JaxSide:
    """Our model and the trainer's own step, jitted and with donated state as in the trainer."""

    def __init__(self, options: Options):
        from train.allocator import compute_in_main_thread, keep_freed_memory

        keep_freed_memory()  # as every command does
        compute_in_main_thread()
        import jax

        self.model = make_model(options)
        self.images, self.labels = map(jax.device_put, make_batch(self.model, options.batch_size))
        self.forward = jax.jit(self.model.apply)
        if options.products:
            self.operands = jax.device_put(product_operands(self.model, options.batch_size))
            self.block = jax.jit(lambda pairs: [x @ kernel for x, kernel in pairs])

    def versions(self) -> dict[str, str]:
        import flax
        import jax

        return {"jax": jax.__version__, "flax": flax.__version__}

    def load(self, state_dict: dict):
        """Take upstream's weights; returns the logits."""
        import jax
        import numpy as np
        import optax

        from train.config import Optim
        from train.optim import make_optimizer
        from train.step import TrainState, make_train_step
        from vit_jax.convert import from_torch
        from vit_jax.objectives.classify import Classify

        self.variables = from_torch(self.model, state_dict, self.images)
        extras = jax.tree.map(jax.numpy.copy, self.variables)  # the step donates them
        params = extras.pop("params")
        config = Optim(weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM)
        optimizer = make_optimizer(config, optax.constant_schedule(LEARNING_RATE), params)
        self.state = TrainState(jax.numpy.zeros((), int), params, extras, optimizer.init(params), ema=None)
        prepare = lambda key, batch: (batch["image"], jax.nn.one_hot(batch["label"], self.model.num_classes))
        step = make_train_step(Classify(self.model), optimizer, prepare)
        self.train = jax.jit(step, donate_argnums=0)
        return np.asarray(jax.tree.leaves(self.forward(self.variables, self.images))[0])

    def milliseconds(self, what: str, calls: int) -> float:
        """Mean time of one forward pass or train step, of `calls` in a row."""
        import jax

        start = time.perf_counter()
        for _ in range(calls):
            if what == "forward":
                jax.block_until_ready(self.forward(self.variables, self.images))  # otherwise passes overlap
            elif what == "products":
                for _ in range(self.model.depth):
                    jax.block_until_ready(self.block(self.operands))
            else:
                batch = {"image": self.images, "label": self.labels}
                self.state, _ = self.train(self.state, batch, {})
        jax.block_until_ready(self.state)
        return 1000 * (time.perf_counter() - start) / calls


if __name__ == "__main__":
    work(sys.argv[1])
