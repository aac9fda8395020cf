"""Datasets for `fuzz.py`: valid tables, Parquet files and tar shards, and their readers."""

import csv
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np

from train.config import Data
from train.data.dataset import load_dataset
from train.data_kinds import check_data
from train.errors import UserError


def make_tables(folder: Path) -> None:
    """Write six images, and tables of classes, labels and numbers as CSV, TSV and Parquet."""
    import pyarrow.csv
    import pyarrow.parquet

    _write_images(folder / "images")
    (folder / "tables").mkdir()
    header = ("path", "label", "kind", "size", "split")
    rows = [(f"../images/{i}.png", "ab"[i % 2], i % 2, i / 4, "train" if i < 8 else "val") for i in range(12)]
    for name, separator in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        with open(folder / "tables" / name, "w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([header, *rows])
    table = pyarrow.csv.read_csv(folder / "tables/a.csv")
    pyarrow.parquet.write_table(table, folder / "tables/d.parquet")


def make_stored(folder: Path) -> None:
    """Write datasets of Hugging Face: Parquet files, and what `save_to_disk` writes."""
    import datasets

    datasets.disable_progress_bars()
    _write_images(folder / "images")
    files = [str(folder / f"images/{i}.png") for i in range(12)]
    made = datasets.Dataset.from_dict({"image": files, "label": [i % 2 for i in range(12)]})
    made = made.cast_column("image", datasets.Image()).cast_column("label", datasets.ClassLabel(names=["a", "b"]))
    made = made.map(lambda row: row, cache_file_name=str(folder / "cache.arrow"))
    (folder / "data").mkdir()
    made.to_parquet(folder / "data/train.parquet")
    made.save_to_disk(folder / "data/saved")


def make_shards(folder: Path) -> None:
    """Write a training and an evaluation shard."""
    _write_images(folder / "images")
    (folder / "shards").mkdir()
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        with tarfile.open(folder / f"shards/{split}-000.tar", "w") as archive:
            for i in numbers:
                _add(archive, f"s{i}.png", (folder / f"images/{i}.png").read_bytes())
                _add(archive, f"s{i}.cls", b"%d" % (i % 2))
                _add(archive, f"s{i}.json", json.dumps({"size": i / 4, "tags": ["x", "y"][: i % 3]}).encode())


def make_arrays(folder: Path) -> None:
    """Write arrays of images and labels, as .npz and as a folder of .npy files."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 4, 4, 3), np.uint8), np.arange(12) % 2
    arrays = {
        "train_images": images[:8],
        "train_labels": labels[:8],
        "val_images": images[8:],
        "val_labels": labels[8:],
    }
    (folder / "arrays/npy").mkdir(parents=True)
    np.savez(folder / "arrays/data.npz", **arrays)
    for name, array in arrays.items():
        np.save(folder / f"arrays/npy/{name}.npy", array)


def _write_images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(folder / f"{i}.png")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def read_table(folder: Path, file: Path) -> None:
    """Read it as each target."""
    _read(f"table:{file}", file, {"class": (), "multilabel": ("kind",), "regression": ("size",)})


def read_stored(folder: Path, file: Path) -> None:
    """Read the dataset that a file belongs to. Its Arrow cache is beside the folder."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = folder.parent / "cache"
    datasets.disable_progress_bars()
    _read(f"hf:{file if file.suffix == '.parquet' else folder / 'data/saved'}", file, {"class": ()})


def read_shards(folder: Path, file: Path) -> None:
    """Read both shards."""
    _read(f"wds:{file.parent}", file, {"class": (), "multilabel": ("tags",), "regression": ("size",)})


def read_arrays(folder: Path, file: Path) -> None:
    """Read an .npz file, or all .npy files."""
    _read(f"array:{file if file.suffix == '.npz' else file.parent}", file, {"class": (), "regression": ()})


def _read(name: str, file: Path, columns: dict[str, tuple[str, ...]]) -> None:
    """Load the data and read every example. The content of `file` decides on the options.

    Args:
        name: Name of the data.
        file: The damaged file.
        columns: Label columns by target.
    """
    rng = random.Random(file.read_bytes())
    target = rng.choice(list(columns))
    split = 0.5 if rng.random() < 0.1 else None
    config = Data(name, target=target, label_columns=columns[target], split=split, image_size=(4, 4))
    try:
        check_data(config)
        dataset = load_dataset(config, labels=rng.random() < 0.9)
        for source in (dataset.train, dataset.eval):
            for i in range(len(source)):
                source[i]
    except UserError as error:
        if "\n" in str(error):
            raise RuntimeError(f"more than one line: {error}") from error
        raise
