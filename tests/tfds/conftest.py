"""A small dataset that TFDS prepared."""

import io
import shutil

import pytest

# Imported here, not in a test: TFDS replaces Python's import while it is imported, which breaks the garbage collection
# of a semaphore of an earlier test's workers.
import tensorflow_datasets as tfds
from PIL import Image

from tests.pictures import noise


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A dataset that TFDS prepared as ArrayRecord from encoded files, and its source images."""

    class Blobs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "picture": tfds.features.Image(shape=(None, None, 3)),
                "kind": tfds.features.ClassLabel(names=["round", "square"]),
                "id": tfds.features.Text(),
            }
            keys = ("picture", "kind")
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(9), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                file = io.BytesIO()
                Image.fromarray(noise(12, 10, seed=i)).save(file, "PNG")
                file.seek(0)
                yield i, {"picture": file, "kind": i % 2, "id": str(i)}

    directory = tmp_path_factory.mktemp("tfds")
    Blobs(data_dir=str(directory), file_format="array_record").download_and_prepare()
    return directory


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of the folder of one version, which a test may change; `data(tmp_path)` reads it."""
    shutil.copytree(prepared / "blobs", tmp_path / "blobs")
    return tmp_path / "blobs/1.0.0"
