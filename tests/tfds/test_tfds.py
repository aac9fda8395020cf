"""Datasets prepared by TFDS are read exactly, and their labels are checked."""

import gc
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.pictures import assert_equal, noise
from tests.tfds.blobs import change_json, change_records, data, refusal
from train.data import eval_batches, load_dataset
from train.data.transforms import center_crop
from train.errors import UserError


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
    message = refusal(data(prepared, "tfds:mnist"))
    assert message == f"tfds:mnist is not prepared in {prepared}: vit-jax prepare mnist --dir={prepared} prepares it"


def test_missing_evaluation_split(prepared):
    assert "has no split dev to evaluate on; it has: train, test" in refusal(data(prepared, eval_split="dev"))


@pytest.mark.parametrize(("key", "value", "message"), [
    ("fileFormat", "tfrecord", "is prepared as tfrecord, not array_record: vit-jax prepare blobs --dir="),
    ("supervisedKeys", {"tuple": {"items": [{"featureKey": "picture"}, {"featureKey": "id"}]}},
     "tfds:blobs is not for image classification: its features are"),
])  # fmt: skip
def test_another_kind(copied, tmp_path, key, value, message):
    change_json(copied / "dataset_info.json", lambda info: info.update({key: value}))
    assert message in refusal(data(tmp_path))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_samples_have_the_declared_type(copied, tmp_path, dtype):
    """TFDS stores floats as the bytes of RGBA."""

    def declare(features):
        image = features["featuresDict"]["features"]["picture"]["image"]
        image["dtype"] = dtype
        image["shape"]["dimensions"][2] = "1" if dtype == "float32" else "3"

    change_json(copied / "features.json", declare)
    if dtype == "float32":
        assert "tfds:blobs has images of type float32: expected uint8 or uint16" in refusal(data(tmp_path))
        return
    dataset = load_dataset(data(tmp_path))
    assert dataset.pixels == "uint16"
    assert np.unique(dataset.train.images % 257) == [0]  # they are stored as bytes


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
    monkeypatch.setattr("train.data.sources.opened", None)  # no image is decoded to find it
    assert message in refusal(data(tmp_path))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
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
    divided = load_dataset(data(tmp_path, split=0.67))
    assert (len(divided.train), len(divided.eval)) == (6, 3)
    assert divided.notes == ("3 images held out for evaluation, 33% of the images (--data.split)",)
    change_json(copied / "features.json", lambda features: features["featuresDict"]["features"].pop("kind"))
    assert "is not for image classification" in refusal(data(tmp_path))
    dataset = load_dataset(data(tmp_path), labels=False)
    assert (len(dataset.train), len(dataset.eval), dataset.class_names) == (8, 1, ())
    images = [source[i][0].tobytes() for source in (dataset.train, dataset.eval) for i in range(len(source))]
    assert sorted(images) == sorted(noise(12, 10, seed=i).tobytes() for i in range(9))
    assert "1 image held out for evaluation" in dataset.notes[0]


def test_choosing_by_the_test_split_is_told(prepared):
    assert "split test also choose the best checkpoint" in load_dataset(data(prepared)).notes[0]
    assert load_dataset(data(prepared, eval_split="test")).notes == ()
    divided = load_dataset(data(prepared, split=0.67))
    assert (len(divided.train), len(divided.eval)) == (6, 3)
