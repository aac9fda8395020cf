"""A dataset that TFDS has prepared as ArrayRecord, read without TensorFlow and without any code of the dataset's own.

TFDS imports every Python class that the dataset's features.json names, so we read that file first.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from train.config import Data, UserError
from train.data.fingerprint import Fingerprint, digest_of
from train.data.sources import HELD_OUT, Parts, choose_split, held_out_note
from train.data.transforms import Unreadable, decode, image_channels

NAME = re.compile(r"(?P<name>\w+)(/(?P<config>(?!\.)[\w+.-]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?", re.ASCII)
VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){2}", re.ASCII)
SAMPLE = 1000  # records of a split whose labels are read before training; reading an image checks its own
MOST_CLASSES = 1_000_000
UNLABELLED = -1  # TFDS's label where there is none


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Records of encoded images, decoded when asked for. Without a `label_key` every label is 0."""

    records: Any  # serialized tf.train.Example messages
    image_key: str
    label_key: str | None
    classes: int
    channels: int
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        features = self._features(index)
        label = 0 if self.label_key is None else self.check_label(self._value(features, self.label_key, index), index)
        image = self._value(features, self.image_key, index)
        return decode(io.BytesIO(image), self.channels, self.name_of(index)), label

    def name_of(self, index: int) -> str:
        return f"{index} of {self.name}"

    def encoded_image(self, index: int) -> bytes:
        """The image as it is stored. Raises Unreadable."""
        return self._value(self._features(index), self.image_key, index)

    def stored_label(self, index: int) -> int | float:
        """The label as it is stored, which may be none of the classes. Raises Unreadable."""
        return self._value(self._features(index), self.label_key, index)

    def check_label(self, label: int | float, index: int) -> int:
        """The `label` of an example, if it is one of the classes; else raises UserError."""
        if not (0 <= label < self.classes and label == int(label)):
            raise UserError(f"the label of {self.name_of(index)} is {label}: expected 0 to {self.classes - 1}")
        return int(label)

    def _features(self, index: int) -> Mapping[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            return tf_example_pb2.Example.FromString(self.records[index]).features.feature
        except Exception as error:  # ArrayRecord and protobuf raise RuntimeError, IndexError, DecodeError and more
            raise Unreadable(f"cannot read the record {self.name_of(index)}: {_one_line(error)}") from error

    def _value(self, features: Mapping[str, Any], key: str, index: int) -> Any:
        """The single value of a feature."""
        kind = features[key].WhichOneof("kind") if key in features else None
        values = getattr(features[key], kind).value if kind else ()
        if len(values) != 1 or isinstance(values[0], bytes) != (key == self.image_key):
            raise Unreadable(f"the record {self.name_of(index)} is damaged: expected one value of {key!r}")
        return values[0]


def open_tfds(name: str, config: Data, *, labels: bool = True) -> Parts:
    """The dataset `name` of TFDS, such as "mnist", "imagenet_resized/8x8" or "mnist:3.0.1", as prepared on this disk.

    Raises UserError if it is not prepared, damaged, not for image classification, or has `labels` that are no classes.
    """
    import tensorflow_datasets as tfds  # slow to import

    data_dir = Path(os.path.expanduser(config.dir or tfds.core.constants.DATA_DIR))
    if not NAME.fullmatch(name):
        raise UserError(f"unknown data {config.name!r}: expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0")
    folder = _find(tfds, name, data_dir)
    if folder is None:
        raise UserError(f"{config.name} is not prepared in {data_dir}: {_how_to_prepare(name, data_dir)}")
    _check_files(folder)
    _check_classes(tfds, folder)
    unreadable = f"{config.name}: TFDS cannot read {folder}"
    with _one_line_errors(unreadable):
        builder = tfds.builder_from_directory(folder)
        info = builder.info
        features = dict(info.features.items())
        image_key, label_key = (info.supervised_keys or ("image", "label"))[:2]
        image, label = features.get(image_key), features.get(label_key)
        formats = [form.value for form in info.available_file_formats()]
    if "array_record" not in formats:
        elsewhere = data_dir / "array_record"
        raise UserError(
            f"{config.name} is prepared as {', '.join(formats)}, not array_record: {_how_to_prepare(name, elsewhere)} "
            f"Then pass --data.dir={elsewhere}"
        )
    if "train" not in info.splits:
        raise UserError(f"{config.name} has no split 'train'; it has: {', '.join(info.splits)}")
    is_labelled = isinstance(label, tfds.features.ClassLabel)
    if not isinstance(image, tfds.features.Image) or not (is_labelled or not labels):
        raise UserError(f"{config.name} is not for image classification: its features are {', '.join(features)}")
    class_names = _class_names(label, label_key, folder) if is_labelled else ()

    eval_split = choose_split(config, list(info.splits), required=labels)
    share = round(100 * HELD_OUT)
    names = ("train", eval_split) if eval_split else (f"train[:-{share}%]", f"train[-{share}%:]")
    for split in {"train", eval_split} - {None}:
        with _one_line_errors(unreadable):
            _check_shards(info.splits[split], folder)
    with _one_line_errors(unreadable):
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        parts = [builder.as_data_source(n, file_format="array_record", deserialize_method=raw) for n in names]
    used_key = label_key if labels else None
    sources = [
        TfdsSource(part.data_source, image_key, used_key, len(class_names), 0, f"{config.name} {split}")
        for part, split in zip(parts, names, strict=True)
    ]
    channels = _channels(image, sources[0])
    sources = [dataclasses.replace(source, channels=channels) for source in sources]
    if labels:
        for source, split in zip(sources, names, strict=True):
            _check_labels(source, split, config)
    fingerprints = {
        part: Fingerprint(f"{info.full_name} {split}", len(source), _digest(info, split), {}, ())
        for part, source, split in zip(("train", "eval"), sources, names, strict=True)
    }
    notes = () if eval_split else (held_out_note(len(sources[1])),)
    return Parts(*sources, class_names, notes, fingerprints)


def _find(tfds: ModuleType, name: str, data_dir: Path) -> Path | None:
    """The folder of a prepared dataset: data_dir/NAME[/CONFIG]/VERSION, of the highest version that is meant.

    TFDS's own search would import the Python module of a dataset to learn its default configuration.
    """
    parsed = NAME.fullmatch(name)
    folder = data_dir / tfds.core.naming.camelcase_to_snakecase(parsed["name"])
    if parsed["config"]:
        folder /= parsed["config"]
    elif not _versions(folder) and folder.is_dir():
        configs = sorted(child.name for child in folder.iterdir() if _versions(child))
        if len(configs) > 1:
            raise UserError(f"tfds:{name} has several configurations: expected one of {', '.join(configs)} after a /")
        folder = folder.joinpath(*configs)
    wanted = (parsed["version"] or "*.*.*").split(".")
    fits = lambda version: all(w in ("*", v) for w, v in zip(wanted, version.split("."), strict=True))
    versions = [version for version in _versions(folder) if fits(version)]
    return folder / versions[-1] if versions else None


def _versions(folder: Path) -> list[str]:
    """Names of the versions in a folder, in ascending order."""
    if not folder.is_dir():
        return []
    found = [child.name for child in folder.iterdir() if VERSION.fullmatch(child.name) and child.is_dir()]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def _how_to_prepare(name: str, data_dir: Path) -> str:
    """A command that prepares a dataset. TFDS's own, `tfds build`, needs Apache Beam as well."""
    arguments = f"{name!r}, data_dir={str(data_dir)!r}, file_format='array_record'"
    return (
        "to prepare it, in an environment with TensorFlow (pip install tensorflow tensorflow-datasets "
        "importlib_resources), run python -c "
        f'"import tensorflow_datasets as tfds; tfds.builder({arguments}).download_and_prepare()"'
    )


def _check_files(folder: Path) -> None:
    """Raises UserError for what is neither file nor folder: to open a named pipe would wait for ever."""
    for path in folder.iterdir():
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is no regular file")


def _check_classes(tfds: ModuleType, folder: Path) -> None:
    """Raises UserError if the dataset names a Python class that is not one of TFDS's own features."""
    features, info = (_read_json(folder / name) for name in ("features.json", "dataset_info.json"))
    base = tfds.features.FeatureConnector
    classes = [c for c in vars(tfds.features).values() if isinstance(c, type) and issubclass(c, base)]
    own = {f"{c.__module__}.{c.__name__}" for c in classes} | {alias for c in classes for alias in c.ALIASES}
    for path, part in (("features.json", features), ("dataset_info.json", info.get("features"))):
        for name in _named_classes(part):
            if name not in own:
                raise UserError(
                    f"{folder / path} names the class {name[:100]!r}: only features of TFDS itself are read, "
                    "as others would run Python code that came with the data"
                )


def _named_classes(node: Any) -> Iterator[str]:
    """Every class that is named somewhere in the JSON of features, in any form that TFDS reads."""
    left = [node]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            names = map(node.get, ("pythonClassName", "python_class_name", "type"))
            yield from (name for name in names if isinstance(name, str))
            left += node.values()
        elif isinstance(node, list):
            left += node
        elif isinstance(node, str):  # some features hold others as JSON within a string
            with contextlib.suppress(ValueError):
                left.append(json.loads(node))


def _read_json(path: Path) -> dict:
    with _one_line_errors(f"{path} cannot be read"):
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, not {type(content).__name__}")
        return content


def _class_names(label: Any, key: str, folder: Path) -> tuple[str, ...]:
    """The names of the classes, or their numbers where there are none. TFDS ignores a file that does not fit."""
    count, path = label.num_classes or 0, folder / f"{key.replace('/', '.')}.labels.txt"
    if not 0 < count <= MOST_CLASSES:
        raise UserError(f"{folder / 'features.json'} says {count} classes: expected 1 to {MOST_CLASSES:,}")
    if not path.exists():
        return tuple(map(str, range(count)))
    with _one_line_errors(f"{path} cannot be read"):
        names = tuple(line.strip() for line in path.read_text().split("\n") if line.strip())
    if len(set(names)) != count or len(names) != count:
        raise UserError(f"{path} is damaged: it has {len(set(names))} different names, of {count} classes")
    return names


def _check_shards(split: Any, folder: Path) -> None:
    """Raises UserError for files of a split that are missing, not below `folder`, or too short."""
    if split.num_examples < 1:
        raise UserError(f"split {split.name!r} of {folder} is empty")
    for shard in split.file_instructions:
        path = Path(shard.filename)
        if ".." in path.parts or not path.is_relative_to(folder) or not path.is_file():
            raise UserError(f"{path} is missing: TFDS has not finished preparing {folder}, or it is damaged")
        if shard.examples_in_shard > path.stat().st_size:
            raise UserError(f"{path} is damaged: it cannot hold {shard.examples_in_shard:,} examples")


def _channels(image: Any, source: TfdsSource) -> int:
    """As declared, or else 3 if any of a sample of images has colours."""
    if declared := image.shape[-1]:
        return 1 if declared == 1 else 3
    kinds = set()
    for index in _sample(len(source), 100):
        with contextlib.suppress(Unreadable):
            kinds.add(image_channels(io.BytesIO(source.encoded_image(index)), source.name_of(index)))
    return max(kinds, default=3)


def _check_labels(source: TfdsSource, split: str, config: Data) -> None:
    """Raises UserError if a sample of labels has some that are no classes."""
    labels = {}
    for index in _sample(len(source), SAMPLE):
        with contextlib.suppress(Unreadable):
            labels[index] = source.stored_label(index)
    if labels and set(labels.values()) == {UNLABELLED}:
        raise UserError(
            f"split {split!r} of {config.name} has no labels (all are {UNLABELLED}): "
            "pass another as --data.eval-split, or an objective without labels"
        )
    for index, label in labels.items():
        source.check_label(label, index)


def _sample(count: int, most: int) -> Iterator[int]:
    """Up to `most` evenly spaced indices."""
    most = min(count, most)
    return (i * count // most for i in range(most))


def _digest(info: Any, split: str) -> str:
    """Of what TFDS knows of a split without reading it."""
    whole = info.splits[split.partition("[")[0]]
    return digest_of(str(part).encode() for part in (info.full_name, split, whole.shard_lengths, whole.num_bytes))


@contextlib.contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Turns any error into a UserError that begins with `what`: TFDS raises all kinds for damaged files."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
