"""The teacher of a run: frozen, and shown the student's images as it learned to see images."""

from pathlib import Path

from jaxtyping import PyTree

from train.build import DataInfo, Run, build_model, is_workdir, load_run, load_weights, model_variables
from train.config import Config, UserError
from train.pretrained import weights_file
from vit_jax.objectives.distill import Teacher
from vit_jax.teachers.weights import WEIGHTS, preprocessing_of


def load_teacher(config: Config, info: DataInfo) -> tuple[Teacher | None, PyTree]:
    """The teacher of `config.distill` and its frozen variables; (None, {}) where there is none."""
    distill = config.distill
    if distill.teacher is None:
        return None, {}
    if is_workdir(distill.teacher):
        teacher, variables = _teacher_of_run(load_run(distill.teacher), config, info)
    elif distill.weights is None:
        raise UserError(
            f"--distill.teacher {distill.teacher}: expected a workdir with checkpoints, "
            "or a model name together with --distill.weights"
        )
    else:
        teacher, variables = _teacher_of_weights(weights_file(distill.teacher, distill.weights), config, info)
    return teacher, {"teacher": variables}


def _teacher_of_run(run: Run, config: Config, info: DataInfo) -> tuple[Teacher, PyTree]:
    """A run of this trainer as teacher, which sees images as it did when it learned."""
    seen = _image_seen(config, info, own=run.info.image_shape[:2])
    if len(run.info.class_names) != len(info.class_names) or run.info.image_shape != seen:
        raise UserError(
            f"--distill.teacher {config.distill.teacher} knows {len(run.info.class_names)} classes of images "
            f"{run.info.image_shape}: it would see {seen} of {len(info.class_names)} classes; "
            "--distill.image-size=own resizes them for it"
        )
    network, variables = model_variables(run)
    return Teacher(network, run.info.mean, run.info.std, info.mean, info.std, seen[:2]), variables


def _teacher_of_weights(path: str, config: Config, info: DataInfo) -> tuple[Teacher, PyTree]:
    """A network with torch weights as teacher; torchvision's see images as those weights were trained with."""
    name = config.distill.teacher
    published = preprocessing_of(name, Path(path).name) if name in WEIGHTS else None
    seen = _image_seen(config, info, own=(published.crop, published.crop) if published else None)
    network = build_model(name, config.distill.args, info._replace(image_shape=seen), option="--distill.teacher")
    prefix = config.distill.weights_prefix
    variables = load_weights(network, path, prefix, info._replace(image_shape=seen), "--distill.weights")
    if published is None:
        return Teacher(network, info.mean, info.std, info.mean, info.std, seen[:2]), variables
    own = (published.mean, published.std)
    return Teacher(network, *own, info.mean, info.std, seen[:2], published.interpolation), variables


def _image_seen(config: Config, info: DataInfo, own: tuple[int, int] | None) -> tuple[int, int, int]:
    """Height, width and channels of what a teacher sees. Raises UserError for an `own` size that nobody knows."""
    height, width, channels = info.image_shape
    size = config.distill.image_size or (height, width)
    if size == "own" and own is None:
        raise UserError(f"--distill.image-size own: {config.distill.teacher} has none that is known; give two numbers")
    return (*(own if size == "own" else size), channels)
