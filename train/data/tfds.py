"""Read a dataset that TFDS has prepared as ArrayRecord, without TensorFlow and without Python code of the dataset."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from train.config import Data
from train.data.fingerprint import Fingerprint, digest_of
from train.data.prepared import (
    check_metadata,
    check_shards,
    find_prepared,
    how_to_prepare,
    read_class_names,
)
from train.data.sources import DecodingSource, Parts, evenly_spaced
from train.data.splits import HELD_OUT, choose_split, count_images, divided_note, held_out_note
from train.data.transforms import Unreadable, image_form
from train.errors import UserError, one_line, one_line_errors
from vit_jax.images import Form

SAMPLE = 1000  # records whose labels are checked before training; the others are checked when they are read
RGB = Form(3, "uint8")
UNLABELLED = -1  # TFDS's value for a missing label


@dataclasses.dataclass(frozen=True)
class TfdsSource(DecodingSource):
    """Records of encoded images, decoded on access. Without a `label_key` every label is 0."""

    records: Any  # serialized tf.train.Example messages
    image_key: str
    label_key: str | None
    classes: int
    form: Form
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def stored(self, index: int) -> tuple[io.BytesIO, int]:
        features = self._features(index)
        label = 0 if self.label_key is None else self.check_label(self._value(features, self.label_key, index), index)
        return io.BytesIO(self._value(features, self.image_key, index)), label

    def name_of(self, index: int) -> str:
        return f"{index} of {self.name}"

    def encoded_image(self, index: int) -> bytes:
        """The image as it is stored. Raises Unreadable."""
        return self._value(self._features(index), self.image_key, index)

    def stored_label(self, index: int) -> int | float:
        """The stored label, which may be invalid. Raises Unreadable."""
        return self._value(self._features(index), self.label_key, index)

    def check_label(self, label: int | float, index: int) -> int:
        """Convert the `label` of example `index` to an int. Raises UserError if it is not one of the classes."""
        if not (0 <= label < self.classes and label == int(label)):
            raise UserError(f"the label of {self.name_of(index)} is {label}: expected 0 to {self.classes - 1}")
        return int(label)

    def _features(self, index: int) -> Mapping[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            return tf_example_pb2.Example.FromString(self.records[index]).features.feature
        except Exception as error:  # ArrayRecord and protobuf raise RuntimeError, IndexError, DecodeError and more
            raise Unreadable(f"cannot read the record {self.name_of(index)}: {one_line(error)}") from error

    def _value(self, features: Mapping[str, Any], key: str, index: int) -> Any:
        """The single value of a feature."""
        kind = features[key].WhichOneof("kind") if key in features else None
        values = getattr(features[key], kind).value if kind else ()
        if len(values) != 1 or isinstance(values[0], bytes) != (key == self.image_key):
            raise Unreadable(f"the record {self.name_of(index)} is damaged: expected one value of {key!r}")
        return values[0]


class Described(NamedTuple):
    """Metadata of a dataset: everything but its records."""

    builder: Any
    image: Any  # tfds.features.Image
    image_key: str
    label_key: str
    class_names: tuple[str, ...]


def open_tfds(name: str, config: Data, *, labels: bool = True) -> Parts:
    """Open a prepared TFDS dataset.

    Args:
        name: Name of the dataset, such as "mnist", "imagenet_resized/8x8" or "mnist:3.0.1".
        config: Its folder and evaluation split.
        labels: Whether labels are needed.

    Raises:
        UserError: If the dataset is not prepared, is damaged, is not for image classification, or has invalid labels.
    """
    import tensorflow_datasets as tfds  # slow to import

    data_dir = Path(os.path.expanduser(config.dir or tfds.core.constants.DATA_DIR))
    folder = find_prepared(tfds, name, data_dir)
    check_metadata(tfds, folder)
    found = _described(tfds, folder, config, labels)
    info = found.builder.info
    if "array_record" not in (formats := [form.value for form in info.available_file_formats()]):
        elsewhere = data_dir / "array_record"
        raise UserError(
            f"{config.name} is prepared as {', '.join(formats)}, not array_record: {how_to_prepare(name, elsewhere)} "
            f"prepares it again; then pass --data.dir={elsewhere}"
        )

    splits, notes = _splits(info, config, labels)
    label_key = found.label_key if labels else None
    sources = [
        TfdsSource(records, found.image_key, label_key, len(found.class_names), RGB, f"{config.name} {split}")
        for split, records in ((split, _records(tfds, found.builder, split, folder)) for split in splits)
    ]
    form = Form(config.channels or _channels(found.image, sources[0]), config.pixels or _pixels(found.image, config))
    sources = [dataclasses.replace(source, form=form) for source in sources]
    if labels:
        for source, split in zip(sources, splits, strict=True):
            _check_labels(source, split, config)
    fingerprints = {
        part: Fingerprint(f"{info.full_name} {split}", len(source), _digest(info, split), {}, ())
        for part, source, split in zip(("train", "eval"), sources, splits, strict=True)
    }
    return Parts(*sources, found.class_names, notes, fingerprints)


def _splits(info: Any, config: Data, labels: bool) -> tuple[tuple[str, str], tuple[str, ...]]:
    """TFDS's names of the training and the evaluation split, and notes. TFDS has shuffled the examples."""
    eval_split, notes = choose_split(config, list(info.splits), required=labels)
    if eval_split:
        return ("train", eval_split), notes
    count = info.splits["train"].num_examples
    if count < 2:
        raise UserError(f"{config.name} has {count_images(count)}: expected two or more, one to evaluate on")
    if config.split is None:
        share = round(100 * HELD_OUT)
        splits = (f"train[:-{share}%]", f"train[-{share}%:]")
        return splits, (held_out_note(info.splits[splits[1]].num_examples),)
    kept = max(1, min(count - 1, round(config.split * count)))
    return (f"train[:{kept}]", f"train[{kept}:]"), (divided_note(count - kept, config.split, "the images"),)


