"""The split that the name of a file or of its folder contains."""

from pathlib import Path

import pytest

from train.data.splits import split_of


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-000.tar", "train"),
        ("data/Training_00.tar", "train"),
        ("data/photos-val-01.tar", "val"),
        ("data/valid.parquet", "val"),
        ("data/validation-00000-of-00001.parquet", "validation"),
        ("test/000.tar", "test"),
        ("train/test-000.tar", "test"),  # the file's own name comes first
        ("data/000.tar", "train"),
        ("contest/latest-000.tar", "train"),  # not in the middle of a word
        ("data/evaluation.tar", "train"),
    ],
)
def test_split_of(path, split):
    assert split_of(Path(path)) == split
