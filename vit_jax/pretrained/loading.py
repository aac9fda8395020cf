"""Loads published weights by name, from a folder or from a file, and saves weights as timm does."""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from vit_jax.convert import from_torch, to_torch
from vit_jax.layers.check import pair
from vit_jax.pretrained import hub
from vit_jax.pretrained.configurations import arguments_of
from vit_jax.pretrained.describe import describe
from vit_jax.pretrained.files import load_weights, save_folder
from vit_jax.pretrained.json_files import CONFIG, load_config
from vit_jax.pretrained.model_config import KEY, read_model, write_model
from vit_jax.pretrained.network import TimmNetwork
from vit_jax.pretrained.networks import ARGUMENTS
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.preprocessing_files import from_timm, read_preprocessing
from vit_jax.pretrained.publishers import read, recognise
from vit_jax.pretrained.tags import find_tag
from vit_jax.pretrained.timm_config import read_config, write_config
from vit_jax.pretrained.vision_transformer import VisionTransformer
from vit_jax.printable import printable
from vit_jax.registry import argument_names, create_model, unknown

State = dict[str, np.ndarray]


class Pretrained(NamedTuple):
    """A network, its trained weights, and how images become its inputs: None if they have neither 3 channels nor 1."""

    model: nn.Module
    variables: dict
    preprocess: Preprocessing | None


def load_pretrained(
    source: str | os.PathLike,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    revision: str | None = None,
    notify: Callable[[str], None] | None = None,
    **arguments: Any,
) -> Pretrained:
    """Load a network with published weights.

    `model, variables, preprocess = load_pretrained("timm/vit_small_patch16_224.augreg_in21k_ft_in1k")`, and then
    `jax.jit(model.apply)(variables, preprocess("photo.jpg")[None])` are the logits.

    Args:
        source: "timm/NAME.TAG" or "hf:ORG/REPO" for weights on the Hugging Face hub; a folder with config.json and
            weights, as timm, transformers and `vit-jax export` write it; or a file of weights (.safetensors, .pth,
            .bin, .npz).
        architecture: "timm/NAME", of which the weights are; needed without a config.json.
        num_classes: 0 for features. If the number differs from that of the weights, the head is new and random.
        image_size: pixels, or (height, width); learned positions and tables of relative positions are resampled.
            Default: that of the network; for weights of transformers, that for which its processor prepares images.
        revision: branch, tag or commit on the hub.
        notify: called with lines about what is fetched, resampled and new; default: writes to stderr.
        **arguments (Any): further arguments of the network, such as `drop_path` or Swin's `window_size`.

    Raises:
        ValueError: if the weights do not fit the architecture or are not supported, or for an unknown argument.
        ImportError: if a package is missing that fetches or reads weights.
        OSError: if weights can be neither fetched nor read.
    """
    _check_known(arguments, ARGUMENTS)  # before the weights are fetched, whose network may be unknown until then
    notify = notify or (lambda line: print(line, file=sys.stderr))
    found = find_source(source, revision, notify)
    shown = printable(found.path if found.weights is None else source, 1000)
    config = load_config(found.path) if found.path.is_dir() else None
    if KEY in (config or {}):
        changes = dict(architecture=architecture, num_classes=num_classes, image_size=image_size, **arguments)
        return _of_model(found, config, [name for name, value in changes.items() if value is not None])
    published = network_of(found, architecture)
    _check_known(arguments, argument_names(type(published)))
    state = load_weights(found.path, found.weights)
    if isinstance(published, VisionTransformer):  # other networks are read in timm's layout alone
        try:
            state = read(recognise(state), state, published)
        except ValueError as error:
            raise ValueError(f"{shown}: {error}") from error
        published = _with_grid(published, state, notify)

    own = getattr(published, "image_size", None)
    preprocess = preprocessing_of(found) or Preprocessing(own or 224)
    if own is None or not getattr(published, "antialias", True):
        own = preprocess.image_size  # transformers resamples positions to the images of its processor
    size = image_size or own
    if hasattr(published, "image_size"):
        arguments["image_size"] = size
    classes = _classes(published, state) if num_classes is None else num_classes
    model = published.clone(num_classes=classes, **arguments)
    state = _with_heads(model.adapted(state, published, notify), model, notify)
    variables = _converted(shown, model, state, size)
    return Pretrained(model, variables, dataclasses.replace(preprocess, image_size=pair("image_size", size)))


