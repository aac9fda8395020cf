"""Published weights that a config names: the model that they are of, and how they expect images."""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator

from train.commandline.arguments import parse_arguments
from train.config import Config
from train.errors import UserError, shortened
from train.paths import is_published_folder
from train.recipes import names_weights
from train.run.files import is_workdir
from train.run.stored import read_run_file
from vit_jax.pretrained.json_files import CONFIG, load_config
from vit_jax.pretrained.loading import Found, find_source, network_of, preprocessing_of
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.tags import find_tag
from vit_jax.pretrained.timm_config import architecture_of, read_config
from vit_jax.pretrained.torchvision.weights import WEIGHTS
from vit_jax.printable import printable
from vit_jax.registry import TORCHVISION, list_models

FROM_DATA = ("image_size", "num_classes", "channels")  # arguments of a model that the data determines


def is_published(source: str) -> bool:
    """Whether `source` is timm/NAME.TAG, hf:ORG/REPO, or a folder with weights and their publisher's config.json."""
    return source.startswith(("timm/", "hf:")) or is_published_folder(source)


def with_published(config: Config) -> Config:
    """Complete `config` by what the published weights that it names determine.

    If the model is the name of weights or a folder with them, it becomes their architecture, and training starts from
    them. Settings of the data that are not given become those that the weights expect.

    Raises:
        UserError: If there are no such weights, or `config` names others too.
    """
    config = _with_architecture(config)
    if config.init is not None and is_workdir(config.init):
        return _as_in_run(config, config.init)
    preprocessing = _preprocessing(config)
    if preprocessing is None:
        return config
    if config.data.channels not in (None, 3):
        raise UserError(
            f"--data.channels is {config.data.channels}, but published weights expect RGB images: leave it out"
        )
    expected = dict(
        image_size=preprocessing.image_size,
        eval_crop=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        channels=3,
    )
    missing = {name: value for name, value in expected.items() if getattr(config.data, name) is None}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **missing))


@contextlib.contextmanager
def explained(option: str, source: str) -> Iterator[None]:
    """Convert errors about published weights to UserErrors that name the option and the weights."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        shown, reason = shortened(source), str(error)
        raise UserError(f"{option} {reason}" if reason.startswith(shown) else f"{option} {shown}: {reason}") from error


@functools.cache
def say(line: str) -> None:
    """Show a line about published weights to the user, once, although they are looked up more than once."""
    print(printable(line, None), file=sys.stderr)


def _as_in_run(config: Config, workdir: str) -> Config:
    """`config` with the preprocessing of a run that began with published weights."""
    theirs = read_run_file(workdir).config.data
    if theirs.interpolation is None:
        return config
    names = ("image_size", "eval_crop", "crop_mode", "interpolation", "mean", "std", "channels")
    missing = {name: getattr(theirs, name) for name in names if getattr(config.data, name) is None}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **missing))


def _with_architecture(config: Config) -> Config:
    """`config` with a model's name as model, and the weights that were in its place as initial weights."""
    weights = config.model
    if not names_weights(weights):
        is_name = weights.partition("/")[0] in (*list_models(), *TORCHVISION, "timm")
        if not is_name and (os.path.exists(weights) or weights.startswith(("/", "./", "../"))):
            raise UserError(f"--model {shortened(weights)}: expected a folder with weights and config.json, or a name")
        return config
    for option, other in (("--init", config.init), ("--init-from", config.init_from)):
        if other is not None:
            raise UserError(
                f"--model {shortened(weights)} and {option} {shortened(other)} both name initial weights: "
                "give --model an architecture, such as timm/vit_small_patch16_224"
            )
    with explained("--model", weights):
        if weights.startswith("timm/"):
            find_tag(weights)  # raises ValueError for an unknown one
            name, different = weights.removeprefix("timm/").partition(".")[0], {}
        else:
            name, different = _architecture(find_source(weights, None, say))
    given = parse_arguments("--model-args", config.model_args)
    unnamed = (*FROM_DATA, *given, "layout")  # the layout is that of the file, which is read already
    found = [f"{key}={value!r}" for key, value in different.items() if key not in unnamed]
    return dataclasses.replace(config, model=f"timm/{name}", model_args=(*found, *config.model_args), init=weights)


def _architecture(found: Found) -> tuple[str, dict]:
    """timm's name of the architecture, and the arguments in which the network differs from it."""
    config = load_config(found.path) or {}
    if "architecture" in config:
        return read_config(config, CONFIG)
    return architecture_of(network_of(found))


def _preprocessing(config: Config) -> Preprocessing | None:
    """How the initial weights expect images; None if it is not known, or nothing is loaded."""
    for option, source in (("--init", config.init), ("--init-from", config.init_from)):
        if source is None:
            continue
        if source in WEIGHTS.get(config.model, ()):
            return WEIGHTS[config.model][source].preprocessing
        if is_published(source):
            with explained(option, source):
                if source.startswith("timm/"):
                    return find_tag(source).preprocessing
                return preprocessing_of(find_source(source, None, say))
    return None
