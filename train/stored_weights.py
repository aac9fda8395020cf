"""Load the weights that a run starts from, with the network as it was when they were stored."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from train.build import DataInfo, load_weights
from train.commandline.arguments import parse_arguments
from train.config import Config
from train.conversion import read_folder
from train.errors import UserError
from train.fitting import POSITIONS, Grid, square
from train.pretrained import weights_file
from train.published import FROM_DATA, explained, is_published, say
from train.run.files import is_workdir, reachable
from train.run.stored import load_run, model_variables
from train.trunk import trunk_of
from vit_jax.convert import select, torch_key
from vit_jax.layers.check import pair, patch_grid
from vit_jax.pretrained.describe import describe
from vit_jax.pretrained.loading import load_pretrained
from vit_jax.pretrained.positions import RESAMPLED
from vit_jax.state_dict import named_state_dict

# Arguments that change no weight's meaning.
FREE = (*FROM_DATA, "depth", "pool", "last_norm", "dropout", "drop_path", "antialias", "layout", "parent", "name")

# Arguments that may differ although all weights have equal shapes.
OF_HEADS = ("heads", "dim_head")


class Stored(NamedTuple):
    """Loaded weights.

    Attributes:
        variables: Arrays by path, which begins with the collection.
        grid: Rows and columns of patches that learned positions are for; None if unknown.
        resampled: Whether positions have been resampled to the images of the run.
        class_names: Names of the classes of the head; None if unknown.
    """

    variables: dict[tuple[str, ...], Any]
    grid: Grid | None = None
    resampled: bool = False
    class_names: tuple[str, ...] | None = None


def load_stored(source: str, option: str, config: Config, model: nn.Module, info: DataInfo) -> Stored:
    """Load weights for `model` from any source.

    Args:
        source: timm/NAME.TAG, hf:ORG/REPO, a file, a workdir, or a folder of published weights or of `train.convert`.
        option: The command-line option that gave `source`, for messages.
        config: Config of the run.
        model: The network that they are for, without a head.
        info: The dataset of the run.

    Raises:
        UserError: If the weights cannot be loaded, or are those of another network.
    """
    is_folder = not is_published(source) and reachable(source).is_dir()
    if not (is_folder or is_published(source) or config.model.startswith("timm/")):
        return _of_torch_file(source, option, config, model, info)
    if config.init_prefix:
        raise UserError(f"--init-prefix {config.init_prefix} is not used for {option} {source}: leave it out")
    if not is_folder:
        return _published(source, option, config, model, info)
    if is_workdir(source):
        return _of_run(source, option, config, model)
    if (reachable(source) / "config.json").exists():
        raise UserError(f"{option} {source} is a run without checkpoints")
    with explained(option, source):
        return Stored(_flat(read_folder(source)))


def _of_torch_file(source: str, option: str, config: Config, model: nn.Module, info: DataInfo) -> Stored:
    path = weights_file(config.model, source, option)
    with explained(option, path):
        state = select(path, config.init_prefix) if config.init_prefix else named_state_dict(path)[1]
    network, info = as_stored(model, state, info)
    try:
        variables = load_weights(network, path, config.init_prefix, info, option)
    except UserError as error:
        raise UserError(f"{error}\n  {describe(state)}") from error
    return Stored(_flat(variables), patches(network, info))


def patches(model: nn.Module, info: DataInfo) -> Grid | None:
    """Rows and columns of the patches of an image, if `model` has patches of a fixed size."""
    size = getattr(model, "patch_size", None)
    if size is None:
        return None
    height, width = info.image_shape[:2]
    rows, columns = pair("patch_size", size)
    return None if height % rows or width % columns else patch_grid((height, width), size)


def as_stored(model: nn.Module, state: Mapping[str, Any], info: DataInfo) -> tuple[nn.Module, DataInfo]:
    """`model` and `info` with the number of classes and the image size that the weights in a torch file have.

    If they cannot be told from the weights, they stay as they are, and conversion says what does not fit.
    """
    if not hasattr(model, "num_classes"):
        return model, info
    shape = lambda name: np.shape(state[key]) if (key := torch_key(model, name)) in state else None
    one, two = (_abstract(model.clone(num_classes=number), info) for number in (1, 2))
    of_classes = [name for name in one if one[name].shape != two[name].shape and shape(name)]
    model = model.clone(num_classes=shape(of_classes[0])[0] if of_classes else 0)
    for name, leaf in _abstract(model, info).items():
        found, grid = shape(name), patches(model, info)
        if name[-1] != POSITIONS or grid is None or not found or found == leaf.shape:
            continue
        side = square(found[-2] - leaf.shape[-2] + math.prod(grid)) if len(found) > 1 else None
        if side and hasattr(model, "image_size"):
            size = tuple(s * p for s, p in zip(side, pair("patch_size", model.patch_size), strict=True))
            return model.clone(image_size=size), info._replace(image_shape=(*size, info.image_shape[2]))
    return model, info


def _published(source: str, option: str, config: Config, model: nn.Module, info: DataInfo) -> Stored:
    lines = []

    def notify(line: str) -> None:
        lines.append(line)
        say(line)

    arguments = parse_arguments("--model-args", config.model_args)
    if is_published(source):  # its architecture is known, but not the windows at another image size
        arguments = {name: value for name, value in arguments.items() if name == "window_size"}
    else:
        arguments["architecture"] = config.model
    with explained(option, source):
        size = info.image_shape[:2]
        network, variables, _ = load_pretrained(source, image_size=size, notify=notify, **arguments)
    if difference := _difference(network, model):
        raise UserError(
            f"{option} {source} does not fit --model {config.model}: {difference}; "
            f"--model={source} without --model-args is the model of the weights"
        )
    return Stored(_flat(variables), resampled=any(RESAMPLED in line for line in lines))


def _difference(theirs: nn.Module, ours: nn.Module, names: Collection[str] | None = None) -> str | None:
    """The first difference between two networks, in all arguments or in `names`, that no shape of a weight may show."""
    if type(theirs) is not type(ours):
        return None if names else f"it is of a {type(theirs).__name__}, not of a {type(ours).__name__}"
    fields = [field.name for field in dataclasses.fields(ours) if field.name not in FREE]
    fields = [name for name in fields if names is None or name in names]
    for name, there, here in ((name, getattr(theirs, name), getattr(ours, name)) for name in fields):
        if there != here:
            return f"{name} is {there!r} there and {here!r} here"
    return None


def _of_run(workdir: str, option: str, config: Config, model: nn.Module) -> Stored:
    run = load_run(workdir)
    trunk = trunk_of(run)
    if difference := _difference(trunk.module, model, names=OF_HEADS):
        raise UserError(f"{option} {workdir} does not fit --model {config.model}: {difference}")
    if option == "--init-from":
        return Stored(_flat(trunk.variables), patches(trunk.module, run.info))
    network, variables = model_variables(run)
    return Stored(_flat(variables), patches(network, run.info), class_names=run.info.class_names)


def _abstract(model: nn.Module, info: DataInfo) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    return _flat(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *info.image_shape))))


def _flat(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    return flatten_dict(kept)