def save_pretrained(
    folder: str | os.PathLike,
    model: nn.Module,
    variables: Mapping[str, Any],
    preprocess: Preprocessing | None,
    *,
    name: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write config.json and model.safetensors, which `load_pretrained(folder)` reads.

    If `model` is a network of timm's, timm reads them, too: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Args:
        folder: created if it does not exist. Its other files are kept.
        model: a network of timm's, with any sizes and number of classes, or any model with `name`.
        variables: of `model`.
        preprocess: how images become its inputs; None, for models that are not timm's, if no `Preprocessing` tells it.
        name: the name that `create_model` takes, of a model that is not timm's.
        input_shape: shape of its inputs without the batch axis; default: RGB images as `preprocess` makes them.
        class_names: names of the classes, which are written as "label_names".

    Raises:
        ValueError: if timm has no architecture that differs from `model` in sizes alone, and there is no `name`.
        OSError: if the folder cannot be written.
    """
    if isinstance(model, TimmNetwork):
        config = write_config(model, preprocess)
    elif name is None:
        raise ValueError(f"model is a {type(model).__name__}, expected a network of timm's, or name=")
    else:
        config = write_model(name, model, input_shape or (*preprocess.image_size, 3), preprocess)
    if class_names:
        config["label_names"] = list(class_names)
    save_folder(folder, config, to_torch(model, variables))


def _of_model(found: "Found", config: Mapping[str, Any], changes: Sequence[str]) -> Pretrained:
    """A model that is not timm's, as `save_pretrained` wrote it. Raises ValueError for `changes` of its arguments."""
    shown = printable(found.path, 1000)
    if changes:
        raise ValueError(f"{shown} is of a model that is not timm's: it is loaded as it is, without {changes[0]}=")
    model, shape = read_model(config, f"{shown}/{CONFIG}")
    state = load_weights(found.path, found.weights)
    variables = from_torch(model, state, jax.ShapeDtypeStruct((1, *shape), np.float32))
    return Pretrained(model, variables, from_timm(config) if "pretrained_cfg" in config else None)


class Found(NamedTuple):
    """Where weights are on disk, and what their name tells about them."""

    path: Path  # a folder, or a file of weights
    weights: str | None = None  # name of the file in the folder
    architecture: str | None = None
    preprocess: Preprocessing | None = None


def find_source(source: str | os.PathLike, revision: str | None, notify: Callable[[str], None]) -> Found:
    """Find the `source` of `load_pretrained` on disk or on the hub, from which it is fetched.

    Raises:
        ValueError: if there is no such file, folder or name.
        ImportError: if huggingface_hub is missing.
        OSError: if weights cannot be fetched.
    """
    path, shown = Path(source).expanduser(), printable(source, 1000)
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision={revision!r}: {shown} is a file or a folder, which has no revisions")
        return Found(path)
    name = os.fspath(source)
    repository, named_revision = hub.parse(name) or (None, None)
    if repository is None:
        raise ValueError(f"{shown} does not exist: expected a folder, a file, timm/NAME.TAG or hf:ORG/REPO")
    architecture = preprocess = None
    if name.startswith("timm/"):
        tag = find_tag(name)
        architecture, preprocess = name.partition(".")[0], tag.preprocessing
        if not tag.hub_id:
            raise ValueError(f"{name} is not on the hub: download {tag.url}, pass the file, and {architecture=}")
        repository = tag.hub_id
    snapshot = hub.fetch(repository, revision or named_revision, notify=notify)
    return Found(snapshot.folder, snapshot.weights, architecture, preprocess)


def preprocessing_of(found: Found) -> Preprocessing | None:
    """How the weights expect images, if it is known."""
    if found.preprocess is not None or not found.path.is_dir():
        return found.preprocess
    return read_preprocessing(found.path)


def network_of(found: Found, architecture: str | None = None) -> TimmNetwork:
    """The network that the weights are of, with the classes and the image size that they were trained with.

    It is that of `architecture`, "timm/NAME", or else the one that the name of the weights or their config.json tells.

    Raises:
        ValueError: if neither tells it, or the network is not supported.
    """
    given, shown = architecture or found.architecture, printable(found.path, 1000)
    config = load_config(found.path) if found.path.is_dir() else None
    if given is not None:
        if not given.startswith("timm/"):
            raise ValueError(f"architecture={given!r}: expected timm/NAME")
        return create_model(given)
    if config is None:
        raise ValueError(f"{shown} has no {CONFIG}: pass architecture='timm/NAME'")
    try:
        if "architecture" in config:  # timm's; transformers has "architectures"
            name, differences = read_config(config, CONFIG)
            return create_model(f"timm/{name}", **differences)
        arguments, _layout = arguments_of(config)
        return VisionTransformer(**arguments)
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error


def _with_grid(published: VisionTransformer, state: State, notify: Callable[[str], None]) -> VisionTransformer:
    """`published` with the image size that the positions of the weights tell: those of another square of patches."""
    count = state["pos_embed"].shape[1] if np.ndim(state.get("pos_embed")) == 3 else 0
    side = math.isqrt(count)
    if side**2 != count or count in (0, math.prod(published.grid)):
        return published
    height, width = (side * patch for patch in pair("patch_size", published.patch_size))
    notify(f"the weights have positions of {side} x {side} patches, for images of {height} x {width} pixels")
    return published.clone(image_size=(height, width))


def _check_known(arguments: Mapping[str, Any], known: list[str]) -> None:
    for key in arguments:
        if key not in known:
            raise ValueError(unknown("argument of load_pretrained", key, known))


def _classes(model: TimmNetwork, state: Mapping[str, np.ndarray]) -> int:
    weight = state.get(f"{model.timm_heads[0]}.weight")
    return len(weight) if np.ndim(weight) else 0


def _with_heads(state: State, model: TimmNetwork, notify: Callable[[str], None]) -> State:
    """The state with heads for the model's classes: those of the weights, or new ones with small random numbers."""
    if _classes(model, state) == model.num_classes:
        return state
    names = model.timm_heads
    state = {key: value for key, value in state.items() if key.rpartition(".")[0] not in names}
    rng = np.random.default_rng(0)
    for name in names if model.num_classes else ():
        weight = rng.standard_normal((model.num_classes, model.num_features), np.float32)
        state |= {f"{name}.weight": 0.02 * weight, f"{name}.bias": np.zeros(model.num_classes, np.float32)}
    if model.num_classes:
        notify(f"the head for {model.num_classes:,} classes is new and random")
    return state


def _converted(shown: str, model: TimmNetwork, state: State, image_size: int | tuple[int, int]) -> dict:
    """Variables from a state dict, which is in canonical form for a vision transformer."""
    images = jax.ShapeDtypeStruct((1, *pair("image_size", image_size), model.channels), np.float32)
    try:
        return from_torch(model.clone(layout=()) if isinstance(model, VisionTransformer) else model, state, images)
    except ValueError as error:
        raise ValueError(f"{shown}: {describe(state)}\n{error}") from error
