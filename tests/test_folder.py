"""Folders of images: which files are used, which are not, and the messages about them."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import train.loop
import train.setup
from tests.pictures import SPLITS, noise, write_folder
from train.build import DataInfo, build_objective
from train.config import Augment, Config, Data
from train.data import load_dataset
from train.errors import UserError
from train.program import build_program
from train.run.description import describe
from train.sharding import make_mesh


def images_of(*sources):
    """The images of several sources, sorted by their bytes."""
    return sorted(source[i][0].tobytes() for source in sources for i in range(len(source)))


def write_flat(folder, count, first=0):
    """Write `count` noise images, with seeds from `first`, into one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        Image.fromarray(noise(12, 10, seed=seed)).save(folder / f"{seed:03}.png")


def unlabelled(root, **changes):
    return load_dataset(Data(f"folder:{root}", **changes), labels=False)


@pytest.mark.parametrize("folder", ["", "train", "train/deep/down"])
def test_images_without_labels_lie_anywhere(tmp_path, folder):
    """The same part of them is held out each time."""
    write_flat(tmp_path / folder, 20)
    dataset, again = unlabelled(tmp_path), unlabelled(tmp_path)
    assert (len(dataset.train), len(dataset.eval), dataset.class_names) == (18, 2, ())
    assert images_of(dataset.train, dataset.eval) == sorted(noise(12, 10, seed=i).tobytes() for i in range(20))
    assert images_of(dataset.eval) == images_of(again.eval)
    assert dataset.fingerprints == again.fingerprints
    assert [dataset.fingerprints[part].count for part in ("train", "eval")] == [18, 2]
    assert {label for _, label in dataset.train} == {0}
    assert dataset.notes == ("no split val or validation or test: 2 images held out for evaluation",)


@pytest.mark.parametrize(
    ("folder", "split", "held_out"),
    [("", None, (2, 1)), ("train", None, (2, 1)), ("train", 0.5, (5, 3)), ("", 0.99, (1, 1))],
)
def test_a_part_of_each_class_is_held_out(tmp_path, folder, split, held_out):
    write_flat(tmp_path / folder / "a", 10)
    write_flat(tmp_path / folder / "b", 6, first=10)
    dataset, again = (load_dataset(Data(f"folder:{tmp_path}", split=split)) for _ in range(2))
    labels = [dataset.eval[i][1] for i in range(len(dataset.eval))]
    assert (labels.count(0), labels.count(1)) == held_out
    assert images_of(dataset.train, dataset.eval) == sorted(noise(12, 10, seed=i).tobytes() for i in range(16))
    assert images_of(dataset.eval) == images_of(again.eval)
    assert dataset.fingerprints == again.fingerprints
    share = round(100 * (1 - (split or 0.8)))
    assert dataset.notes == (f"{sum(held_out)} images held out for evaluation, {share}% of each class (--data.split)",)


def test_a_class_of_one_image_is_trained_on(tmp_path):
    write_flat(tmp_path / "a", 4)
    write_flat(tmp_path / "b", 1, first=4)
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert (len(dataset.train), len(dataset.eval)) == (4, 1)
    assert {dataset.train[i][1] for i in range(4)} == {0, 1}
    assert dataset.notes[1] == "1 class has one image, which is for training only: b"


@pytest.mark.parametrize("labels", [True, False])
def test_a_share_and_a_split_exclude_each_other(tmp_path, labels):
    write_folder(tmp_path)
    with pytest.raises(UserError, match=r"--data.split is 0.5, but .* has the split val: leave one of them out"):
        load_dataset(Data(f"folder:{tmp_path}", split=0.5), labels=labels)


def test_choosing_by_the_test_split_is_told(tmp_path):
    write_folder(tmp_path, {"train": 10, "test": 4})
    for labels in (True, False):
        chosen = load_dataset(Data(f"folder:{tmp_path}"), labels=labels)
        assert len(chosen.eval) == 4
        assert "split test also choose the best checkpoint, so its accuracy there is optimistic" in chosen.notes[0]
        assert load_dataset(Data(f"folder:{tmp_path}", eval_split="test"), labels=labels).notes == ()
        divided = load_dataset(Data(f"folder:{tmp_path}", split=0.8), labels=labels)  # as the note advises
        assert (len(divided.train), len(divided.eval)) == (8, 2)


def test_classes_that_cannot_be_divided_are_told(tmp_path):
    write_flat(tmp_path / "a", 1)
    write_flat(tmp_path / "b", 1, first=1)
    with pytest.raises(UserError, match=r"one image in each class of .*: expected two or more"):
        load_dataset(Data(f"folder:{tmp_path}"))
    with pytest.raises(UserError, match="has no split val to evaluate on: it has classes without splits"):
        load_dataset(Data(f"folder:{tmp_path}", eval_split="val"))


