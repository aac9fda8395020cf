"""Datasets prepared by TFDS: they are read exactly, and refused if they are damaged or would run code."""

import gc
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest

# Imported here, not in a test: TFDS replaces Python's import while it is imported, which breaks the garbage collection
# of a semaphore of an earlier test's workers.
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from tests.test_data import assert_equal, noise
from train.config import Data
from train.data import eval_batches, load_dataset, train_batches
from train.data.transforms import center_crop
from train.errors import UserError


@pytest.fixture(scope="module")
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


def test_round_trip(prepared):
    dataset = load_dataset(data(prepared))
    assert dataset.class_names == ("round", "square")
    assert (len(dataset.train), len(dataset.eval)) == (9, 4)
    # TFDS shuffles as it prepares.
    found = sorted((image.tobytes(), label) for image, label in dataset.train)
    assert found == sorted((noise(12, 10, seed=i).tobytes(), i % 2) for i in range(9))


def test_lazily_and_in_workers(prepared):
    config = data(prepared, image_size=(6, 5))
    dataset = load_dataset(config)
    batches = list(eval_batches(dataset, config, 3))  # the last is not full
    expected = [(center_crop(noise(12, 10, seed=i), (6, 5), 1.0).tobytes(), i % 2) for i in range(4)]
    images, labels, masks = (np.concatenate([batch[key] for batch in batches]) for key in ("image", "label", "mask"))
    found = [(image.tobytes(), int(label)) for image, label, mask in zip(images, labels, masks, strict=True) if mask]
    assert sorted(found) == sorted(expected)
    in_worker = data(prepared, image_size=(6, 5), workers=1)
    assert_equal(list(eval_batches(dataset, in_worker, 3)), batches)
    kept = [kept for kept in gc.get_objects() if type(kept).__name__ == "SharedMemoryArray"]
    assert kept == []  # Python warns at exit of shared memory that is not freed


@pytest.mark.parametrize("version", ["", ":1.0.0", ":1.*.*"])
def test_versions_and_configurations_are_found(copied, tmp_path, version):
    shutil.copytree(copied, tmp_path / "blobs/0.9.10")
    (tmp_path / "blobs/latest").mkdir()
    assert len(load_dataset(data(tmp_path, f"tfds:blobs{version}")).train) == 9
    (tmp_path / "parent").mkdir()
    (tmp_path / "blobs").rename(tmp_path / "parent/small")
    for name in ("parent", "parent/small"):  # the only configuration need not be named
        assert len(load_dataset(data(tmp_path, f"tfds:{name}{version}")).train) == 9
    shutil.copytree(tmp_path / "parent/small", tmp_path / "parent/large")
    assert "expected one of large, small after a /" in refusal(data(tmp_path, "tfds:parent"))
    assert "is not prepared" in refusal(data(tmp_path, "tfds:parent/small:3.0.0"))


@pytest.mark.parametrize(
    "name", ["a/b/c", "../blobs", "blobs/..", "blobs/..:1.0.0", "/etc", "ns:blobs", "blobs/a=1", ""]
)
def test_a_name_stays_within_the_data_directory(prepared, name):
    message = refusal(data(prepared, f"tfds:{name}"))
    assert message.startswith(f"unknown data 'tfds:{name}': expected ")


def test_how_to_prepare_is_told(prepared):
    """The suggested command is Python: `tfds build` needs Apache Beam and TensorFlow even to start."""
    message = refusal(data(prepared, "tfds:mnist"))
    assert message.startswith(f"tfds:mnist is not prepared in {prepared}: ")
    command = message.partition('python -c "')[2].removesuffix('"')
    compile(command, "command", "exec")
    assert f"builder('mnist', data_dir='{prepared}', file_format='array_record').download_and_prepare()" in command


def test_missing_evaluation_split(prepared):
    assert "has no split dev to evaluate on; it has: train, test" in refusal(data(prepared, eval_split="dev"))


