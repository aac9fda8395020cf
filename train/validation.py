"""Validate a config, as far as possible without data and devices.

`check_options` imports nothing slow, so that wrong options are reported immediately.
"""

import dataclasses
import re
from typing import Any

from train.class_weights import check_class_weights
from train.commandline.arguments import parse_arguments
from train.commandline.freezing import check_partial_options
from train.commandline.optimizer import check_optim_options
from train.commandline.ranges import check_values
from train.config import LOSSES, Augment, Config, Distill
from train.data_kinds import check_data
from train.errors import UserError, shortened
from train.recipes import base_config
from vit_jax.registry import unknown

# Options that only some objectives use, and the names of the objective's argument.
OF_LABELS = {
    "loss": ("cross_entropy", "error"),
    "label_smoothing": ("label_smoothing",),
    "class_weights": ("class_weights",),
    "auxiliary_weight": ("auxiliary_weight",),
}


def validate(config: Config) -> None:
    """Check everything that can be checked before data is read.

    Args:
        config: Config of a run or of a plan. `workdir` may be None.

    Raises:
        UserError: If `check_options` fails, or if a model, preset, objective, argument, file or folder that the config
            names does not exist or cannot be used.
    """
    from train.run.trackers import check_tracker  # here, because it imports JAX

    check_options(config)
    check_tracker(config.track)
    if config.workdir is not None:
        _check_workdir(config.workdir)
    _check_objective(config)
    _check_networks(config)
    _check_views(config)


def check_options(config: Config) -> None:
    """Raises UserError for a value out of range, and for options that conflict."""
    check_values(config)
    check_data(config.data)
    _check_loss(config)
    _check_distill_options(config)
    for option, prefix, of, file in (
        ("init-prefix", config.init_prefix, "init", config.init or config.init_from),
        ("distill.weights-prefix", config.distill.weights_prefix, "distill.weights", config.distill.weights),
    ):
        if prefix is not None and file is None:
            raise UserError(f"--{option} {shortened(prefix)} needs --{of}, which is not given")
    if config.extend_lr is not None and config.extend != "constant":
        raise UserError(f"--extend-lr {config.extend_lr:g} needs --extend=constant")
    check_partial_options(config)
    check_optim_options(config.optim)
    _check_processes(config)


def _check_loss(config: Config) -> None:
    target, losses = config.data.target, LOSSES[config.data.target]
    if config.loss not in (None, *losses):
        expected = " or ".join(losses)
        raise UserError(f"--loss is {config.loss}; with --data.target={target} it must be {expected}")
    if config.data.sampler == "balanced" and target != "class":
        raise UserError(f"--data.sampler is balanced; with --data.target={target} there are no classes to balance")
    if config.augment.mixed_targets == "both" and (config.loss or losses[0]) != "sigmoid":
        raise UserError("--augment.mixed-targets is both, which needs --loss=sigmoid")
    if config.class_weights:
        check_class_weights(config.class_weights, target)
        if config.loss == "sigmoid" and target == "class":
            raise UserError("--class-weights is set with --loss=sigmoid; it is used with softmax cross-entropy")


def _check_distill_options(config: Config) -> None:
    distill = config.distill
    changed = [field.name for field in dataclasses.fields(Distill) if getattr(distill, field.name) != field.default]
    if distill.teacher is None:
        unused, why = set(changed) - {"views"}, "is set without --distill.teacher"
    elif distill.features is None:
        unused, why = {"feature_weight", "feature_dim"}, "is set without --distill.features"
    elif not distill.of_logits:
        unused, why = {"hard", "temperature", "predict"}, "is for logits, which --distill.features leaves out: set "
        why += "--distill.alpha"
    else:
        unused, why = set(), ""
    for name in changed:
        if name in unused:
            raise UserError(f"--distill.{name.replace('_', '-')} {why}")
    if distill.features is not None and distill.cache:
        raise UserError("--distill.cache keeps logits; it cannot be used with --distill.features")


def _check_processes(config: Config) -> None:
    addressed = config.coordinator not in (None, "auto")
    if (config.processes is not None, config.process is not None) != (addressed, addressed):
        raise UserError("expected all of --coordinator HOST:PORT, --processes and --process, or none of them")
    if not addressed:
        return
    address = re.fullmatch(r"([\w.-]+|\[[\da-fA-F:.]+\]):([0-9]{1,5})", config.coordinator)
    if not address or not 1 <= int(address[2]) <= 65535:
        given = shortened(config.coordinator)
        raise UserError(f"--coordinator is {given}; it must be HOST:PORT with a port from 1 to 65535, or auto")
    if config.process >= config.processes:
        raise UserError(f"--process is {config.process}; it must be from 0 to --processes - 1 = {config.processes - 1}")


