"""The function of a run that is exported, and the comparison of what was written with it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree

from train.data.augment import normalize
from train.errors import UserError
from train.prediction import link_of, make_predict
from train.run.stored import Run, model_variables
from train.trunk import trunk_of
from vit_jax.images import WHITE
from vit_jax.objectives.distill import Distill
from vit_jax.objectives.features import pooled
from vit_jax.objectives.protocol import Classifier

TOLERANCE = 1e-5  # of probabilities, or relative to the largest feature
PIXELS, BATCH = "pixels", "batch"  # names of the input and of its first axis

Function = Callable[[Array | np.ndarray], Array]


class Program(NamedTuple):
    """The part of a run that is exported.

    Attributes:
        run: The run.
        function: Jitted, from pixels as they are in image files (b, h, w, c) to outputs (b, k).
        output: What these are: "probabilities" of classes, "numbers", or "features" of an encoder.
    """

    run: Run
    function: Function
    output: str


def program_of(run: Run) -> Program:
    """The program of a run: for classifiers that of `vit-jax predict`, otherwise one feature vector for each image."""
    if isinstance(run.objective, Classifier):
        return Program(run, make_predict(run), "numbers" if run.info.target == "regression" else "probabilities")
    return Program(run, features_function(run, *trunk_of(run)), "features")


def features_function(run: Run, encoder: nn.Module, variables: PyTree) -> Function:
    """A jitted function from pixels to the pooled features of `encoder`, (b, d)."""

    @jax.jit
    def features_of(pixels: Array) -> Array:
        outputs = encoder.apply(variables, normalize(pixels, run.info.mean, run.info.std))
        return pooled(encoder, outputs).astype(np.float32)

    return features_of


def network_of(program: Program) -> tuple[nn.Module, PyTree]:
    """The model of a program and its variables, from normalised images to logits or to the encoder's outputs.

    Raises UserError if the outputs of the program are not those of a model alone.
    """
    objective = getattr(program.run.objective, "base", program.run.objective)  # that of distilled features
    if isinstance(objective, Distill):
        raise UserError(
            "--formats safetensors cannot hold the distillation token, which this run predicts with: use the others, "
            "--formats stablehlo onnx"
        )
    return trunk_of(program.run) if program.output == "features" else model_variables(program.run)


def network_function(program: Program, network: nn.Module, variables: PyTree) -> Function:
    """The function that `program` would have with another network of the same kind."""
    run = program.run
    if program.output == "features":
        return features_function(run, network, variables)
    link = link_of(run)

    @jax.jit
    def outputs_of(pixels: Array) -> Array:
        outputs = network.apply(variables, normalize(pixels, run.info.mean, run.info.std))
        return link(jax.tree.leaves(outputs)[0].astype(np.float32))

    return outputs_of


def check_same(program: Program, function: Function, name: str) -> None:
    """Compare a function that was read from what was written with `program`, on random images in two batches.

    Raises UserError if outputs differ by more than TOLERANCE.
    """
    pixels = random_pixels(program.run, 3)
    for batch in (pixels, pixels[:1]):
        expected, found = np.asarray(program.function(batch)), np.asarray(function(batch))
        largest = 1.0 if program.output == "probabilities" else max(1.0, np.abs(expected).max())
        error = np.abs(found - expected).max() / largest if found.shape == expected.shape else np.inf
        if not error <= TOLERANCE:
            raise UserError(
                f"{name} is wrong, and nothing was written: its {program.output} differ from the run's by {error:.1e} "
                f"on random images, more than {TOLERANCE:g}; please report this with config.json of the run"
            )


def random_pixels(run: Run, count: int) -> np.ndarray:
    """Random images as they come from files, (count, h, w, c)."""
    rng, shape, info = np.random.default_rng(0), (count, *run.info.image_shape), run.info
    if info.pixels == "float32":
        return np.float32(rng.normal(info.mean, info.std, shape))
    return rng.integers(0, WHITE[info.pixels], shape, info.pixels, endpoint=True)