@pytest.mark.parametrize(("key", "value", "message"), [
    ("fileFormat", "tfrecord", "is prepared as tfrecord, not array_record: to prepare it"),
    ("supervisedKeys", {"tuple": {"items": [{"featureKey": "picture"}, {"featureKey": "id"}]}},
     "tfds:blobs is not for image classification: its features are"),
])  # fmt: skip
def test_another_kind(copied, tmp_path, key, value, message):
    change_json(copied / "dataset_info.json", lambda info: info.update({key: value}))
    assert message in refusal(data(tmp_path))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_those_declared(copied, tmp_path, channels):
    """Not those of the first record, which is greyscale here."""

    def grey(features, number):
        file = io.BytesIO()
        Image.fromarray(noise(12, 10, seed=number)).convert("L" if number < 5 else "RGB").save(file, "PNG")
        features["picture"].bytes_list.value[0] = file.getvalue()

    def declare(features):
        features["featuresDict"]["features"]["picture"]["image"]["shape"]["dimensions"][2] = str(channels)

    change_records(copied, "train", grey)
    change_json(copied / "features.json", declare)
    assert load_dataset(data(tmp_path)).image_shape == (12, 10, channels)
    channels = -1  # undeclared: colours, if any image has some
    change_json(copied / "features.json", declare)
    assert load_dataset(data(tmp_path)).image_shape == (12, 10, 3)


# Labels


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_labels_is_refused(copied, tmp_path, split):
    change_records(copied, split, lambda features, _: features["kind"].int64_list.value.__setitem__(0, -1))
    assert f"split '{split}' of tfds:blobs has no labels (all are -1)" in refusal(data(tmp_path))
    # Labels are not checked if the objective needs none.
    dataset = load_dataset(data(tmp_path), labels=False)
    assert (len(dataset.train), len(dataset.eval)) == (9, 4)


