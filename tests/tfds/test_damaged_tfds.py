"""Datasets of TFDS that are damaged, or that would run code or read other files, are refused."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

from tests.tfds.blobs import change_json, change_records, data, refusal
from train.data import eval_batches, load_dataset, train_batches

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
