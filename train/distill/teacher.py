"""Load a frozen teacher; it gets the student's images normalised and resized as in its own training."""

import dataclasses
import os
from pathlib import Path

import jax
from jaxtyping import PyTree

from train.build import DataInfo, build_model, load_weights
from train.commandline.arguments import parse_arguments
from train.config import Config
from train.data.fingerprint import Fingerprint, fingerprint_of_arrays
from train.errors import UserError, shortened
from train.pretrained import weights_file
from train.published import FROM_DATA, explained, is_published, say
from train.run.files import is_workdir
from train.run.stored import Run, load_run, model_variables
from vit_jax import load_pretrained
from vit_jax.objectives.distill import Teacher
from vit_jax.objectives.feature_distill import feature_dim
from vit_jax.objectives.protocol import Classifier
from vit_jax.pretrained import hub
from vit_jax.pretrained.tags import find_tag
from vit_jax.pretrained.torchvision.weights import WEIGHTS, preprocessing_of
from vit_jax.printable import counted

IMAGENET_CLASSES = tuple(map(str, range(1000)))  # of all weights that torchvision publishes
# Names in `jax.image.resize` of filters that published weights were trained with; JAX has no box and Hamming filters.
RESIZE = {"lanczos": "lanczos3", "box": "linear", "hamming": "linear"}


def load_teacher(config: Config, info: DataInfo) -> tuple[Teacher | None, PyTree]:
    """Load the teacher of `config.distill`, and its variables as {"teacher": ...}; (None, {}) without a teacher."""
    distill = config.distill
    if distill.teacher is None:
        return None, {}
    if is_workdir(distill.teacher):
        teacher, variables = _teacher_of_run(load_run(distill.teacher), config, info)
    elif distill.weights is None or distill.teacher.startswith("timm/"):
        teacher, variables = _published_teacher(config, info)
    else:
        path = weights_file(distill.teacher, distill.weights, "--distill.weights")
        teacher, variables = _teacher_of_weights(path, config, info)
    return teacher, {"teacher": variables}


def check_published(teacher: str) -> None:
    """Raises UserError unless `teacher` has the form of published weights: a name, or a folder. Nothing is fetched."""
    if not is_published(teacher):
        raise UserError(
            f"--distill.teacher {shortened(teacher)}: expected a workdir with checkpoints, published weights "
            "(timm/NAME.TAG, hf:ORG/REPO or a folder), or a model name together with --distill.weights"
        )
    with explained("--distill.teacher", teacher):
        if teacher.startswith("timm/"):
            find_tag(teacher)
        else:
            hub.parse(teacher)


def with_feature_dim(config: Config, teacher: Teacher | None, info: DataInfo) -> Config:
    """`config` with the width of the teacher's features, if they are distilled, for the projection of the student's.

    Raises UserError if the teacher has no such features, or they have another width than `config` says.
    """
    distill = config.distill
    if distill.features is None:
        return config
    try:
        found = feature_dim(teacher, distill.features, info.images)
    except ValueError as error:
        raise UserError(f"--distill.teacher {distill.teacher}: {error}. Try --distill.features=pooled") from error
    if distill.feature_dim not in (None, found):
        raise UserError(f"--distill.feature-dim is {distill.feature_dim}; the teacher's features have {found}")
    return dataclasses.replace(config, distill=dataclasses.replace(distill, feature_dim=found))


def fingerprint_of_weights(variables: PyTree) -> Fingerprint:
    """The fingerprint of a teacher's variables, to detect that the teacher was trained further or replaced."""
    fingerprint = fingerprint_of_arrays("", 1, jax.tree.leaves(variables))
    return fingerprint._replace(origin=f"weights {fingerprint.digest[:8]}")


def _teacher_of_run(run: Run, config: Config, info: DataInfo) -> tuple[Teacher, PyTree]:
    """Use a run of this trainer as teacher, with the mean, deviation and image size of its own training."""
    teacher = f"--distill.teacher {config.distill.teacher}"
    of_logits = config.distill.of_logits
    if of_logits and not isinstance(run.objective, Classifier):
        raise UserError(f"{teacher} is an encoder without classes: expected a classifier, or --distill.features")
    seen = _image_seen(config, info, own=run.info.image_shape[:2])
    if run.info.image_shape != seen:
        raise UserError(
            f"{teacher} was trained on images of {run.info.image_shape} and would get {seen}: "
            "--distill.image-size=own resizes them for it"
        )
    order = _class_order(teacher, run.info.class_names, info.class_names) if of_logits else None
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


def _published_teacher(config: Config, info: DataInfo) -> tuple[Teacher, PyTree]:
    """Use published weights, or a network of timm's with weights from a file, as teacher."""
    distill, name = config.distill, config.distill.teacher
    option = f"--distill.teacher {shortened(name)}"
    if distill.weights_prefix is not None:
        raise UserError(f"--distill.weights-prefix is not used with {option}: what wraps the network is recognised")
    arguments = parse_arguments("--distill.args", distill.args)
    if clash := arguments.keys() & set(FROM_DATA):
        raise UserError(f"--distill.args {min(clash)}: is set by the weights and --distill.image-size")
    arguments["num_classes"] = None if distill.of_logits else 0
    arguments["image_size"] = None if distill.image_size == "own" else distill.image_size or info.image_shape[:2]
    source = name
    if distill.weights is not None:
        source, arguments["architecture"] = os.path.expanduser(distill.weights), name
    try:
        network, variables, preprocess = load_pretrained(source, notify=say, **arguments)
    except (ImportError, OSError, TypeError, ValueError) as error:
        advice = ". See --distill.image-size" if "image_size" in str(error) else ""
        raise UserError(f"{option}: {error}{advice}") from error
    if network.channels != 3 or info.image_shape[2] not in (1, 3):
        raise UserError(
            f"{option} takes images of {counted(network.channels, 'channel')}; the data has {info.image_shape[2]}"
        )
    if distill.of_logits and network.num_classes != len(info.class_names):
        raise UserError(
            f"{option} has {network.num_classes:,} classes, and the data has {len(info.class_names):,}: expected the "
            "same, in the same order. --distill.features=tokens distils features instead, for any classes"
        )
    seen = preprocess.image_size
    if distill.weights is not None and "." in name:  # a tag says more than a file
        preprocess = find_tag(name).preprocessing
    method = RESIZE.get(preprocess.interpolation, preprocess.interpolation)
    return Teacher(network, preprocess.mean, preprocess.std, info.mean, info.std, seen, method), variables


def _teacher_of_weights(path: str, config: Config, info: DataInfo) -> tuple[Teacher, PyTree]:
    """Use a network with torch weights as teacher. Published weights get images preprocessed as in their training."""
    name = config.distill.teacher
    published = preprocessing_of(name, Path(path).name) if name in WEIGHTS else None
    seen = _image_seen(config, info, own=published.image_size if published else None)
    if not config.distill.of_logits and config.distill.weights in WEIGHTS.get(name, ()):
        info = info._replace(class_names=IMAGENET_CLASSES)
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
