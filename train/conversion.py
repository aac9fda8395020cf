"""Convert weights between torch files and Orbax checkpoints; `train.convert` is the command."""

import math
import os
import secrets
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from jaxtyping import PyTree

from train.build import make_network
from train.commandline.arguments import parse_arguments
from train.convert import MOST_NUMBERS, Options
from train.errors import UserError, one_line
from train.pretrained import weights_file
from train.run.files import check_orbax_name, draft, is_remote, is_workdir, orbax_path
from train.run.integrity import files_below
from train.run.stored import load_run, model_variables
from vit_jax.convert import from_torch, select, to_torch
from vit_jax.printable import printable
from vit_jax.state_dict import PrefixError

# Suffixes of other file formats. They are refused because a folder of that name would be written.
OTHER_FORMS = (".bin", ".ckpt", ".h5", ".hdf5", ".keras", ".msgpack", ".npy", ".npz", ".onnx", ".pb", ".pickle", ".pkl")
OTHER_FORMS += (".pt", ".pth", ".tar", ".zip")


def convert(options: Options) -> None:
    """Read weights from `options.source` and write them to `options.out`.

    Raises:
        UserError: If they cannot be read, do not fit the model, or cannot be written.
    """
    source, model, prefix = options.source, options.model, options.prefix
    out = new_path(options.out)
    if prefix and os.path.isdir(source):
        raise UserError(f"--prefix {prefix} applies to torch files, but {source} is a folder")
    if is_workdir(source):
        network, variables = model_variables(load_run(source))
    elif model is None:
        raise UserError(f"--model is missing; {source} does not contain the name of its model")
    else:
        try:
            network = make_network(model, **parse_arguments("--model-args", options.model_args))
            shape = options.input_shape or image_shape(network)
            if math.prod(shape) > MOST_NUMBERS:
                raise UserError(f"--input-shape is {shape}; it must hold from 1 to {MOST_NUMBERS:,} numbers")
            variables = read(source, model, network, jnp.zeros((1, *shape)), prefix)
        except PrefixError as error:
            raise UserError(f"{error.found}: pass --prefix={error.prefixes[0]}") from error
        except (ArithmeticError, MemoryError, OSError, TypeError, ValueError) as error:
            raise UserError(str(error)) from error
    try:
        write(out, network, variables)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(variables)):,} numbers written to {printable(out, None)}")


def new_path(name: str) -> Path:
    """The path of --out.

    Raises UserError if it is remote, exists, or has the suffix of a format that this command does not write.
    """
    if is_remote(name):
        raise UserError(f"--out {name}: expected a local path")
    out = Path(name)
    if os.path.lexists(out):
        raise UserError(f"--out {out} already exists: expected a new path")
    check_orbax_name(out.parent)
    if out.suffix.lower() in OTHER_FORMS:
        raise UserError(
            f"--out {out}: the format {out.suffix} is not supported: expected a file that ends in .safetensors "
            "(torch's names; safetensors.torch.load_file reads it) or a folder"
        )
    return out


def image_shape(network: nn.Module) -> tuple[int, int, int]:
    """Height, width and channels of the input of `network`; 224x224 pixels if it takes any size."""
    size = getattr(network, "image_size", None) or 224
    return (*((size, size) if isinstance(size, int) else size), getattr(network, "channels", 3))


def read(source: str, model: str, network: nn.Module, inputs: jax.Array, prefix: str | None) -> PyTree:
    """Read variables of a network.

    Args:
        source: Torch file, name of published weights, or folder of Flax variables.
        model: Name of the network.
        network: The network.
        inputs: An input, for shapes.
        prefix: Prefix of the network's keys in a torch file.

    Raises:
        ValueError: If the weights cannot be read or do not fit the network.
    """
    if not Path(source).is_dir():
        file = weights_file(model, source, "SOURCE")
        return from_torch(network, select(file, prefix) if prefix else file, inputs)
    return read_folder(source, jax.eval_shape(network.init, jax.random.key(0), inputs))


def read_folder(source: str, abstract: PyTree | None = None) -> PyTree:
    """Read a folder of Flax variables that `write` wrote.

    Args:
        source: The folder.
        abstract: Shapes and types that the variables must have; None: any.

    Raises:
        ValueError: If it cannot be read, or does not fit `abstract`.
    """
    list(files_below(Path(source)))  # raises OSError for links and pipes, which Orbax would open
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(orbax_path(source), abstract)
    except Exception as error:  # Orbax and tensorstore raise many types of errors
        raise ValueError(f"{source} cannot be read: {one_line(error)}") from error


def write(out: Path, network: nn.Module, variables: PyTree) -> None:
    """Write `variables` in the format that the suffix of `out` selects. `out` appears only once it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() != ".safetensors":
        # A temporary name that Orbax does not misinterpret.
        part = orbax_path(out.parent) / f"{secrets.token_hex(8)}.tmp"
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(part, variables)
                checkpointer.wait_until_finished()
                checkpointer.metadata(part)  # opens every array, to detect a checkpoint that cannot be read back
            os.rename(part, out)
        except ValueError as error:  # from tensorstore
            raise OSError(one_line(error)) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return
    from safetensors.numpy import save_file

    part = draft(out)
    try:
        save_file({key: np.ascontiguousarray(value) for key, value in to_torch(network, variables).items()}, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
