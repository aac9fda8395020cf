"""Writers of the formats: each writes files into a folder, and returns the function that it reads from them."""

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.export
import numpy as np

from train.build import model_name
from train.data.transforms import evaluation_of
from train.errors import UserError, one_line
from train.exporting.program import BATCH, PIXELS, Function, Program, network_function, network_of
from train.run.stored import Run
from vit_jax.pretrained import load_pretrained, save_pretrained
from vit_jax.pretrained.preprocessing import Preprocessing

STABLEHLO, ONNX = "model.stablehlo", "model.onnx"
PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST = 2**31 - 1  # bytes of a serialised program, whose offsets have 32 bits
NEEDS_ONNX = "--formats onnx needs jax2onnx, onnx and onnxruntime: docs/export.md tells how to install them"
OTHER_JAX = (
    f"--formats onnx: the installed jax2onnx does not work with jax {jax.__version__} ({{}}): "
    "jax2onnx 0.17.1 works with jax 0.10.2"
)


def preprocessing_of(run: Run) -> Preprocessing | None:
    """How images become inputs of the run's model; None for images that are neither RGB nor greyscale of 8 bits."""
    if run.info.image_shape[2] not in (1, 3) or run.info.pixels != "uint8":
        return None
    config, info = run.config.data, run.info
    size = evaluation_of(config, info.image_shape, info.mean)
    return Preprocessing(size.image_size, size.crop_pct, size.crop_mode, size.interpolation, info.mean, info.std)


def write_safetensors(folder: Path, program: Program) -> Function:
    """Write model.safetensors and config.json."""
    run, (network, variables) = program.run, network_of(program)
    name, preprocess = model_name(run.config.model), preprocessing_of(run)
    more = dict(name=name, input_shape=run.info.image_shape, class_names=run.info.class_names)
    try:
        save_pretrained(folder, network, jax.device_get(variables), preprocess, **more)
        loaded = load_pretrained(folder)
    except ValueError as error:
        raise UserError(f"--formats safetensors: {error}") from error
    return network_function(program, loaded.model, loaded.variables)


def write_stablehlo(folder: Path, program: Program) -> Function:
    """Write model.stablehlo, which runs on any of PLATFORMS."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((program.run.params, program.run.extras)))
    if size > LARGEST:
        raise UserError(
            f"--formats stablehlo: a program holds its weights, at most {LARGEST / 1e9:.1f} GB, but those of "
            f"{program.run.config.model} have {size / 1e9:.1f} GB: use --formats safetensors"
        )
    exported = jax.export.export(program.function, platforms=PLATFORMS)(_abstract(program))
    try:
        content = exported.serialize()
    except ImportError as error:
        raise UserError("--formats stablehlo needs the package flatbuffers: pip install flatbuffers") from error
    (folder / STABLEHLO).write_bytes(content)
    return jax.jit(jax.export.deserialize(bytearray((folder / STABLEHLO).read_bytes())).call)


def write_onnx(folder: Path, program: Program) -> Function:
    """Write model.onnx, and for more than 2 GB its weights beside it."""
    try:
        with _quiet():
            import onnxruntime
            from jax2onnx import to_onnx
    except (ImportError, AttributeError) as error:
        raise UserError(OTHER_JAX.format(one_line(error)) if _lacks(error) else NEEDS_ONNX) from error
    names = dict(input_names=[PIXELS], output_names=[program.output])
    try:
        with _quiet():
            to_onnx(
                program.function,
                [_abstract(program)],
                model_name="vit_jax",
                return_mode="file",
                output_path=folder / ONNX,
                **names,
            )
            session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    except Exception as error:  # both raise many types of errors for operations that they do not know
        if _lacks(error):
            raise UserError(OTHER_JAX.format(one_line(error))) from error
        raise UserError(
            f"--formats onnx: {program.run.config.model} cannot be converted, see docs/export.md: {one_line(error)}"
        ) from error
    return lambda pixels: session.run(None, {PIXELS: np.asarray(pixels)})[0]


WRITERS: dict[str, Callable[[Path, Program], Function]] = {
    "safetensors": write_safetensors,
    "stablehlo": write_stablehlo,
    "onnx": write_onnx,
}


def _lacks(error: Exception) -> bool:
    """Whether `error` is about a name that JAX does not have, or has no more."""
    return bool(re.search(r"\b(module|from) 'jax\b", str(error)))


def _abstract(program: Program) -> jax.ShapeDtypeStruct:
    """Pixels in a batch of any size."""
    (batch,) = jax.export.symbolic_shape(BATCH)
    return jax.ShapeDtypeStruct((batch, *program.run.info.image_shape), program.run.info.pixels)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what jax2onnx and onnx_ir log and warn of: missing packages of their examples, and shapes."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
