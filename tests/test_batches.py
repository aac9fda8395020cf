"""Batches: their order, exact resumption, data workers, and the shares of several processes."""

import contextlib
import dataclasses
import json

import grain
import jax
import numpy as np
import pytest

from tests.pictures import assert_equal, lazy, numbered, take, truncate
from train.config import Data
from train.data import eval_batches, load_dataset, pipeline, train_batches
from train.errors import UserError


def on_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


def test_batches_are_what_the_loop_expects():
    iterator = train_batches(load_dataset(Data()), Data(), 32, seed=0)
    assert isinstance(iterator, grain.DatasetIterator)
    batch = next(iterator)
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "image": (np.uint8, (32, 8, 8, 1)),
        "label": (np.int32, (32,)),
    }


@pytest.mark.parametrize("config", [Data(), Data(min_crop=0.5)])
def test_every_example_once_per_epoch_in_a_new_order(config):
    count, batch_size = 50, 16  # epochs straddle batches
    stream = take(train_batches(numbered(count), config, batch_size, seed=3), 25)
    numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in stream]).reshape(8, count)
    labels = np.concatenate([batch["label"] for batch in stream]).reshape(8, count)
    for epoch in numbers:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))
    assert len({epoch.tobytes() for epoch in numbers}) == 8
    np.testing.assert_array_equal(labels, numbers % 4)
    other = next(train_batches(numbered(count), config, batch_size, seed=4))
    assert (other["image"] != stream[0]["image"]).any()


def test_batch_may_be_larger_than_an_epoch():
    batch = next(train_batches(numbered(5), Data(), 12, seed=0))
    counts = np.bincount(batch["image"][:, 0, 0, 0], minlength=5)
    assert counts.sum() == 12
    assert set(counts) <= {2, 3}


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("start", [0, 7])
def test_batches_of_one_image(views, start):
    """An endless dataset in memory has so many batches that their number must not be rounded up."""
    ones = take(train_batches(numbered(5), Data(), 1, seed=0, views=views, start=start), 8)
    whole = take(train_batches(numbered(5), Data(), 15, seed=0, views=views), 1)[0]
    assert_equal(ones, [{key: rows[start + i : start + i + 1] for key, rows in whole.items()} for i in range(8)])


@pytest.mark.parametrize("kind", ["memory", "memory, cropped", "folder", "folder, cropped"])
def test_resume_is_exact(tmp_path, kind):
    crop = 0.3 if "cropped" in kind else 1.0
    if "memory" in kind:
        config = Data(min_crop=crop)
        dataset = load_dataset(config)
    else:
        dataset, config = lazy(tmp_path, min_crop=crop)
    position = int(np.random.default_rng().integers(1, 12))
    whole = train_batches(dataset, config, 5, seed=1)
    take(whole, position)
    state = json.loads(json.dumps(whole.get_state()))
    resumed = train_batches(dataset, config, 5, seed=1)
    resumed.set_state(state)
    assert_equal(take(resumed, 4), take(whole, 4))


def test_random_crops_differ_between_epochs_and_seeds(tmp_path):
    dataset, config = lazy(tmp_path, min_crop=0.3)
    first, second, *_ = take(train_batches(dataset, config, 22, seed=0), 2)
    other = next(train_batches(dataset, config, 22, seed=1))
    images = [{image.tobytes() for image in batch["image"]} for batch in (first, second, other)]
    assert len(set.union(*images)) > 60  # of 66: a narrow image may fall back on its central crop
    again = next(train_batches(dataset, config, 22, seed=0))
    assert_equal([again], [first])


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_start_is_where_others_would_be(tmp_path, kind, monkeypatch):
    """After four batches, data continues identically on any number of processes."""
    dataset, config = (numbered(50), Data(min_crop=0.3)) if kind == "memory" else lazy(tmp_path, min_crop=0.3)
    expected = take(train_batches(dataset, config, 6, seed=0), 6)[4:]
    assert_equal(take(train_batches(dataset, config, 6, seed=0, start=4), 2), expected)
    on_process(monkeypatch, 1, 2)
    share = [{key: rows[1::2] for key, rows in batch.items()} for batch in expected]
    assert_equal(take(train_batches(dataset, config, 6, seed=0, start=4), 2), share)


