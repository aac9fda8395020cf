"""The balanced sampler: frequencies, exact resumption, and shares of several processes."""

import itertools
from unittest import mock

import numpy as np
import pytest

from train.config import Data
from train.data import Dataset, train_batches
from train.data.labels import Balanced
from train.data.sources import ArraySource

LABELS = np.array([0] * 40 + [1] * 7 + [2] * 3)


def dataset():
    images = np.arange(len(LABELS), dtype=np.uint8)[:, None, None, None]
    source = ArraySource(images, LABELS.astype(np.int32))
    return Dataset(source, source, ("a", "b", "c"), (1, 1, 1), (0.5,), (0.5,), ())


def batches(count, seed=3, start=0, views=0):
    iterator = train_batches(dataset(), Data(sampler="balanced"), 6, seed, views=views, start=start)
    return [{name: values.copy() for name, values in batch.items()} for batch in itertools.islice(iterator, count)]


def test_every_class_is_equally_frequent_and_every_image_is_seen():
    images = np.concatenate([batch["image"].ravel() for batch in batches(70)])
    for batch in images.reshape(-1, 6):
        assert np.bincount(LABELS[batch]).tolist() == [2, 2, 2]
    counts = np.bincount(images, minlength=len(LABELS))
    for label in range(3):  # within a class, no image comes again before all others have come
        assert np.ptp(counts[label == LABELS]) <= 1
        assert counts[label == LABELS].sum() == 140
    rounds = images[LABELS[images] == 2][:138].reshape(-1, 3)
    assert all(sorted(each) == [47, 48, 49] for each in rounds)
    assert len({tuple(each) for each in rounds}) == 6  # in every order


def test_the_order_depends_only_on_seed_and_position():
    whole, later = batches(12), batches(5, start=7)
    for one, other in zip(whole[7:], later, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, batches(12, seed=4), strict=True))


def test_two_processes_share_a_batch():
    whole, shares = batches(4), []
    for process in range(2):
        with (
            mock.patch("jax.process_count", return_value=2),
            mock.patch("jax.process_index", return_value=process),
        ):
            shares.append(batches(4))
    for one, *parts in zip(whole, *shares, strict=True):
        joined = np.stack([part["image"] for part in parts], axis=1).reshape(one["image"].shape)
        np.testing.assert_array_equal(joined, one["image"])


def test_rounds_through_a_class_use_views_in_turn():
    samples = np.concatenate([batch["sample"] for batch in batches(6, views=2)])
    rare = samples[LABELS[samples % 50] == 2]
    assert (rare // 50).tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3


@pytest.mark.parametrize("classes", [1, 5000])
def test_any_number_of_classes(classes):
    order = Balanced(np.arange(classes), seed=0, views=1)
    assert sorted(order(position, 0) for position in range(classes)) == list(range(classes))


def test_classes_of_equal_size_have_different_orders():
    order = Balanced(np.repeat([0, 1], 20), seed=0, views=1)
    found = np.array([order(position, 0) for position in range(40)])
    assert (found[found < 20] != found[found >= 20] - 20).any()
