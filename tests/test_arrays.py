"""Images and labels in arrays: .npz files and folders of .npy files."""

import contextlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from train.config import Data
from train.data import dataset as datasets
from train.data import eval_batches, load_dataset
from train.data.arrays import MappedSource, open_arrays
from train.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 8, 6, 3), np.uint8)
LABELS = np.arange(20) % 2


def stored(path, compressed=False, **arrays):
    """An .npz file, or a folder of .npy files if the path has no suffix."""
    if path.suffix:
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
    else:
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return path


def opened(path, **options):
    return load_dataset(Data(f"array:{path}", **options))


@pytest.mark.parametrize("name", ["data.npz", "data"])
def test_arrays_without_splits_are_divided(tmp_path, name):
    """Each class in the same proportion; every image once, with its label."""
    labels = np.array([0] * 15 + [1] * 5)
    found = opened(stored(tmp_path / name, images=IMAGES, labels=labels))
    assert (len(found.train), len(found.eval), found.class_names) == (16, 4, ("0", "1"))
    assert found.notes == ("4 images held out for evaluation, 20% of each class (--data.split)",)
    pairs = [(image.tobytes(), label) for source in (found.train, found.eval) for image, label in source]
    assert sorted(pairs) == sorted((image.tobytes(), label) for image, label in zip(IMAGES, labels, strict=True))
    assert sorted(label for _, label in found.eval) == [0, 0, 0, 1]
    half = opened(tmp_path / name, split=0.5)
    assert len(half.train) == 10
    assert half.fingerprints != found.fingerprints == opened(tmp_path / name).fingerprints


@pytest.mark.parametrize(
    "names", ["train_images train_labels test_images test_labels", "x_train y_train x_test y_test"]
)
def test_named_splits_are_used_as_they_are(tmp_path, names):
    """Greyscale, compressed and with labels (n, 1), as in Keras' files."""
    arrays = (IMAGES[..., 0], LABELS[:, None].astype(np.uint8), IMAGES[:5, ..., 0], LABELS[:5, None])
    path = stored(tmp_path / "keras.npz", compressed=True, **dict(zip(names.split(), arrays, strict=True)))
    found = opened(path)
    assert found.image_shape == (8, 6, 1)
    np.testing.assert_array_equal(found.train.images[..., 0], IMAGES[..., 0])
    np.testing.assert_array_equal(found.train.labels, LABELS)
    np.testing.assert_array_equal(found.eval.images[..., 0], IMAGES[:5, ..., 0])


@pytest.mark.parametrize("array", [IMAGES, IMAGES.astype(">u2") * 257, IMAGES / 255.0, np.asfortranarray(IMAGES)])
def test_both_forms_give_the_same_pixels(tmp_path, array):
    """Of a folder also if it does not fit into memory, in another process, and with a split."""
    files = [stored(tmp_path / name, images=array, labels=LABELS) for name in ("data.npz", "data")]
    in_memory, mapped = (open_arrays(str(path), Data(f"array:{path}")).train for path in files)
    assert isinstance(mapped, MappedSource)
    sent = pickle.dumps(mapped)
    assert len(sent) < 2000  # the array is opened again
    mapped = pickle.loads(sent)
    expected = array.astype(np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("="))
    assert len(in_memory) == len(mapped) == 16
    for (one, label), (other, same) in zip(in_memory, mapped, strict=True):
        assert one.dtype == other.dtype == expected.dtype
        assert label == same
        np.testing.assert_array_equal(one, other)
        assert any(np.array_equal(one, image) for image in expected)


def test_images_are_read_as_configured(tmp_path):
    path = stored(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    found = opened(path, channels=1, pixels="float32", image_size=(4, 4))
    assert (found.image_shape, found.pixels) == ((4, 4, 1), "float32")
    luma = IMAGES @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found.train.images.mean(), luma.mean() / 255, atol=0.01)


def test_labels_may_be_text_or_have_names(tmp_path):
    names = np.array(["cat", "dog"])
    found = opened(stored(tmp_path / "text.npz", images=IMAGES, labels=names[1 - LABELS]))
    assert found.class_names == ("cat", "dog")
    named = opened(stored(tmp_path / "named.npz", images=IMAGES, labels=LABELS, class_names=names[::-1]))
    assert named.class_names == ("dog", "cat")
    np.testing.assert_array_equal(named.train.labels, 1 - found.train.labels)


