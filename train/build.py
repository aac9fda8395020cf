"""Build the model and the objective that a config names, and load weights."""

import math
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree

from train.commandline.arguments import parse_arguments
from train.commandline.ranges import Range
from train.config import LOSSES, Config, Side
from train.errors import UserError, shortened
from vit_jax import create_model
from vit_jax.convert import from_torch, select
from vit_jax.objectives import OBJECTIVES, create_objective, list_objectives, objective_arguments
from vit_jax.objectives.distill import Teacher
from vit_jax.objectives.protocol import Objective
from vit_jax.registry import TORCHVISION, model_arguments, unknown
from vit_jax.state_dict import PrefixError

MOST_VALUES = 2**26  # in an image: 8192 x 8192 pixels of one channel
MOST_PATCHES = 2**16  # 4096 x 4096 pixels in patches of 16

Positive = Annotated[float, Range(0, math.inf, open_low=True, open_high=True)]


class DataInfo(NamedTuple):
    """Properties of the dataset that a workdir stores.

    Attributes:
        class_names: Names of the classes, labels, or number columns; empty if they are not used.
        image_shape: Height, width and channels of the model's input.
        mean: Mean per channel, of pixels in 0..1; floats may have any range.
        std: Standard deviation per channel, of the same pixels.
        target: What the model predicts; see `Data.target`.
        target_mean: For regression, mean of each number column over the training images; otherwise empty.
        target_std: For regression, standard deviation of each number column; otherwise empty.
        pixels: Type of the samples of images.
        class_weights: Weight of each class or label in the loss; empty: all equal.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[Side, Side, Side]
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    target: Literal["class", "multilabel", "regression"] = "class"
    target_mean: tuple[float, ...] = ()
    target_std: tuple[Positive, ...] = ()
    pixels: Literal["uint8", "uint16", "float32"] = "uint8"
    class_weights: tuple[Positive, ...] = ()

    @property
    def images(self) -> jax.Array:
        """A batch with one black image, (1, h, w, c), to infer shapes from."""
        return jnp.zeros((1, *self.image_shape))


def model_name(name: str) -> str:
    """`name` with its preset: NAME alone means NAME/tiny. Names of torchvision networks have no preset."""
    return name if "/" in name or name in TORCHVISION else f"{name}/tiny"


def make_network(name: str, **arguments: Any) -> nn.Module:
    """Create a model, or a torchvision network, by name. Raises ValueError for an unknown name or invalid arguments."""
    return create_model(model_name(name), **arguments)


def network_arguments(name: str, option: str) -> list[str]:
    """Names of the arguments of a network. Raises UserError, which names `option`, for an unknown name or preset."""
    try:
        return model_arguments(model_name(name))
    except ValueError as error:
        raise UserError(f"{option} {shortened(name)}: {error}") from error


# For each option that names a network, the option with the network's arguments.
ARGUMENTS = {"--model": "--model-args", "--distill.teacher": "--distill.args"}


# Names of a model's argument for `--drop-path`: ours, CCT's and torchvision's.
DROP_PATH = ("drop_path", "stochastic_depth_rate", "stochastic_depth_prob")


def build_model(
    name: str,
    pairs: tuple[str, ...],
    info: DataInfo,
    *,
    option: str = "--model",
    classes: bool = True,
    drop_path: float | None = None,
) -> nn.Module:
    """Build a model for the images and classes of a dataset.

    Args:
        name: Name of the model or torchvision network.
        pairs: Arguments of the model as KEY=VALUE.
        info: The dataset.
        option: The command-line option that gave `name`, for messages.
        classes: Whether the model is a classifier; otherwise it returns features.
        drop_path: Rate of stochastic depth; None for the model's default.

    Raises:
        UserError: If the model does not exist, has no stochastic depth, or does not accept the arguments or the images.
    """
    height, width, channels = info.image_shape
    if math.prod(info.image_shape) > MOST_VALUES:
        raise UserError(f"images of {height}x{width}x{channels} are too large: expected at most {MOST_VALUES:,} values")
    from_data = dict(
        image_size=height if height == width else (height, width),
        input_shape=(height, width),
        channels=channels,
        num_classes=len(info.class_names) if classes else 0,
    )
    arguments = parse_arguments(ARGUMENTS[option], pairs)
    accepted = network_arguments(name, option)
    if "image_size" in accepted:
        del from_data["input_shape"]
    from_data = {key: value for key, value in from_data.items() if key in accepted}
    if clash := from_data.keys() & arguments.keys():
        raise UserError(f"{ARGUMENTS[option]} {min(clash)}: is set by the data; see --data.image-size")
    if drop_path is not None:
        rate = _drop_path_argument(name, accepted)
        if rate in arguments:
            raise UserError(f"{ARGUMENTS[option]} {rate}: is set by --drop-path")
        arguments[rate] = drop_path
    try:
        model = make_network(name, **arguments, **from_data)
        _check_patches(model, height, width)
        jax.eval_shape(model.init, jax.random.key(0), info.images)
    except (ArithmeticError, MemoryError, TypeError, ValueError) as error:
        raise UserError(f"{option} {model_name(name)}: {error}") from error
    return model


def _drop_path_argument(name: str, accepted: list[str]) -> str:
    """Name of the argument for stochastic depth among those that a model accepts. Raises UserError without one."""
    for argument in DROP_PATH:
        if argument in accepted:
            return argument
    raise UserError(f"--drop-path: {name} has no stochastic depth (no argument {DROP_PATH[0]})")


def _check_patches(model: nn.Module, height: int, width: int) -> None:
    """Raises ValueError for more than MOST_PATCHES patches, because shape inference computes position tables."""
    size = getattr(model, "patch_size", None) or 1
    patches = height * width // max(1, size**2 if isinstance(size, int) else math.prod(size))
    if hasattr(model, "patch_size") and patches > MOST_PATCHES:
        raise ValueError(f"images of {height}x{width} have {patches:,} patches; expected at most {MOST_PATCHES:,}")


# Objectives whose model has a head, and which use what `--data.target` says.
CLASSIFIERS = ("classify", "deep_supervision", "distill", "feature_distill", "multilabel", "regress")
# The objective of each `--data.target`, without a teacher.
OBJECTIVE_OF = {"class": "classify", "multilabel": "multilabel", "regression": "regress"}


def objective_name(config: Config) -> str:
    """The name of the objective.

    Raises:
        UserError: If it needs a teacher and has none, or has one and needs none, or if it does not learn the target.
    """
    distill, target = config.distill, config.data.target
    taught = "distill" if distill.features is None else "feature_distill"
    usual = OBJECTIVE_OF[target] if distill.teacher is None else taught
    name = config.objective or usual
    if name not in OBJECTIVES:
        raise UserError(f"--objective: {unknown('objective', name, list_objectives())}")
    for needed, option, value in (
        (("distill", "feature_distill"), "a --teacher", distill.teacher),
        (("feature_distill",), "--distill.features", distill.features),
    ):
        if (name in needed) != (value is not None):
            raise UserError(f"--objective {name} {'needs' if name in needed else 'does not use'} {option}")
    if target != "class" and name != OBJECTIVE_OF[target]:
        raise UserError(f"--data.target is {target}, which objective {name!r} does not learn")
    if target == "class" and name in (OBJECTIVE_OF["multilabel"], OBJECTIVE_OF["regression"]):
        raise UserError(f"--objective {name} does not learn classes: it needs another --data.target")
    return name


def build_objective(config: Config, info: DataInfo, teacher: Teacher | None = None, steps: int = 1) -> Objective:
    """Build the objective of a run.

    Args:
        config: The run's config.
        info: The dataset.
        teacher: The teacher, for distillation.
        steps: Length of the run, for objectives with a schedule.

    Raises:
        UserError: If the objective does not exist, or does not fit the model, its arguments or the images.
    """
    name, distill = objective_name(config), config.distill
    classes = name in CLASSIFIERS
    model = build_model(config.model, config.model_args, info, classes=classes, drop_path=config.drop_path)
    given = parse_arguments("--objective-args", config.objective_args)
    from_run = dict(
        cross_entropy=config.loss or LOSSES[info.target][0],
        error=config.loss or LOSSES[info.target][0],
        class_weights=info.class_weights or None,
        label_smoothing=config.label_smoothing,
        auxiliary_weight=config.auxiliary_weight,
        teacher=teacher,
        temperature=distill.temperature,
        **({} if distill.alpha is None else {"alpha": distill.alpha}),
        hard=distill.hard,
        head=distill.predict,
        features=distill.features,
        feature_weight=distill.feature_weight,
        feature_dim=distill.feature_dim,
        mean=info.mean,
        std=info.std,
        steps=steps,
    )
    from_run = {key: value for key, value in from_run.items() if key in objective_arguments(name)}
    if clash := from_run.keys() & given.keys():
        raise UserError(f"--objective-args {min(clash)}: is set by another option or by the data")
    if "mean" in from_run and name not in CLASSIFIERS and not all(0 <= value <= 1 for value in info.mean):
        raise UserError(f"--objective {name} takes pixels in 0..1, but the images have a mean of {max(info.mean):g}")
    try:
        objective = create_objective(name, model, **from_run, **given)
        jax.eval_shape(objective.init, jax.random.key(0), info.images)
    except (ArithmeticError, MemoryError, TypeError, ValueError) as error:
        raise UserError(f"--objective {name}: {error}") from error
    if objective.constraint is not None and config.optim.name == "schedule_free_adamw":
        # which computes its average from the parameters as it left them
        raise UserError(
            f"--optim.name {config.optim.name}: not with {config.model}, whose weights each step normalises"
        )
    return objective


def load_weights(model: nn.Module, path: str, prefix: str | None, info: DataInfo, option: str) -> PyTree:
    """Load variables of `model` from a torch file.

    Args:
        model: The model.
        path: The torch file.
        prefix: Prefix of the model's keys in the file, which is removed; None: there is none.
        info: The dataset, whose images give the shapes.
        option: The command-line option that gave `path`, for messages.

    Raises:
        UserError: If the file cannot be read or does not fit the model.
    """
    try:
        return from_torch(model, select(path, prefix) if prefix else path, info.images)
    except PrefixError as error:
        prefix = f"{option.removesuffix('-from')}-prefix={error.prefixes[0]}"
        raise UserError(f"{option}: {error.found}: pass {prefix}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: {error}") from error
