"""The command that prepares datasets, without TensorFlow."""

import io
import sys

import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from tests.pictures import noise
from tests.tfds.blobs import data, refusal
from train.data import load_dataset
from train.prepare import main


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Six encoded images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(4), "val": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(noise(12, 10, seed=i)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 2}


class PicturesByTensorflow(Pictures):
    """Its code uses TensorFlow, as that of many datasets does."""

    def _split_generators(self, manager):
        tf.io.gfile.exists("x")


class PicturesThatFail(Pictures):
    """Its download fails."""

    def _split_generators(self, manager):
        raise ConnectionError("no network\nat all")


def test_what_is_prepared_can_be_read(tmp_path, capsys):
    name = f"{tmp_path}/my data"
    told = refusal(data(name, "tfds:pictures"))
    assert told == f"tfds:pictures is not prepared in {name}: vit-jax prepare pictures --dir='{name}' prepares it"
    assert main(["pictures", f"--dir={name}"]) == 0
    assert f"prepared pictures in {name}/pictures/1.0.0" in capsys.readouterr().out
    dataset = load_dataset(data(name, "tfds:pictures"))
    assert (len(dataset.train), len(dataset.eval)) == (4, 2)
    assert main(["pictures", f"--dir={name}"]) == 0  # nothing is left to do


@pytest.mark.parametrize(("name", "message"), [
    ("pictures_by_tensorflow", "the code of TFDS for pictures_by_tensorflow uses TensorFlow: run the same"),
    ("pictures_that_fail", "pictures_that_fail cannot be prepared in {}: no network at all"),
    ("no_such_pictures", "TFDS has no dataset no_such_pictures"),
])  # fmt: skip
def test_failures_are_one_line(tmp_path, capsys, monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    assert main([name, f"--dir={tmp_path}"]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(err) == 1
    assert err[0].startswith("error: " + message.format(tmp_path))
    assert not list(tmp_path.glob("*/1.0.0"))