def test_labels_are_not_needed_without_classes(tmp_path):
    config = Data(f"array:{stored(tmp_path / 'data.npz', images=IMAGES)}")
    found = load_dataset(config, labels=False)
    assert (len(found.train), len(found.eval), found.class_names) == (18, 2, ())


def test_several_labels_and_numbers(tmp_path):
    several = RNG.integers(0, 2, (20, 3))
    numbers = RNG.normal(size=(20, 2))
    for target, labels, names, expected in (
        ("multilabel", several, None, ("0", "1", "2")),
        ("regression", numbers, None, ("number 0", "number 1")),
        ("regression", numbers, ["age", "size"], ("age", "size")),
    ):
        arrays = dict(train_images=IMAGES, train_labels=labels, val_images=IMAGES, val_labels=labels)
        path = stored(tmp_path / expected[0], **arrays, **({} if names is None else {"class_names": np.array(names)}))
        parts = open_arrays(str(path), Data(f"array:{path}", target=target))
        assert parts.class_names == expected
        np.testing.assert_array_equal(parts.train.labels, labels.astype(np.float32))
        np.testing.assert_array_equal(parts.eval[7][1], labels[7].astype(np.float32))


def test_images_of_a_folder_that_are_not_finite_are_left_out(tmp_path, capsys):
    """As unreadable files are; in an .npz file, which is read at once, they are an error."""
    floats = (IMAGES / 255).astype(np.float32)
    arrays = dict(train_images=floats, train_labels=LABELS, val_images=floats.copy(), val_labels=LABELS)
    arrays["val_images"][3, 0, 0, 0] = np.nan
    config = Data(f"array:{stored(tmp_path / 'data', **arrays)}")
    assert len(load_dataset(config).eval) == 19
    assert "1 of 20 evaluation images cannot be read; the latest is image 3 of" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"val_images of .*data.npz cannot be read: it has samples that are not finite"):
        opened(stored(tmp_path / "data.npz", **arrays))


