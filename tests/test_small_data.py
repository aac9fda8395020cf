"""Batch size and length of runs that leave them open: small data, runs that continue, and older versions."""

import dataclasses
import json

import jax
import pytest

from tests.runs import train
from train.config import Config, Optim
from train.sharding import make_mesh
from train.small_data import default_batch, notes_on_length, with_length

ONE = make_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("images", "sharing", "size"),
    [(50, 1, 8), (10, 1, 8), (64, 1, 16), (127, 1, 16), (511, 1, 64), (512, 1, 128), (10**6, 1, 128), (50, 6, 12)],
)
def test_a_batch_has_at_most_a_quarter_of_the_images(images, sharing, size):
    assert default_batch(images, sharing) == size


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({}, (10.0, 300, 8)),
        ({"epochs": 5.0}, (5.0, 0, 8)),
        ({"steps": 7}, (10.0, 0, 8)),
        ({"min_steps": 40, "batch_size": 32}, (10.0, 40, 32)),
        ({"epochs": 2.0, "min_steps": 0}, (2.0, 0, 8)),
        ({"optim": Optim(accumulate=3)}, (10.0, 300, 9)),
    ],
)
def test_options_decide_and_the_rest_fits_the_data(given, length):
    config = with_length(Config(**given), 50, ONE)
    assert (config.epochs, config.min_steps, config.batch_size) == length


def test_it_is_said():
    said = lambda asked, images: notes_on_length(asked, with_length(asked, images, ONE), images)
    each = "each epoch repeats the images 4.8 times, for 300 steps (--min-steps)"
    assert said(Config(), 50) == [f"small data: batches of 8 (--batch-size is not given); {each}"]
    repeated = "each batch of 128 has every image 2.6 times (--batch-size)"
    assert said(Config(batch_size=128, epochs=10.0), 50) == [f"small data: {repeated}"]
    assert said(Config(), 100_000) == []
    assert said(Config(batch_size=128, steps=3), 1000) == []


def test_a_run_keeps_its_batch_size_and_length(tmp_path):
    """Those that older versions stored as defaults, and those of other devices, included."""
    stored = Config(workdir=str(tmp_path), batch_size=128, epochs=10.0, min_steps=0)
    dataset = {"class_names": ["a", "b"], "image_shape": [8, 8, 1], "mean": [0.5], "std": [0.5]}
    (tmp_path / "config.json").write_text(json.dumps({"config": dataclasses.asdict(stored), "dataset": dataset}))
    assert with_length(Config(workdir=str(tmp_path)), 50, ONE) == stored
    other = with_length(Config(workdir=str(tmp_path), batch_size=64), 50, ONE)
    assert (other.batch_size, other.min_steps) == (64, 0)  # is refused, as any other difference


def test_the_digits_recipe_is_unchanged(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps=1") == 0
    assert "small data" not in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (stored["batch_size"], stored["epochs"], stored["min_steps"]) == (32, 60.0, 0)