@pytest.mark.slow
def test_workers_change_nothing_and_resume(tmp_path, monkeypatch):
    """On the second of two processes, after four batches, in chunks, and with an image that cannot be read."""
    dataset, config = lazy(tmp_path, min_crop=0.3, workers=2)
    truncate(tmp_path / "train/b/003.png")
    on_process(monkeypatch, 1, 2)
    monkeypatch.setattr(pipeline, "CHUNK", 4)  # a share of 9 images is sent as three chunks of three
    batches = lambda config, said: train_batches(dataset, config, 18, seed=0, start=4, warn=said.append)
    expected = take(batches(dataclasses.replace(config, workers=0), told := []), 8)
    assert len(told) == 1
    with contextlib.closing(batches(config, said := [])) as iterator:
        assert_equal(take(iterator, 6), expected[:6])
        state = json.loads(json.dumps(iterator.get_state()))
    assert said == told
    with contextlib.closing(batches(config, [])) as iterator:
        iterator.set_state(state)
        assert_equal(take(iterator, 2), expected[6:])


@pytest.mark.parametrize("config", [Data(), Data(eval_crop=0.5)])
@pytest.mark.parametrize("batch_size", [1, 7, 25, 50, 64])
def test_evaluation_sees_every_example_exactly_once(config, batch_size):
    batches = list(eval_batches(numbered(50), config, batch_size))
    assert len(batches) == -(-50 // batch_size)
    for batch in batches:
        assert batch["image"].shape == (batch_size, 6, 6, 1)
        assert (batch["image"].dtype, batch["label"].dtype, batch["mask"].dtype) == (
            np.uint8,
            np.int32,
            np.float32,
        )
    rows = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    np.testing.assert_array_equal(rows["mask"], np.arange(len(batches) * batch_size) < 50)
    np.testing.assert_array_equal(rows["image"][:50, 0, 0, 0], np.arange(50))
    np.testing.assert_array_equal(rows["label"][:50], np.arange(50) % 4)
    assert not rows["image"][50:].any()
    assert not rows["label"][50:].any()


# Processes


@pytest.mark.parametrize("min_crop", [1.0, 0.3])
def test_global_batch_does_not_depend_on_the_number_of_processes(monkeypatch, tmp_path, min_crop):
    dataset, config = lazy(tmp_path, min_crop=min_crop)
    whole = take(train_batches(dataset, config, 12, seed=0), 3)
    parts = []
    for index in range(3):
        on_process(monkeypatch, index, 3)
        parts.append(take(train_batches(dataset, config, 12, seed=0), 3))
    for step, expected in enumerate(whole):
        for key in expected:
            shares = np.stack([part[step][key] for part in parts], axis=1)  # process p holds rows p, p + 3, ...
            np.testing.assert_array_equal(shares.reshape(expected[key].shape), expected[key])


@pytest.mark.parametrize("count", [16, 17, 18, 3])
def test_processes_share_the_evaluation(monkeypatch, count):
    numbers, steps = [], set()
    for index in range(4):
        on_process(monkeypatch, index, 4)
        batches = list(eval_batches(numbered(count), Data(), 8))
        steps.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (2, 6, 6, 1)
            numbers.extend(batch["image"][batch["mask"] == 1, 0, 0, 0])
    assert steps == {-(-count // 8)}
    assert sorted(numbers) == list(range(count))


def test_batch_that_processes_cannot_share(monkeypatch):
    on_process(monkeypatch, 0, 3)
    with pytest.raises(UserError, match="batch size 8: expected a positive multiple of the 3 processes"):
        train_batches(numbered(9), Data(), 8, seed=0)


def test_negative_seed():
    with pytest.raises(UserError, match="seed is -1: expected 0 or more"):
        train_batches(numbered(9), Data(), 3, seed=-1)