def _described(tfds: ModuleType, folder: Path, config: Data, labels: bool) -> Described:
    """Read the metadata. Raises UserError if TFDS cannot read it, or the dataset is not for image classification."""
    with one_line_errors(f"{config.name}: TFDS cannot read {folder}"):
        builder = tfds.builder_from_directory(folder)
        features = dict(builder.info.features.items())
        image_key, label_key = (builder.info.supervised_keys or ("image", "label"))[:2]
        image, label = features.get(image_key), features.get(label_key)
    if "train" not in builder.info.splits:
        raise UserError(f"{config.name} has no split 'train'; it has: {', '.join(builder.info.splits)}")
    is_labelled = isinstance(label, tfds.features.ClassLabel)
    if not isinstance(image, tfds.features.Image) or (labels and not is_labelled):
        raise UserError(f"{config.name} is not for image classification: its features are {', '.join(features)}")
    class_names = read_class_names(label, label_key, folder) if is_labelled else ()
    return Described(builder, image, image_key, label_key, class_names)


def _records(tfds: ModuleType, builder: Any, split: str, folder: Path) -> Any:
    """The serialized examples of a split."""
    with one_line_errors(f"TFDS cannot read split {split!r} of {folder}"):
        check_shards(builder.info.splits[split.partition("[")[0]], folder)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split, file_format="array_record", deserialize_method=raw).data_source


def _channels(image: Any, source: TfdsSource) -> int:
    """The declared number of channels; if none is declared, 3 if any image of a sample is in colour, otherwise 1."""
    if declared := image.shape[-1]:
        return 1 if declared == 1 else 3  # alpha is dropped
    kinds = set()
    for index in evenly_spaced(len(source), 100):
        with contextlib.suppress(Unreadable):
            kinds.add(image_form(io.BytesIO(source.encoded_image(index)), source.name_of(index)).channels)
    return max(kinds, default=3)


def _pixels(image: Any, config: Data) -> str:
    """The declared type of samples. Raises UserError for floats, which TFDS stores as the bytes of RGBA."""
    if (declared := np.dtype(image.np_dtype).name) not in ("uint8", "uint16"):
        raise UserError(f"{config.name} has images of type {declared}: expected uint8 or uint16")
    return declared


def _check_labels(source: TfdsSource, split: str, config: Data) -> None:
    """Raises UserError if a sample of the labels contains an invalid one."""
    labels = {}
    for index in evenly_spaced(len(source), SAMPLE):
        with contextlib.suppress(Unreadable):
            labels[index] = source.stored_label(index)
    if labels and set(labels.values()) == {UNLABELLED}:
        raise UserError(
            f"split {split!r} of {config.name} has no labels (all are {UNLABELLED}): "
            "pass another as --data.eval-split, or an objective without labels"
        )
    for index, label in labels.items():
        source.check_label(label, index)


def _digest(info: Any, split: str) -> str:
    """SHA-256 of a split's metadata."""
    whole = info.splits[split.partition("[")[0]]
    return digest_of(str(part).encode() for part in (info.full_name, split, whole.shard_lengths, whole.num_bytes))
