"""Order of training images: the balanced sampler and repeated augmentation, resumed and on several processes."""

import itertools
from unittest import mock

import numpy as np
import pytest

from train.config import Data
from train.data import Dataset, train_batches
from train.data.order import Balanced, Shuffled, sample_at
from train.data.sources import ArraySource

LABELS = np.array([0] * 40 + [1] * 7 + [2] * 3)


def dataset():
    images = np.arange(len(LABELS), dtype=np.uint8)[:, None, None, None]
    source = ArraySource(images, LABELS.astype(np.int32))
    return Dataset(source, source, ("a", "b", "c"), (1, 1, 1), (0.5,), (0.5,), ())


def batches(count, seed=3, start=0, views=0, repeats=1, **changes):
    config = Data(**{"sampler": "balanced", **changes})
    iterator = train_batches(dataset(), config, 6, seed, views=views, start=start, repeats=repeats)
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


@pytest.mark.parametrize("options", [{}, {"sampler": "shuffle", "repeats": 4, "min_crop": 0.5}])
def test_the_order_depends_only_on_seed_and_position(options):
    whole, later = batches(12, **options), batches(5, start=7, **options)
    for one, other in zip(whole[7:], later, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, batches(12, seed=4, **options), strict=True))


@pytest.mark.parametrize("options", [{}, {"sampler": "shuffle", "repeats": 4}])
def test_two_processes_share_a_batch(options):
    whole, shares = batches(4, **options), []
    for process in range(2):
        with (
            mock.patch("jax.process_count", return_value=2),
            mock.patch("jax.process_index", return_value=process),
        ):
            shares.append(batches(4, **options))
    for one, *parts in zip(whole, *shares, strict=True):
        joined = np.stack([part["image"] for part in parts], axis=1).reshape(one["image"].shape)
        np.testing.assert_array_equal(joined, one["image"])


def test_rounds_through_a_class_use_views_in_turn():
    samples = np.concatenate([batch["sample"] for batch in batches(6, views=2)])
    rare = samples[LABELS[samples % 50] == 2]
    assert (rare // 50).tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3


@pytest.mark.parametrize("classes", [1, 5000])
def test_any_number_of_classes(classes):
    order = Balanced(np.arange(classes), seed=0)
    assert sorted(order(position)[0] for position in range(classes)) == list(range(classes))


def test_classes_of_equal_size_have_different_orders():
    order = Balanced(np.repeat([0, 1], 20), seed=0)
    found = np.array([order(position)[0] for position in range(40)])
    assert (found[found < 20] != found[found >= 20] - 20).any()


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_repeats_keep_the_order_of_images(sampler):
    numbers = lambda count, **options: np.concatenate(
        [batch["image"].ravel() for batch in batches(count, sampler=sampler, **options)]
    )
    np.testing.assert_array_equal(numbers(30, repeats=3), np.repeat(numbers(10), 3))


def test_three_epochs_with_three_copies_have_every_image_three_times():
    order = Shuffled(50, seed=0)
    found = np.array([sample_at(order, 50, 1, 3, position) for position in range(150)])
    assert np.bincount(found).tolist() == [3] * 50
    assert len(set(found[:50])) == 17  # of an epoch


@pytest.mark.parametrize("replicas", [1, 4])
def test_an_epoch_has_the_order_of_timm(replicas, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("tests.upstream")  # makes torchvision, which timm imports, importable
    timm = pytest.importorskip("timm.data.distributed_sampler")
    order = Shuffled(512, seed=0)
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor([order(i)[0] for i in range(512)]))
    for rank in range(replicas):
        theirs = timm.RepeatAugSampler(range(512), num_replicas=replicas, rank=rank, num_repeats=3)
        ours = [sample_at(order, 512, 1, 3, position) for position in range(rank, 512, replicas)]
        assert list(theirs) == ours


def test_copies_of_an_image_are_different_views():
    samples = np.concatenate([batch["sample"] for batch in batches(40, sampler="shuffle", views=4, repeats=2)])
    views = (samples // 50).reshape(-1, 2)
    assert np.unique(views[:50], axis=0).tolist() == [[0, 1]]  # in the first pass over the images
    assert np.unique(views[50:100], axis=0).tolist() == [[2, 3]]


def test_copies_of_an_image_have_different_crops():
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 9, 1), dtype=np.uint8)
    source = ArraySource(images, np.zeros(5, np.int32))
    data = Dataset(source, source, ("a", "b"), (9, 9, 1), (0.5,), (0.5,), ())
    batch = next(train_batches(data, Data(min_crop=0.2), 6, 0, repeats=3))
    assert len({image.tobytes() for image in batch["image"]}) == 6
