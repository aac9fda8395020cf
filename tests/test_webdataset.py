"""Tar shards, as the package webdataset writes and reads them."""

import contextlib
import gzip
import io
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.pictures import assert_equal, noise, take
from train.config import Data
from train.data import load_dataset, train_batches
from train.data.webdataset import expand_braces, open_shards
from train.errors import UserError

webdataset = pytest.importorskip("webdataset")
tariterators = pytest.importorskip("webdataset.tariterators")


def write(path, numbers, **columns):
    """A shard; example i has noise of seed i."""
    with webdataset.TarWriter(str(path)) as shard:
        for i in numbers:
            shard.write({"__key__": f"s{i:03}", "png": noise(12, 10, seed=i), **{n: v(i) for n, v in columns.items()}})
    return path


def read(path):
    """The examples of a shard, as webdataset groups them. (Its own pipeline leaves files open.)"""
    with open(path, "rb") as stream:
        return list(tariterators.group_by_keys(tariterators.tar_file_expander([{"url": str(path), "stream": stream}])))


@pytest.fixture
def shards(tmp_path):
    """Twelve training examples in three shards, and four for evaluation."""
    for shard in range(3):
        write(tmp_path / f"train-{shard:02}.tar", range(4 * shard, 4 * shard + 4), cls=lambda i: i % 2)
    write(tmp_path / "val-00.tar", range(12, 16), cls=lambda i: i % 2)
    return tmp_path


def opened(pattern, **changes):
    return open_shards(str(pattern), Data(f"wds:{pattern}", **changes))


def refusal(pattern, **changes):
    with pytest.raises(UserError) as caught:
        opened(pattern, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["", "{train-{00..02},val-00}.tar", "*.tar"])
def test_examples_are_those_that_webdataset_reads(shards, pattern):
    parts = opened(f"{shards}/{pattern}")
    assert parts.class_names == ("0", "1")
    for source, split, count in ((parts.train, "train", 3), (parts.eval, "val", 1)):
        expected = [sample for i in range(count) for sample in read(shards / f"{split}-{i:02}.tar")]
        assert len(source) == len(expected)
        for i, sample in enumerate(expected):
            np.testing.assert_array_equal(source[i][0], Image.open(io.BytesIO(sample["png"])))
            assert source[i][1] == int(sample["cls"])


def test_a_run_resumes_exactly(shards):
    config = Data(f"wds:{shards}", image_size=(6, 5))
    dataset = load_dataset(config)
    with contextlib.closing(train_batches(dataset, config, 5, seed=0)) as iterator:
        batches = take(iterator, 6)
    for again in (config, Data(f"wds:{shards}", image_size=(6, 5), workers=1)):
        with contextlib.closing(train_batches(load_dataset(again), again, 5, seed=0, start=2)) as iterator:
            assert_equal(take(iterator, 4), batches[2:])


def test_labels_in_json(tmp_path):
    write(
        tmp_path / "a.tar", range(8), json=lambda i: {"kind": "xy"[i % 2], "tags": ["p", "q"][: i % 3], "size": i / 2}
    )
    assert opened(tmp_path, label_columns=("kind",)).class_names == ("x", "y")
    parts = opened(tmp_path, target="multilabel", split=0.75)
    assert parts.class_names == ("p", "q")
    assert {tuple(parts.train[i][1].tolist()) for i in range(6)} <= {(0, 0), (1, 0), (1, 1)}
    parts = opened(tmp_path, target="regression", label_columns=("size",))
    images = {noise(12, 10, seed=i).tobytes(): i / 2 for i in range(8)}
    assert all(images[image.tobytes()] == size for image, (size,) in (parts.train[i] for i in range(len(parts.train))))


