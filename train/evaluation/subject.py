"""Load the run or the published weights that are evaluated, and the images to evaluate them on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from train.build import DataInfo
from train.config import Config, Data
from train.data import Dataset, load_dataset
from train.data_kinds import parse_kind
from train.errors import UserError, shortened
from train.prediction import check_classifies
from train.probing import data_of
from train.published import explained, is_published, say
from train.run.stored import Run, load_run
from vit_jax import load_pretrained
from vit_jax.objectives import create_objective
from vit_jax.pretrained.json_files import load_config
from vit_jax.pretrained.loading import find_source

if TYPE_CHECKING:
    from train.evaluate import Options

NAMED = 5  # classes named in a message


class Subject(NamedTuple):
    """A network and the images to evaluate it on.

    Attributes:
        run: The run, or published weights as a run.
        dataset: The dataset, whose evaluation split is the images to evaluate on.
        data: Its preprocessing.
        places: The run's number of each class, label or column of the dataset.
    """

    run: Run
    dataset: Dataset
    data: Data
    places: tuple[int, ...]

    def targets(self, targets: np.ndarray) -> np.ndarray:
        """Targets of the dataset, with the numbers of classes, or the columns, of the run."""
        places = np.array(self.places)
        return places[targets] if targets.ndim == 1 else targets[:, np.argsort(places)]


def load_subject(options: "Options") -> Subject:
    """Load what `options` name.

    Raises:
        UserError: If the options conflict, or something cannot be loaded, or the classes do not match.
    """
    if (options.workdir is None) == (options.model is None):
        raise UserError("expected either --workdir or --model")
    if options.model is None:
        run = load_run(options.workdir)
        check_classifies(run, options.workdir)
        data = data_of(run.config.data, options.data, run.info)
        data = dataclasses.replace(data, target=run.config.data.target)
        if options.data is not None:
            data = dataclasses.replace(data, label_columns=_columns(run, data))
    elif options.data is None:
        raise UserError(f"--model {shortened(options.model)} needs --data, the images to evaluate it on")
    else:
        run = published(options.model)
        data = dataclasses.replace(run.config.data, name=options.data)
    if data.target != "class" and "target" not in parse_kind(data.name)[0].options:
        predicted = {"multilabel": "any number of labels", "regression": "numbers"}[data.target]
        raise UserError(f"{data.name} has only classes, but the run predicts {predicted}")
    if options.dir is not None:
        data = dataclasses.replace(data, dir=options.dir)
    if options.split not in (None, "train"):
        data = dataclasses.replace(data, eval_split=options.split, split=None)
    dataset = load_dataset(data, trains=options.split == "train")
    if dataset.image_shape != run.info.image_shape:
        raise UserError(f"--data has images of {dataset.image_shape}: the network takes {run.info.image_shape}")
    if options.split == "train":
        dataset = dataclasses.replace(dataset, eval=dataset.train)
    if not run.info.class_names:
        outputs, names = run.objective.model.num_classes, dataset.class_names
        if len(names) != outputs:
            raise UserError(f"{data.name} has {len(names)} classes, but {shortened(options.model)} has {outputs}")
        run = dataclasses.replace(run, info=run.info._replace(class_names=names))
    return Subject(run, dataset, data, _places(dataset.class_names, run.info.class_names, data))


def _columns(run: Run, data: Data) -> tuple[str, ...]:
    """The columns that the run predicts, which another table must have too; () if `data` infers its label columns."""
    names, chosen = run.info.class_names, run.config.data.label_columns
    predicts = data.target == "regression" or (data.target == "multilabel" and set(chosen) == set(names))
    return names if predicts and "label_columns" in parse_kind(data.name)[0].options else ()


def published(source: str) -> Run:
    """Published weights as a run. Its `class_names` are empty if the weights do not have them."""
    if not is_published(source):
        raise UserError(f"--model {shortened(source)}: expected timm/NAME.TAG, hf:ORG/REPO or a folder with weights")
    with explained("--model", source):
        model, variables, preprocess = load_pretrained(source, notify=say)
        names = _label_names(load_config(find_source(source, None, lambda line: None).path) or {})
    if not model.num_classes:
        raise UserError(f"--model {shortened(source)}: these weights have no head; fine-tune them first")
    data = Data(
        image_size=preprocess.image_size,
        eval_crop=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        channels=3,
    )
    names = names if len(names) == model.num_classes else ()
    info = DataInfo(names, (*preprocess.image_size, 3), preprocess.mean, preprocess.std)
    variables = dict(variables)
    params = variables.pop("params")
    return Run(Config(model=source, data=data), info, create_objective("classify", model), params, variables)


def _label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of classes in a publisher's config.json, without transformers' placeholders; () if there are none."""
    names = config.get("label_names") or config.get("id2label") or ()
    if isinstance(names, dict):
        if not all(key.isdecimal() for key in names):
            return ()
        names = [names[key] for key in sorted(names, key=int)]
    names = tuple(map(str, names))
    return () if all(name.startswith("LABEL_") for name in names) else names


def _places(theirs: Sequence[str], ours: Sequence[str], data: Data) -> tuple[int, ...]:
    """The index of each class of the dataset among the network's. Raises UserError if they do not match."""
    index = {name: i for i, name in enumerate(ours)}
    if unknown := [name for name in theirs if name not in index]:
        kind = {"class": "classes", "multilabel": "labels", "regression": "columns"}[data.target]
        raise UserError(f"{data.name} has {kind} that the network does not know: {_some(unknown)}")
    if data.target != "class" and (missing := [name for name in ours if name not in theirs]):
        raise UserError(f"{data.name} lacks columns that the network predicts: {_some(missing)}")
    return tuple(index[name] for name in theirs)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shortened, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
