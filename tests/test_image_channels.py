"""Greyscale and colour images in one dataset."""

import numpy as np
import pytest

from tests.image_files import COLOURS, GREY, RGB, png
from train.config import Data
from train.data import load_dataset
from train.data.channels import common_form
from train.errors import UserError


def write(root, kinds, split="train"):
    """Images 0.png, 1.png ... of two classes; `kinds` has a letter for each, "g" for greyscale and "c" for colour."""
    for i, kind in enumerate(kinds):
        path = root / split / "ab"[i % 2] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.kron(COLOURS, np.full((2, 2, 1), 1, np.uint8))
        path.write_bytes(png(picture, RGB) if kind == "c" else png(np.ascontiguousarray(picture[..., 0]), GREY))


@pytest.mark.parametrize(("kinds", "channels"), [("gccc", 3), ("cccg", 3), ("gggc", 3), ("gggg", 1), ("cccc", 3)])
def test_one_image_in_colour_makes_a_dataset_rgb(tmp_path, kinds, channels):
    write(tmp_path, kinds)
    write(tmp_path, kinds, "val")
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert dataset.image_shape == (6, 4, channels)
    mixed = len(set(kinds)) == 2
    assert len(dataset.notes) == mixed
    if mixed:
        assert "greyscale and colour images are mixed; all are read as RGB" in dataset.notes[0]
        in_colour = [np.ptp(image, axis=-1).max() > 0 for image, _ in dataset.train]
        assert sum(in_colour) == kinds.count("c")


def test_colour_beyond_the_sample_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.channels.SAMPLE", 3)
    write(tmp_path, "gggggggggcgg")
    paths = sorted(str(path) for path in tmp_path.rglob("*.png"))
    form, (note,) = common_form(paths, paths, Data())
    assert form == (3, "uint8")
    assert "0009.png" in note


def test_evaluation_images_in_colour_are_told(tmp_path):
    write(tmp_path, "gggg")
    write(tmp_path, "ggcg", "val")
    dataset = load_dataset(Data(f"folder:{tmp_path}"))
    assert dataset.image_shape == (6, 4, 1)
    (note,) = dataset.notes
    assert "colour images for evaluation are read as greyscale" in note
    assert "0002.png" in note


def test_unreadable_files_do_not_decide(tmp_path):
    write(tmp_path, "gggg")
    paths = sorted(str(path) for path in tmp_path.rglob("*.png"))
    for path in paths[:2]:
        with open(path, "wb") as file:
            file.write(b"broken")
    assert common_form(paths, paths, Data()) == ((1, "uint8"), ())
    with pytest.raises(UserError, match=r"cannot read the image .*0000\.png"):
        common_form(paths[:1], paths, Data())