def _check_workdir(workdir: str) -> None:
    """Raises UserError if the workdir cannot be reached or written to, or Orbax cannot handle its name."""
    from train.run.files import check_orbax_name, check_writable, reachable  # here, because it imports JAX

    reachable(workdir)
    check_writable(workdir)
    check_orbax_name(workdir)


def _check_objective(config: Config) -> None:
    """Check the objective, its arguments, and that it uses every option on labels that is set."""
    from train.build import CLASSIFIERS, objective_name
    from vit_jax.objectives import objective_arguments

    objective = objective_name(config)
    given = parse_arguments("--objective-args", config.objective_args)
    accepted = objective_arguments(objective)
    _check_keys(f"--objective {objective}", f"objective {objective!r}", given, accepted)
    recipe = base_config(config.recipe, config.model, config.data.name)  # may set options that are not used
    for field, arguments in OF_LABELS.items():
        value = getattr(config, field)
        if not set(arguments) & set(accepted) and value not in (getattr(Config, field), getattr(recipe, field)):
            raise UserError(f"--{field.replace('_', '-')} is {value}, but objective {objective!r} does not use it")
    if objective not in CLASSIFIERS and ("backbone" in config.freeze or config.train_only):
        option = "--freeze backbone" if config.freeze else f"--train-only {config.train_only}"
        raise UserError(f"{option}: objective {objective!r} pretrains the backbone and has no head")


def _check_networks(config: Config) -> None:
    """Check the model, the teacher, their arguments, and the files of their weights."""
    from train.build import ARGUMENTS, model_name, network_arguments
    from train.distill.teacher import check_published
    from train.pretrained import check_weights
    from train.published import is_published
    from train.run.files import is_workdir, reachable
    from vit_jax.pretrained.torchvision.weights import WEIGHTS

    teacher, weights = config.distill.teacher, config.distill.weights
    networks = [("--model", config.model, config.model_args)]
    teacher_is_named = teacher is not None and not is_workdir(teacher)
    if teacher_is_named and weights is None:
        check_published(teacher)
        teacher_is_named = False
    if teacher_is_named:
        architecture = teacher.partition(".")[0] if teacher.startswith("timm/") else teacher  # without the tag
        networks.append(("--distill.teacher", architecture, config.distill.args))
    for option, name, pairs in networks:
        given, accepted = parse_arguments(ARGUMENTS[option], pairs), network_arguments(name, option)
        _check_keys(f"{option} {model_name(name)}", f"model {name.partition('/')[0]!r}", given, accepted)
    if config.init is not None and config.init_from is not None:
        raise UserError("--init and --init-from both name initial weights: pass one of them")
    for option, source in (("--init", config.init), ("--init-from", config.init_from)):
        named = source is None or is_published(source) or source in WEIGHTS.get(config.model, ())
        if not named and not reachable(source).exists():
            expected = "timm/NAME.TAG, hf:ORG/REPO, a file or a folder"
            raise UserError(f"{option} {shortened(source)} does not exist: expected {expected}")
    if teacher_is_named:
        check_weights(teacher, weights, "--distill.weights")


def _check_keys(where: str, what: str, given: dict[str, Any], accepted: list[str]) -> None:
    for key in given:
        if key not in accepted:
            raise UserError(f"{where}: {unknown(f'argument of {what}', key, accepted)}")


def _check_views(config: Config) -> None:
    """Check that --distill.views and --distill.cache fit the augmentation."""
    distill, augment = config.distill, config.augment
    if distill.views and (augment.mixup or augment.cutmix):
        raise UserError("--distill.views excludes mixup and CutMix: set --augment.mixup and --augment.cutmix to 0")
    if 0 < distill.views < augment.repeats:
        raise UserError(
            f"--augment.repeats is {augment.repeats} with --distill.views {distill.views}: expected at most as many "
            "copies of an image as there are views"
        )
    crops = config.data.min_crop < 1 or config.data.random_crop == "simple"
    if distill.cache and not distill.views and (augment != Augment() or crops):
        raise UserError(
            "--distill.cache needs the same images in every epoch: set --distill.views, "
            "or switch off the augmentation (--augment.*, --data.min-crop and --data.random-crop)"
        )