@pytest.mark.parametrize("label", [-1, 2, 2**62, float("nan"), 0.5])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_outside_of_the_classes_is_refused(copied, tmp_path, split, label, monkeypatch):
    def change(features, number):
        if number == 3:
            features["kind"].Clear()
            values = features["kind"].float_list if isinstance(label, float) else features["kind"].int64_list
            values.value.append(label)

    change_records(copied, split, change)
    message = f"the label of 3 of tfds:blobs {split} is {label}: expected 0 to 1"
    monkeypatch.setattr("train.data.tfds.decode", None)  # no image is decoded to find it
    assert message in refusal(data(tmp_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_label_beyond_the_sample_is_refused_when_it_is_read(copied, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("train.data.tfds.SAMPLE", 2)
    change = lambda features, number: number == 3 and features["kind"].int64_list.value.__setitem__(0, 7)
    change_records(copied, "test", change)
    config = data(tmp_path, image_size=(6, 5), workers=workers)
    with pytest.raises(UserError, match="the label of 3 of tfds:blobs test is 7: expected 0 to 1"):
        list(eval_batches(load_dataset(config), config, 4))


def test_images_without_labels_need_no_evaluation_split(copied, tmp_path):
    change_json(copied / "dataset_info.json", lambda info: info["splits"].pop(1))
    assert "no split val or validation or test" in refusal(data(tmp_path))
    change_json(copied / "features.json", lambda features: features["featuresDict"]["features"].pop("kind"))
    assert "is not for image classification" in refusal(data(tmp_path))
    dataset = load_dataset(data(tmp_path), labels=False)
    assert (len(dataset.train), len(dataset.eval), dataset.class_names) == (8, 1, ())
    images = [source[i][0].tobytes() for source in (dataset.train, dataset.eval) for i in range(len(source))]
    assert sorted(images) == sorted(noise(12, 10, seed=i).tobytes() for i in range(9))
    assert "1 image held out for evaluation" in dataset.notes[0]


# Hostile


SEQUENCE = "tensorflow_datasets.core.features.sequence_feature.Sequence"
HIDDEN = json.dumps({"feature": {"type": "payload.Feature", "content": {}}, "length": None})


@pytest.mark.parametrize("feature", [
    {"pythonClassName": "payload.Feature", "jsonFeature": {"json": "{}"}},
    {"python_class_name": "payload.Feature", "jsonFeature": {"json": "{}"}},
    {"pythonClassName": SEQUENCE, "sequence": {"feature": {"pythonClassName": "payload.Feature"}, "length": "-1"}},
    {"pythonClassName": SEQUENCE, "jsonFeature": {"json": HIDDEN}},
])  # fmt: skip
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_no_python_of_the_dataset_is_run(copied, tmp_path, feature, file, monkeypatch):
    (tmp_path / "payload.py").write_text("raise SystemExit('code of the dataset was run')")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((copied / "features.json").read_text())
    features["featuresDict"]["features"]["id"] = feature
    change_json(
        copied / file, lambda content: content.update(features if file == "features.json" else {"features": features})
    )
    message = refusal(data(tmp_path))
    assert f"{copied / file} names the class 'payload.Feature': only features of TFDS itself are read" in message
    assert "payload" not in sys.modules


def test_no_python_is_run_for_features_in_the_old_form(copied, tmp_path, monkeypatch):
    (tmp_path / "payload.py").write_text("raise SystemExit('code of the dataset was run')")
    monkeypatch.syspath_prepend(tmp_path)
    (copied / "features.json").write_text(json.dumps({"type": "payload.Feature", "content": {}}))
    assert "names the class 'payload.Feature'" in refusal(data(tmp_path))


def test_shards_lie_within_the_dataset(copied, tmp_path):
    """Files outside the dataset's folder are not opened, even if the dataset names them."""
    shutil.copy(copied / "blobs-train.array_record-00000-of-00001", tmp_path / "stolen-00000-of-00001")

    def elsewhere(info):
        info["splits"][0]["filepathTemplate"] = "../../stolen-{SHARD_X_OF_Y}"

    change_json(copied / "dataset_info.json", elsewhere)
    assert "is missing: TFDS has not finished preparing" in refusal(data(tmp_path))


# Damage


def break_shard(folder):
    path = folder / "blobs-train.array_record-00000-of-00001"
    path.write_bytes(path.read_bytes()[:3000])


def lose_shard(folder):
    (folder / "blobs-test.array_record-00000-of-00001").unlink()


def break_names(folder):
    (folder / "kind.labels.txt").write_text("round\n")


def pipe_names(folder):
    (folder / "kind.labels.txt").unlink()
    os.mkfifo(folder / "kind.labels.txt")


def set_lengths(folder, lengths):
    change_json(folder / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=lengths))


@pytest.mark.parametrize(("change", "message"), [
    (break_shard, "cannot read the record 0 of tfds:blobs train: "),
    (lose_shard, "blobs-test.array_record-00000-of-00001 is missing"),
    (break_names, "kind.labels.txt is damaged: it has 1 different names, of 2 classes"),
    (pipe_names, "kind.labels.txt is not a regular file"),
    (lambda folder: (folder / "features.json").unlink(), "features.json cannot be read: there is no such file"),
    (lambda folder: (folder / "dataset_info.json").unlink(), "dataset_info.json cannot be read: there is no such file"),
    (lambda folder: (folder / "dataset_info.json").write_text("[1"), "dataset_info.json cannot be read: "),
    (lambda folder: (folder / "dataset_info.json").write_text("[" * 50_000), "dataset_info.json cannot be read: "),
    (lambda folder: (folder / "dataset_info.json").write_bytes(b"\xff{}"), "dataset_info.json cannot be read: "),
    (lambda folder: (folder / "dataset_info.json").write_text("{}"), "tfds:blobs: TFDS cannot read "),
    (lambda folder: set_lengths(folder, ["999999999999"]), "it cannot hold 999,999,999,999 examples"),
    (lambda folder: set_lengths(folder, ["-5"]), "split 'train' of"),
    (lambda folder: set_lengths(folder, []), "split 'train' of"),
])  # fmt: skip
def test_damage_is_one_line(copied, tmp_path, change, message):
    change(copied)
    assert message in refusal(data(tmp_path))


@pytest.mark.parametrize("size", [(12, 10), (6, 5)])  # decoded once, and anew
def test_a_damaged_record_is_skipped_and_counted(copied, tmp_path, size, capsys):
    """Like a broken image: training replaces it by another, evaluation leaves it out."""
    damage = [lambda f: f["picture"].bytes_list.value.__delitem__(0), lambda f: f["kind"].Clear()]
    for split, change in zip(("train", "test"), damage, strict=True):
        change_records(copied, split, lambda features, number, change=change: number == 3 and change(features))
    config = data(tmp_path, image_size=size)
    dataset = load_dataset(config)
    assert next(train_batches(dataset, config, 9, seed=0))["image"].shape == (9, *size, 3)
    (batch,) = eval_batches(dataset, config, 4)
    assert batch["mask"].sum() == 3
    said = capsys.readouterr().err
    assert "warning: 1 of 9 training images cannot be read; the latest is 3 of tfds:blobs train" in said
    assert "warning: 1 of 4 evaluation images cannot be read; the latest is 3 of tfds:blobs test" in said


def test_a_flipped_byte_of_a_shard_costs_its_record(copied, tmp_path, capsys):
    path = copied / "blobs-train.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    position = content.index(b"IHDR", content.index(b"IHDR") + 1)  # in the second image
    content[position + 40] ^= 1
    path.write_bytes(content)
    dataset = load_dataset(data(tmp_path))
    assert len(np.unique([image.tobytes() for image, _ in dataset.train])) == 8
    assert "1 of 9 training images cannot be read" in capsys.readouterr().err