def test_suffixes_in_capitals(tmp_path):
    """As cameras write them."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(4):
            written = io.BytesIO()
            Image.fromarray(noise(12, 10, seed=i)).save(written, "PNG")
            for name, content in ((f"DSC{i}.PNG", written.getvalue()), (f"DSC{i}.CLS", str(i % 2).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    parts = opened(tmp_path, split=0.5)
    assert (len(parts.train), len(parts.eval), parts.class_names) == (2, 2, ("0", "1"))


def test_splits_by_folder_and_by_share(tmp_path):
    for split in ("training", "validation"):
        (tmp_path / split).mkdir()
        write(tmp_path / split / "000.tar", range(4), cls=lambda i: i % 2)
    parts = opened(tmp_path)
    assert (len(parts.train), len(parts.eval)) == (4, 4)
    parts = opened(tmp_path / "training/000.tar", split=0.5)
    assert (len(parts.train), len(parts.eval)) == (2, 2)
    assert "--data.split is 0.5, but" in refusal(tmp_path, split=0.5)


def test_braces_are_those_of_a_shell():
    assert expand_braces("a{08..11}{x,y{1..2}}") == [f"a{i:02}{e}" for i in range(8, 12) for e in ("x", "y1", "y2")]
    with pytest.raises(UserError, match="names more than 100,000 files"):
        expand_braces("{0..999999999}")
    with pytest.raises(UserError, match="names more than 100,000 files"):
        expand_braces("{0..9999}{0..9999}")


def tar(path, *members):
    """A tar of (name, content) or of TarInfo."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = b"" if info is member else member[1]
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_only_regular_files_are_read(shards):
    path = shards / "train-09.tar"
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    tar(path, *(link(f"../../etc/{i}.png", kind) for i, kind in enumerate(kinds)), ("notes", b"x"), (".x.png", b"y"))
    assert len(opened(shards).train) == 12


def spoil_header(path, name):
    """Overwrite the header of a member."""
    content = path.read_bytes()
    start = content.index(name)
    path.write_bytes(content[:start] + b"x" * 512 + content[start + 512 :])


def image_file():
    buffer = io.BytesIO()
    Image.fromarray(noise(12, 10)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("change", "message"), [
    (lambda p: p.write_bytes(gzip.compress(p.read_bytes())), "train-01.tar is compressed with gzip: expected an uncom"),
    (lambda p: p.write_bytes(p.read_bytes()[:2000]), "train-01.tar cannot be read: unexpected end of data"),
    (lambda p: p.write_bytes(b"not a tar at all" * 100), "train-01.tar cannot be read: "),
    (lambda p: p.write_bytes(p.read_bytes() * 2), "train-01.tar is damaged at byte .*, or is several tars in one file"),
    (lambda p: spoil_header(p, b"s006.png"), "train-01.tar cannot be read: invalid header"),
    (lambda p: spoil_header(tar(p, ("a.png", b"x"), ("b.png", b"y")), b"b.png"), "train-01.tar .*at byte 1,024"),
    (lambda p: tar(p, ("a.png", image_file())), "1 of 9 examples have no cls, such as train-01.tar/a"),
    (lambda p: tar(p, ("a.cls", b"1")), "1 of 9 examples have no png, such as train-01.tar/a"),
    (lambda p: tar(p, ("a.png", b"x"), ("a.png", b"y")), "train-01.tar has a.png twice"),
    (lambda p: tar(p, ("a.png", b"x"), ("a.cls", b"\xff")), "a.cls in .*train-01.tar cannot be read: "),
    (lambda p: tar(p, ("a.png", b"x"), ("a.json", b"[" * 10_000)), "a.json in .*train-01.tar cannot be read: "),
    (lambda p: tar(p, ("a.png", b"x"), ("a.cls", b"1" * 2**21)), "a.cls in .* has 2,097,152 bytes: expected labels"),
    (lambda p: tar(p, ("a.png", b"x"), ("a.cls", b"")), "the label of train-01.tar/a is missing"),
    (lambda p: p.unlink(), "there is no file .*train-01.tar"),
])  # fmt: skip
def test_damage_is_one_line(shards, change, message):
    change(shards / "train-01.tar")
    assert re.search(message, refusal(shards / "{train-{00..02},val-00}.tar"))


def test_a_shard_that_is_no_image(shards, tmp_path):
    assert "there is no file" in refusal(tmp_path / "nowhere")
    tar(tmp_path / "text/train.tar".replace("text/", ""), ("a.txt", b"x"))
    assert "the first examples have no image; they have txt" in refusal(tmp_path / "train.tar")
