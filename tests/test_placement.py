"""Training images that are kept on the devices: batches are the same, bit for bit, and `auto` depends on the memory."""

import math

import jax
import numpy as np
import pytest

from tests.pictures import assert_equal, lazy, numbered, take, write_folder
from tests.runs import error, train
from tests.test_batches import on_process
from train.config import Data
from train.data import load_dataset, placement, train_batches
from train.data.placement import kept_on_devices, on_every_device, with_images
from train.memory import host_memory
from train.sharding import batch_sharding, make_mesh, to_devices

MESHES = (None, "data=4,fsdp=2", "data=2,fsdp=2,tensor=2")


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("mesh", MESHES)
def test_batches_are_those_of_the_host(mesh, views):
    devices = jax.devices() if mesh else jax.devices()[:1]
    dataset, mesh = load_dataset(Data()), make_mesh(mesh, devices)
    images = on_every_device(dataset.train.images, mesh)
    whole, indices = (
        train_batches(dataset, Data(), 64, 5, views, start=20, repeats=2, indices=indices) for indices in (False, True)
    )
    for expected, batch in zip(take(whole, 30), take(indices, 30), strict=True):  # over the end of an epoch
        assert "image" not in batch
        expected, found = to_devices(expected, mesh), with_images(to_devices(batch, mesh), images, (8, 8, 1))
        shapes = lambda batch: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch)
        assert shapes(found) == shapes(expected)
        assert_equal([found], [expected])


@pytest.mark.parametrize("pixels", ["uint16", "float32"])
def test_types_of_images_stay(pixels):
    images, mesh = np.random.default_rng(0).uniform(0, 2**16, (9, 4, 4, 3)).astype(pixels), make_mesh()
    index = np.array([8, 0, 3, 3, 1, 2, 7, 5], np.int32)
    (found,) = with_images(to_devices({"index": index}, mesh), on_every_device(images, mesh), (4, 4, 3)).values()
    np.testing.assert_array_equal(found, images[index], strict=True)


def test_a_process_sends_the_indices_of_its_share(monkeypatch):
    on_process(monkeypatch, 1, 3)
    images, indices = (next(train_batches(numbered(50), Data(), 12, seed=0, indices=i)) for i in (False, True))
    np.testing.assert_array_equal(indices["index"], images["image"][:, 0, 0, 0])
    assert len(indices["index"]) == 4


def test_devices_exchange_no_images():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    images = on_every_device(np.zeros((50, 6, 6, 1), np.uint8), mesh)
    assert [shard.data.shape for shard in images.addressable_shards] == [(50, 36)] * 8
    index = to_devices(np.zeros(16, np.int32), mesh)
    text = placement._gather(batch_sharding(mesh), (6, 6, 1)).lower(images, index).compile().as_text()
    assert "u8[4,6,6,1]" in text  # each device's share
    assert not [name for name in (" all-", " collective-", " reduce-scatter") if name in text]


def test_checks_of_memory_count_the_images(tmp_path, monkeypatch):
    kept = {}
    for where in ("host", "devices"):
        check = lambda *arguments, name=where: kept.setdefault(name, []).append(arguments[4])
        monkeypatch.setattr("train.setup.check_compiled", check)
        assert train(tmp_path / where, "--steps=1", f"--data.placement={where}") == 0
    size = load_dataset(Data()).train.images.nbytes
    assert kept["devices"] == [size + other for other in kept["host"]]  # of the training and the evaluation step


# The option


@pytest.mark.parametrize(
    ("platform", "size", "memory", "fits"),
    [
        ("gpu", 2**30, 2**34, True),
        ("tpu", 2**30, 2**34, True),
        ("tpu", 2**30 + 1, 2**34, False),
        ("tpu", 1, math.inf, False),  # not known
        ("cpu", 1, 2**40, False),
    ],
)
def test_auto_uses_a_small_share_of_the_memory_of_accelerators(platform, size, memory, fits):
    assert placement.are_small(platform, size, memory) == fits


def test_auto_is_for_images_that_are_ready(tmp_path, monkeypatch):
    dataset, mesh, asked = numbered(50), make_mesh(), []
    assert not kept_on_devices(dataset, Data(), mesh)  # on CPUs
    monkeypatch.setattr(placement, "are_small", lambda *arguments: asked.append(arguments) or True)
    assert kept_on_devices(dataset, Data(), mesh)
    assert asked == [("cpu", 50 * 6 * 6, host_memory())]
    for config in (Data(min_crop=0.5), Data(random_crop="simple"), Data(placement="host")):
        assert not kept_on_devices(dataset, config, mesh)
    assert not kept_on_devices(*lazy(tmp_path), mesh)


@pytest.mark.parametrize(
    "options",
    [
        ("--data.min-crop=0.5",),
        ("--data.random-crop=simple",),
        ("--data.image-size=16",),
        ("--data=folder:{}", "--data.image-size=8"),  # of larger images, which are decoded in every epoch
    ],
)
def test_images_that_cannot_stay_are_refused(options, tmp_path, capsys):
    data = write_folder(tmp_path / "data")
    options = [option.format(data) for option in options]
    message = error(capsys, tmp_path / "run", "--data.placement=devices", *options)
    assert message.startswith("error: --data.placement=devices needs training images in memory (digits, an .npz file")
    assert not (tmp_path / "run").exists()


def test_small_folders_may_stay(tmp_path):
    config = Data(f"folder:{write_folder(tmp_path)}", placement="devices")
    assert kept_on_devices(load_dataset(config), config, make_mesh())