def test_images_larger_than_memory_are_read_on_access(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MEMORY", 100)
    config = Data(f"array:{stored(tmp_path / 'data', images=IMAGES, labels=LABELS)}")
    found = load_dataset(config)
    assert isinstance(found.eval, MappedSource)
    (batch,) = eval_batches(found, config, 4)
    for image, source in zip(batch["image"], found.eval, strict=True):
        np.testing.assert_array_equal(image, source[0])


def changed(**arrays):
    return {"images": IMAGES, "labels": LABELS, **arrays}


@pytest.mark.parametrize(
    ("arrays", "options", "reason"),
    [
        ({"labels": LABELS}, {}, "has no arrays images and labels, train_images, or x_train; it has: labels"),
        ({}, {}, "has no arrays images and labels, train_images, or x_train; it has: none"),
        ({"images": IMAGES}, {}, "has images, but no array labels"),
        ({"x_train": IMAGES, "y_train": LABELS, "images": IMAGES}, {}, "split train twice: x_train and images"),
        (changed(labels=LABELS[:-1]), {}, "labels.* has 19 labels, but .*images.* has 20 images"),
        (changed(labels=np.int64(3)), {}, "has 1 labels, but"),
        (changed(images=IMAGES[0, 0]), {}, r"its shape is \(6, 3\): expected \(images, height, width"),
        (changed(images=IMAGES[:, None, None]), {}, "expected .images, height, width"),
        (changed(images=IMAGES[:0], labels=LABELS[:0]), {}, "has no images in the split train"),
        (changed(images=IMAGES[:, :0]), {}, "it has no pixels"),
        (changed(images=IMAGES[:1], labels=LABELS[:1]), {}, "one image in each class: expected two or more"),
        (changed(labels=LABELS * 0), {}, "has a single class, '0': expected two or more"),
        (changed(images=np.zeros((20, 3, 16, 16), np.uint8)), {}, "looks like channels first"),
        (changed(images=IMAGES.astype(np.int32)), {}, "its samples are signed numbers"),
        (changed(images=IMAGES > 9), {}, "samples are of type bool: expected uint8, uint16 or float32"),
        (changed(images=IMAGES * 1j), {}, "samples are of type complex128"),
        (changed(), {"channels": 4}, "it has 3 channels: expected 4"),
        (changed(images=IMAGES / 255.0), {"pixels": "uint8"}, "floating-point numbers, which have no fixed range"),
        (changed(images=np.full((20, 8, 6), np.inf)), {}, "not finite|cannot be read"),
        (changed(test_images=IMAGES[..., 0], test_labels=LABELS), {}, r"differ in channels or type: 3 x uint8 \("),
        (changed(test_images=IMAGES / 2.0, test_labels=LABELS), {}, "differ in channels or type"),
        (changed(test_images=IMAGES, test_labels=LABELS + 1), {}, "has the label 2, which no training image has"),
        (changed(labels=LABELS + 0.5), {}, "the label of image 0 of .* is 0.5: expected a class"),
        (changed(labels=np.full(20, np.nan)), {}, "the label of image 0 of .* is missing"),
        (changed(labels=np.stack([LABELS] * 2, 1)), {}, r"of shape \(20, 2\) .*expected whole numbers or text"),
        (changed(labels=LABELS * 1j), {}, "type complex128: expected whole numbers or text"),
        (changed(), {"target": "multilabel"}, r"expected 0 or 1 \(images, labels\) for --data.target=multilabel"),
        (changed(labels=np.full((20, 2), 2)), {"target": "multilabel"}, "0 of image 0 of .* is 2: expected 0 or 1"),
        (changed(labels=np.full(20, np.inf)), {"target": "regression"}, "0 of image 0 of .* is inf: expected a number"),
        (changed(labels=LABELS.astype(str)), {"target": "regression"}, "expected numbers .images,. or"),
        (
            changed(class_names=np.array(["a"])),
            {},
            "of image 1 of .* is 1: expected 0 to 0, as there are 1 class",
        ),
        (changed(class_names=np.array(["a", "a"])), {}, "has a name that is empty or repeated"),
        (changed(class_names=np.array([["a", "b"]])), {}, r"of shape \(1, 2\) and type <U1: expected text"),
        (changed(class_names=np.arange(2)), {}, "expected text .classes,."),
        (changed(), {"eval_split": "val"}, "has no split val to evaluate on"),
    ],
    ids=lambda value: "",
)
def test_unsuitable_arrays_are_named_in_one_line(tmp_path, arrays, options, reason):
    for name in ("data.npz", "data"):
        with pytest.raises(UserError, match=reason) as caught:
            opened(stored(tmp_path / name, **arrays), **options)
        assert "\n" not in str(caught.value)


def test_python_objects_are_never_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch hacked",)

    evil = np.array([Evil()] * 20)
    for name in ("data.npz", "data"):
        for array in ("labels", "images", "class_names"):
            path = stored(tmp_path / f"{array}{name}", **changed(**{array: evil}))
            with pytest.raises(UserError, match=f"{array}.* its elements are Python objects, which are not read"):
                opened(path)


def test_files_that_are_no_arrays_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder/images.npy").mkdir(parents=True)
    for name, reason in (
        ("text.npz", "is not a zip file"),
        ("pipe.npz", "not a regular file"),
        ("none.npz", "No such file"),
        ("empty", "it has: none"),
        ("folder", "not a regular file"),
    ):
        with pytest.raises(UserError, match=reason):
            opened(tmp_path / name)


def test_a_header_cannot_claim_more_than_the_file_has(tmp_path):
    """A petabyte, in a file of 3 KiB; and a compressed array that is said to be longer than it is."""
    path = stored(tmp_path / "data", **changed())
    contents = (path / "images.npy").read_bytes().replace(b"(20, 8, 6, 3), ", b"(20, 10**9, 9),"[:15])
    (path / "images.npy").write_bytes(contents)
    with pytest.raises(UserError, match=r"images.npy cannot be read: "):
        opened(path)
    (path / "images.npy").write_bytes(contents.replace(b"(20, 10**9, 9),", b"(9999, 99, 99),"))
    with pytest.raises(UserError, match=r"images.npy cannot be read: it is truncated: 2,880 of 98,000,199 bytes"):
        opened(path)
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", contents)
    with pytest.raises(UserError, match="its compression is not that of numpy"):
        opened(tmp_path / "lzma.npz")


@pytest.mark.parametrize("seed", range(2))
def test_damaged_arrays_are_read_or_refused(tmp_path, seed):
    """Damage of the zip's directory, of headers and of values."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    np.savez_compressed(file, **changed())
    path, refused = tmp_path / "data.npz", 0
    for _ in range(25):
        contents = bytearray(file.getvalue())
        start = 0 if rng.random() < 0.5 else len(contents) - 250
        for at in rng.integers(start, start + 250, 2):
            contents[at] = rng.integers(256)
        path.write_bytes(contents)
        with contextlib.suppress(UserError):
            opened(path)
            continue
        refused += 1
    assert refused > 5
