"""Describe a run for the user before it starts."""

import dataclasses

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from train.build import model_name, objective_name
from train.config import Config, Data, Distill, Optim
from train.data import Dataset
from train.run.stored import InitReport


def describe(
    config: Config,
    dataset: Dataset,
    params: PyTree,
    trained: PyTree,
    mesh: Mesh,
    total: int,
    eval_every: int,
    init: InitReport | None,
) -> list[str]:
    """Describe a run.

    Args:
        config: Config of the run.
        dataset: The data.
        params: The parameters, which may be abstract.
        trained: The part of them that is trained.
        mesh: The devices.
        total: Number of steps.
        eval_every: Number of steps between evaluations.
        init: Report on initial weights, if any.

    Returns:
        Lines of "name  value".
    """
    parameters, changing = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, trained))
    height, width, channels = dataset.image_shape
    depth = "" if dataset.pixels == "uint8" else f" {dataset.pixels}"
    count = len(dataset.class_names)
    kind = {"class": "classes", "multilabel": "labels", "regression": "numbers"}[config.data.target]
    classes = f"{count} {kind if count > 1 else kind.removesuffix('s')}" if count else "no labels"
    device = jax.devices()[0]
    passes = total * config.batch_size / config.augment.repeats / len(dataset.train)
    rows = [
        ("model", f"{' '.join((model_name(config.model), *config.model_args))}, {parameters:,} parameters"),
        *([("trained", f"{changing:,} parameters ({changing / parameters:.2%})")] if changing < parameters else []),
        (
            "data",
            f"{config.data.name}: {len(dataset.train):,} training and {len(dataset.eval):,} evaluation images, "
            f"{height}x{width}x{channels}{depth}, {classes}",
        ),
        *(("", note) for note in dataset.notes),
        *(_preprocessing(config.data) if config.init or config.init_from else []),
        *_initial(init),
        ("objective", " ".join((objective_name(config), *config.objective_args))),
        ("augment", _changed(config.augment) or "nothing"),
        *_repeated(config.augment.repeats, len(dataset.train)),
        ("teacher", _taught(config.distill)),
        (
            "devices",
            f"{mesh.size} x {device.device_kind} ({device.platform}), mesh "
            + ",".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1 or axis == "data"),
        ),
        ("dtype", config.dtype),
        ("optimizer", optimizer_line(config.optim, config.batch_size)),
        (
            "steps",
            f"{total:,} of {config.batch_size} images, {passes:.1f} passes over the training images, evaluation every "
            f"{eval_every:,} steps",
        ),
    ]
    if config.distill.teacher is None:
        rows = [row for row in rows if row[0] != "teacher"]
    return [f"{name:<12} {value}" for name, value in rows]


def optimizer_line(optim: Optim, batch_size: int) -> str:
    """The optimizer, its peak learning rate and how that was scaled, and the schedule."""
    name = f"cautious {optim.name}" if optim.cautious else optim.name
    rate = f"{optim.for_batches_of(batch_size).lr:g}"
    if optim.lr_batch_size is not None:
        rate += f" ({optim.lr:g} x {batch_size} / {optim.lr_batch_size} images)"
    return f"{name}, learning rate {rate}, {optim.shape}"


def _preprocessing(data: Data) -> list[tuple[str, str]]:
    """The row about images that are prepared as published weights expect them."""
    if None in (data.eval_crop, data.crop_mode, data.interpolation, data.mean, data.std):
        return []
    three = lambda values: " ".join(f"{value:.3g}" for value in values)
    crop = f"{data.crop_mode} crop of {data.eval_crop:.1%}, {data.interpolation}"
    return [("images", f"as the weights expect: {crop}, mean {three(data.mean)}, deviation {three(data.std)}")]


def _initial(init: InitReport | None) -> list[tuple[str, str]]:
    """Rows about the initial weights: what was loaded, resampled, left random and left out."""
    if init is None:
        return []
    counts = [
        f"{len(init.loaded)} variables loaded",
        f"{len(init.resampled)} resampled{_some(init.resampled)}",
        f"{len(init.random)} left random{_some(init.random)}",
        *([f"{len(init.left_out)} of the source left out{_some(init.left_out)}"] if init.left_out else []),
    ]
    rows = [("start from", f"{init.source}: {', '.join(counts)}")]
    if init.missing:
        rows.append(("warning", f"{len(init.missing)} variables outside of the head stay random{_some(init.missing)}"))
    return rows


def _some(names: tuple[str, ...], most: int = 6) -> str:
    """The first `most` names in parentheses."""
    others = [f"and {len(names) - most} more"] if len(names) > most else []
    return f" ({', '.join([*names[:most], *others])})" if names else ""


def _repeated(repeats: int, images: int) -> list[tuple[str, str]]:
    """The row about repeated augmentation."""
    if repeats == 1:
        return []
    different = -(-images // repeats)
    return [
        ("", f"{repeats} copies of each image, so that {images:,} images in training are {different:,} different ones")
    ]


def _taught(distill: Distill) -> str:
    """The teacher, and what is distilled from it."""
    kinds = [("hard" if distill.hard else "soft", distill.of_logits)]
    kinds += [(f"features ({distill.features}, weight {distill.feature_weight:g})", distill.features is not None)]
    return f"{distill.teacher}, {' and '.join(kind for kind, is_on in kinds if is_on)}"


def _changed(part) -> str:
    """The fields of a dataclass that differ from its defaults."""
    default = type(part)()
    names = [f.name for f in dataclasses.fields(part) if getattr(part, f.name) != getattr(default, f.name)]
    return ", ".join(f"{name} {getattr(part, name)}" for name in names)
