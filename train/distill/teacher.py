"""Load a frozen teacher; it gets the student's images normalised and resized as in its own training."""

from pathlib import Path

import jax
from jaxtyping import PyTree

from train.build import DataInfo, build_model, load_weights
from train.config import Config
from train.data.fingerprint import Fingerprint, fingerprint_of_arrays
from train.errors import UserError
from train.pretrained import weights_file
from train.run.files import is_workdir
from train.run.stored import Run, load_run, model_variables
from vit_jax.objectives.distill import Teacher
from vit_jax.objectives.protocol import Classifier
from vit_jax.pretrained.torchvision.weights import WEIGHTS, preprocessing_of


def load_teacher(config: Config, info: DataInfo) -> tuple[Teacher | None, PyTree]:
    """Load the teacher of `config.distill`, and its variables as {"teacher": ...}; (None, {}) without a teacher."""
    distill = config.distill
    if distill.teacher is None:
        return None, {}
    if is_workdir(distill.teacher):
        teacher, variables = _teacher_of_run(load_run(distill.teacher), config, info)
    else:  # `validate` has checked that there are weights
        path = weights_file(distill.teacher, distill.weights, "--distill.weights")
        teacher, variables = _teacher_of_weights(path, config, info)
    return teacher, {"teacher": variables}


def fingerprint_of_weights(variables: PyTree) -> Fingerprint:
    """The fingerprint of a teacher's variables, to detect that the teacher was trained further or replaced."""
    fingerprint = fingerprint_of_arrays("", 1, jax.tree.leaves(variables))
    return fingerprint._replace(origin=f"weights {fingerprint.digest[:8]}")


def _teacher_of_run(run: Run, config: Config, info: DataInfo) -> tuple[Teacher, PyTree]:
    """Use a run of this trainer as teacher, with the mean, deviation and image size of its own training."""
    teacher = f"--distill.teacher {config.distill.teacher}"
    if not isinstance(run.objective, Classifier):
        raise UserError(f"{teacher} is an encoder without classes: expected a classifier")
    seen = _image_seen(config, info, own=run.info.image_shape[:2])
    if run.info.image_shape != seen:
        raise UserError(
            f"{teacher} was trained on images of {run.info.image_shape} and would get {seen}: "
            "--distill.image-size=own resizes them for it"
        )
    order = _class_order(teacher, run.info.class_names, info.class_names)
    network, variables = model_variables(run)
    return Teacher(network, run.info.mean, run.info.std, info.mean, info.std, seen[:2], order=order), variables


def _class_order(teacher: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[int, ...] | None:
    """The teacher's index for each of the student's classes, matched by name; None if the order is the same.

    Raises UserError unless both have the same names.
    """
    if set(theirs) != set(ours):
        raise UserError(
            f"{teacher} has {len(theirs)} classes, and the data has {len(ours)}, with other names: "
            f"only the teacher has {_only(theirs, ours)}; only the data has {_only(ours, theirs)}"
        )
    return None if theirs == ours else tuple(theirs.index(name) for name in ours)


def _only(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Up to three of the names that are missing in `others`."""
    found = sorted(set(names) - set(others))
    return ", ".join((*found[:3], *(["..."] if found[3:] else []))) or "none"


def _teacher_of_weights(path: str, config: Config, info: DataInfo) -> tuple[Teacher, PyTree]:
    """Use a network with torch weights as teacher. Published weights get images preprocessed as in their training."""
    name = config.distill.teacher
    published = preprocessing_of(name, Path(path).name) if name in WEIGHTS else None
    seen = _image_seen(config, info, own=published.image_size if published else None)
    network = build_model(name, config.distill.args, info._replace(image_shape=seen), option="--distill.teacher")
    prefix = config.distill.weights_prefix
    variables = load_weights(network, path, prefix, info._replace(image_shape=seen), "--distill.weights")
    if published is None:
        return Teacher(network, info.mean, info.std, info.mean, info.std, seen[:2]), variables
    own = (published.mean, published.std)
    return Teacher(network, *own, info.mean, info.std, seen[:2], published.interpolation), variables


def _image_seen(config: Config, info: DataInfo, own: tuple[int, int] | None) -> tuple[int, int, int]:
    """Height, width and channels of the teacher's input. Raises UserError if "own" is configured and `own` is None."""
    height, width, channels = info.image_shape
    size = config.distill.image_size or (height, width)
    if size == "own" and own is None:
        raise UserError(f"--distill.image-size own: {config.distill.teacher} has no known size: pass height and width")
    return (*(own if size == "own" else size), channels)
