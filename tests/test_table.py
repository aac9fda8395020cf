"""Tables of images: CSV, TSV and Parquet, as pandas writes them."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.pictures import noise
from train.config import Data
from train.data import load_dataset
from train.data.table import open_table, read_table
from train.errors import UserError

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with twenty images; image i is noise of seed i."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(20):
        Image.fromarray(noise(12, 10, seed=i)).save(folder / f"{i:03}.png")
    return folder


def write(images, name="table.csv", **columns):
    """A table of the first images, with the given columns."""
    count = len(next(iter(columns.values())))
    frame = pd.DataFrame({"path": [f"{i:03}.png" for i in range(count)], **columns})
    path = images / name
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    return path


def opened(path, **changes):
    return open_table(str(path), Data(f"table:{path}", **changes))


def contents(*sources):
    """Image and target of every example, in an order that does not depend on the split."""
    every = [source[i] for source in sources for i in range(len(source))]
    return sorted((image.tobytes(), np.asarray(target).tolist()) for image, target in every)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_images_and_classes_are_those_of_pandas(images, name):
    path = write(images, name, species=["cat", "dog"] * 10)
    dataset = load_dataset(Data(f"table:{path}", label_columns=("species",)))
    frame = pd.read_parquet(path) if name.endswith("parquet") else pd.read_csv(path, sep=None, engine="python")
    expected = [
        (np.asarray(Image.open(images / row.path)).tobytes(), ["cat", "dog"].index(row.species))
        for row in frame.itertuples()
    ]
    assert contents(dataset.train, dataset.eval) == sorted(expected)
    assert dataset.class_names == ("cat", "dog")
    assert np.bincount([label for _, label in dataset.eval]).tolist() == [2, 2]  # a fifth of each class
    assert "4 images held out for evaluation, 20% of each class (--data.split)" in dataset.notes


def test_columns_are_inferred_and_told(images):
    path = write(images, id=range(8), Label=[3, 10, 3, 10, 3, 10, 3, 10], comment=["x"] * 8)
    parts = opened(path, split=0.5)
    assert parts.class_names == ("3", "10")  # numbers by their value
    assert "images in the column 'path' and labels in 'Label' (--data.image-column" in parts.notes[0]
    quiet = opened(path, split=0.5, image_column="path", label_columns=("Label",))
    assert not any("column" in note for note in quiet.notes)
    assert contents(quiet.eval) == contents(parts.eval)


def test_a_split_column_divides(images):
    path = write(images, label=list("ababab"), split=["train", "Train", "test", "test", "validation", "unused"])
    parts = opened(path)
    assert (len(parts.train), len(parts.eval)) == (2, 1)
    assert contents(parts.eval)[0][0] == noise(12, 10, seed=4).tobytes()
    assert len(opened(path, eval_split="test").eval) == 2


def test_choosing_by_the_test_split_is_told(images):
    path = write(images, label=list("abababab"), split=["train"] * 6 + ["test"] * 2)
    assert any(note.startswith("evaluations on the split test also choose the best") for note in opened(path).notes)
    assert not any("best" in note for note in opened(path, eval_split="test").notes)
    apart = opened(path, split=0.7)
    assert (len(apart.train), len(apart.eval)) == (4, 2)
    assert not any("best" in note for note in apart.notes)


def test_absolute_paths_semicolons_and_a_byte_order_mark(images, tmp_path):
    path = tmp_path / "t.csv"
    lines = ["\ufefffile;class", *(f'{images}/{i:03}.png;"{"a;b"[i % 2 * 2]}"' for i in range(4))]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    assert opened(path, image_column="file").class_names == ("a", "b")


@pytest.mark.parametrize("separator", [";", "|"])
def test_several_labels_in_one_column(images, separator):
    labels = [["cat", "dog"], [], ["dog"], ["bird", "cat"]] * 3
    parts = opened(write(images, labels=[separator.join(own) for own in labels]), target="multilabel")
    assert parts.class_names == ("bird", "cat", "dog")
    expected = [[float(name in own) for name in parts.class_names] for own in labels]
    assert [target for _, target in contents(parts.train, parts.eval)] == [
        target for _, target in sorted(zip([noise(12, 10, seed=i).tobytes() for i in range(12)], expected, strict=True))
    ]
    assert parts.train[0][1].dtype == np.float32


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_several_columns_of_labels_or_numbers(images, name):
    rng = np.random.default_rng(0)
    marks, sizes = rng.integers(0, 2, (10, 2)), rng.normal(size=(10, 2)).astype(np.float32)
    red, round_ = (
        np.where(marks[:, 0], "TRUE", "FALSE"),
        marks[:, 1].astype(bool),
    )  # as spreadsheets write them, and pandas
    path = write(images, name, red=red, round=round_, width=sizes[:, 0], depth=sizes[:, 1])
    parts = opened(path, target="multilabel")
    assert parts.class_names == ("red", "round")
    by_image = {noise(12, 10, seed=i).tobytes(): i for i in range(10)}
    for source in (parts.train, parts.eval):
        for i in range(len(source)):
            image, target = source[i]
            np.testing.assert_array_equal(target, marks[by_image[image.tobytes()]])
    parts = opened(path, target="regression", label_columns=("depth", "width"))
    assert parts.class_names == ("depth", "width")
    image, target = parts.train[0]
    np.testing.assert_array_equal(target, sizes[by_image[image.tobytes()], ::-1])


def test_a_changed_label_changes_the_fingerprint(images):
    columns = dict(label=list("ababab"), split=["train"] * 4 + ["val"] * 2)
    before = opened(write(images, **columns)).fingerprints
    assert opened(write(images, "same.csv", **columns)).fingerprints == before
    columns["label"] = list("abbaab")
    after = opened(write(images, **columns)).fingerprints
    assert after["eval"] == before["eval"]
    assert after["train"].digest != before["train"].digest


def test_no_labels_are_needed_without_a_classifier(images):
    parts = open_table(str(path := write(images, weight=[1.5] * 20)), Data(f"table:{path}"), labels=False)
    assert (len(parts.train), len(parts.eval), parts.class_names) == (18, 2, ())


GOOD = "path,label\n" + "".join(f"00{i}.png,{'ab'[i % 2]}\n" for i in range(6))


@pytest.mark.parametrize(("name", "text", "changes", "message"), [
    ("t.csv", "", {}, "t.csv has no rows"),
    ("t.csv", "path,label\n", {}, "t.csv has no rows"),
    ("t.xlsx", GOOD, {}, "t.xlsx is not a table: expected a .csv, .tsv or .parquet file"),
    ("t.csv", GOOD + "006.png\n", {}, "line 8 of .*t.csv has 1 value: expected 2"),
    ("t.csv", GOOD + "006.png,a,b\n", {}, "line 8 of .*t.csv has 3 values: expected 2"),
    ("t.csv", GOOD + '006.png,"a\n', {}, "t.csv cannot be read: "),
    ("t.csv", GOOD + "006.png,\n", {}, "the label of 006.png is missing: expected text or a whole number"),
    ("t.csv", GOOD + "nowhere.png,a\n", {}, "1 image of .*t.csv does not exist, such as .*/nowhere.png"),
    ("t.csv", GOOD + ",a\n", {}, "t.csv has '' in place of the path of an image"),
    ("t.csv", GOOD + "00\0.png,a\n", {}, r"has '00\\x00.png' in place of the path"),
    ("t.csv", GOOD.replace("label", "path"), {}, "t.csv has two columns named path"),
    ("t.csv", GOOD.replace("path", "a").replace(".png", ""), {}, "which column has the images\\? .* one of a, label"),
    ("t.csv", GOOD, {"image_column": "file"}, "table:.* has no column named file; it has: path, label"),
    ("t.csv", GOOD, {"label_columns": ("x", "label", "y")}, "has no column named x, y; it has: path, label"),
    ("t.csv", GOOD, {"label_columns": ("label", "label")}, "expected other columns, each once"),
    ("t.csv", GOOD, {"eval_split": "val"}, "has no split val to evaluate on; all its images are for training"),
    ("t.csv", GOOD, {"target": "regression"}, "label of 000.png is a: expected a number"),
    ("t.csv", GOOD.replace("b", "a"), {}, None),
    ("t.csv", "path,label\n000.png,a\n001.png,b\n", {}, "one image in each class: expected two or more"),
    ("t.csv", "path,x,y\n" + "000.png,1,1\n" * 4, {}, "which column has the labels\\?"),
    ("t.csv", "path,x,y\n" + "000.png,1,2\n" * 4, {"target": "multilabel", "label_columns": ("x", "y")},
     "y of 000.png is 2: expected 0 or 1"),
    ("t.csv", "path,y\n" + "000.png,nan\n" * 4, {"target": "regression"}, "y of 000.png is nan: expected a number"),
    ("t.csv", "path,label,split\n000.png,a,val\n001.png,b,val\n", {}, "has no split train; it has: val"),
    ("t.csv", "path,label,split\n000.png,a,train\n001.png,b,val\n", {}, "001.png has the label b, which no training"),
])  # fmt: skip
def test_mistakes_are_one_line(images, name, text, changes, message):
    path = images / name
    path.write_text(text)
    if message is None:
        with pytest.raises(UserError, match="has a single class, 'a'"):
            load_dataset(Data(f"table:{path}", **changes))
        return
    with pytest.raises(UserError) as caught:
        opened(path, **changes)
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_encodings_and_kinds_of_files(images):
    (images / "latin.csv").write_bytes(b"path,label\n000.png,\xe4\n")
    (images / "folder.csv").mkdir()
    (images / "bad.parquet").write_bytes(b"PAR1 and more")
    stored = pd.DataFrame({"image": [{"bytes": b"x", "path": None}]})
    stored.to_parquet(images / "stored.parquet")
    for name, message in {
        "latin.csv": r"latin.csv is not encoded in UTF-8 \(byte 19\)",
        "folder.csv": "folder.csv is not a regular file",
        "bad.parquet": "bad.parquet cannot be read: ",
        "missing.csv": "missing.csv cannot be read: No such file or directory",
        "stored.parquet": "has no column of paths; --data=hf:.*stored.parquet reads images that are stored",
    }.items():
        with pytest.raises(UserError, match=message):
            read_table(images / name)
