"""Read and change the dataset `blobs` of the fixtures."""

import json

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from train.config import Data
from train.data import load_dataset
from train.errors import UserError


def data(directory, name="tfds:blobs", **changes):
    return Data(name, dir=str(directory), **changes)


def refusal(config, **options):
    """The one-line error message for `config`."""
    with pytest.raises(UserError) as caught:
        load_dataset(config, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_json(path, change):
    """Apply `change` to the JSON in a file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_records(folder, split, change):
    """Apply change(features, number) to every record of a split, and rewrite it."""
    path = str(folder / f"blobs-{split}.array_record-00000-of-00001")
    reader = ArrayRecordReader(path)
    examples = [tf_example_pb2.Example.FromString(record) for record in reader.read_all()]
    reader.close()
    writer = ArrayRecordWriter(path, "group_size:1")
    for number, example in enumerate(examples):
        change(example.features.feature, number)
        writer.write(example.SerializeToString())
    writer.close()