def test_links_to_themselves_are_no_images(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train/a/loop.png").symlink_to("loop.png")
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert len(dataset.train) == SPLITS["train"]
    assert "skipped (empty or not an image): train/a/loop.png" in dataset.notes[0]


@pytest.mark.parametrize("folder", ["", "train"])
def test_an_evaluation_split_is_used_where_there_is_one(tmp_path, folder):
    write_flat(tmp_path / folder, 6)
    write_flat(tmp_path / "val/any", 3, first=6)
    dataset = unlabelled(tmp_path)
    assert images_of(dataset.train) == sorted(noise(12, 10, seed=i).tobytes() for i in range(6))
    assert images_of(dataset.eval) == sorted(noise(12, 10, seed=i).tobytes() for i in range(6, 9))
    assert dataset.notes == ()


def test_folders_of_classes_do_as_well(tmp_path):
    dataset = unlabelled(write_folder(tmp_path))
    assert (len(dataset.train), len(dataset.eval)) == tuple(SPLITS.values())
    assert images_of(dataset.train) == images_of(load_dataset(Data(f"folder:{tmp_path}")).train)


def test_links_that_lead_in_circles(tmp_path):
    write_flat(tmp_path / "more", 5)
    (tmp_path / "more/back").symlink_to(tmp_path)
    assert len(unlabelled(tmp_path).train) == 4


@pytest.mark.parametrize(("count", "changes", "message"), [
    (0, {}, "no images in ROOT: expected two or more"),
    (1, {}, "no images in ROOT: expected two or more"),
    (5, {"eval_split": "dev"}, "has no split dev to evaluate on; all its images are for training"),
    (5, {"name": "folder:ROOT/nowhere"}, "there is no folder ROOT/nowhere"),
])  # fmt: skip
def test_mistakes_without_labels(tmp_path, count, changes, message):
    write_flat(tmp_path, count)
    changes = {key: value.replace("ROOT", str(tmp_path)) for key, value in changes.items()}
    with pytest.raises(UserError) as caught:
        load_dataset(Data(**{"name": f"folder:{tmp_path}"} | changes), labels=False)
    assert message.replace("ROOT", str(tmp_path)) in str(caught.value)


@pytest.mark.parametrize("folder", ["", "train"])
def test_a_classifier_is_told_that_images_lack_classes(tmp_path, folder):
    write_flat(tmp_path / folder, 5)
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError) as caught:
        load_dataset(Data(f"folder:{tmp_path}"))
    expected = f", but 5 images elsewhere, such as {tmp_path / folder / '000.png'}: classes need a folder each; "
    assert expected in str(caught.value)


def test_images_elsewhere_than_in_folders_of_classes_are_told(tmp_path):
    write_folder(tmp_path)
    write_flat(tmp_path / "train/a/more/still", 3)
    write_flat(tmp_path / "train", 1)
    (tmp_path / "train/b/empty").mkdir()
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert len(dataset.train) == 22
    assert dataset.notes == (
        "4 images not used, because they are not directly in SPLIT/CLASS/, such as train/000.png: move them there",
        "1 file skipped (empty or not an image): train/b/empty",
    )


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    write_folder(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="train/b cannot be listed: Permission denied"):
        load_dataset(Data(f"folder:{tmp_path}"))


@pytest.mark.parametrize(("objective", "needed"), [(None, True), ("mae", False), ("dino", False)])
def test_only_classifiers_ask_for_labels(monkeypatch, tmp_path, objective, needed):
    asked = []

    def load(config, labels):
        asked.append(labels)
        raise UserError("seen enough")

    monkeypatch.setattr(train.setup, "load_dataset", load)
    with pytest.raises(UserError, match="seen enough"):
        train.loop.fit(Config(objective=objective, workdir=str(tmp_path / "run")))
    assert asked == [needed]
    assert not (tmp_path / "run").exists()


def test_a_step_without_labels(tmp_path):
    """Tracing a step with a flat folder of images, which have no classes."""
    write_flat(tmp_path, 20)
    augment = Augment(mixup=0.2)
    config = Config("vit", ("patch_size=2",), "mae", batch_size=8, augment=augment, workdir=str(tmp_path / "run"))
    dataset = unlabelled(tmp_path)
    info = DataInfo(dataset.class_names, dataset.image_shape, dataset.mean, dataset.std)
    program = build_program(config, info, make_mesh(), build_objective(config, info), 2, 1.0)
    state, metrics = jax.eval_shape(program.train_step, program.state, program.batch, {})
    assert metrics["loss"].shape == ()
    batch = program.batch | {"mask": jax.ShapeDtypeStruct((8,), np.float32)}
    assert jax.eval_shape(program.eval_step, state.params, state.extras, batch)["loss"].shape == ()
    assert "no labels" in describe(config, dataset, program.state.params, program.trained, make_mesh(), 2, 1, None)[1]
