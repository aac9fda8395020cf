"""Fetching weights: huggingface_hub's client against a server on this machine that answers as the hub does."""

import errno
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

hub_package = pytest.importorskip("huggingface_hub")
from huggingface_hub import constants  # noqa: E402

from tests.pretrained.loopback_hub import Hub, Repository  # noqa: E402
from vit_jax.pretrained import hub  # noqa: E402
from vit_jax.pretrained.files import load_weights, save_folder  # noqa: E402

NAME = "timm/vit_tiny.test"
CONFIG = dict(architecture="vit_tiny", num_classes=2, pretrained_cfg={})


def content_of(folder, value=1.0) -> dict[str, bytes]:
    """Files of a repository whose weights are equal numbers."""
    save_folder(folder, CONFIG, {"head.weight": np.full((100, 8), value, np.float32), "head.bias": np.zeros(8)})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(monkeypatch):
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.stop()


@pytest.fixture
def fetch(tmp_path):
    """`hub.fetch` with a cache of its own, whose notices are in `fetch.lines`."""

    def fetch(*args, **kwargs):
        return hub.fetch(*args, cache=tmp_path / "cache", notify=fetch.lines.append, **kwargs)

    fetch.lines = []
    return fetch


@pytest.fixture
def published(server, tmp_path):
    files = content_of(tmp_path / "published") | {"README.md": b"# a card", "pytorch_model.bin": b"a pickle"}
    server.repositories[NAME] = Repository(files, card={"license": "apache-2.0"})
    return files


def leftovers(tmp_path) -> list[str]:
    """Files in the cache of downloads that did not end."""
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.suffix in (".incomplete", ".tmp")]


def test_names():
    assert hub.parse("timm/vit_tiny_patch16_224.augreg") == ("timm/vit_tiny_patch16_224.augreg", None)
    assert hub.parse("hf:facebook/dinov2-small") == ("facebook/dinov2-small", None)
    assert hub.parse("hf:facebook/dinov2-small@refs/pr/1") == ("facebook/dinov2-small", "refs/pr/1")
    assert hub.parse("vit/tiny") is hub.parse("weights/model.pth") is hub.parse("timm/a/b") is None


@pytest.mark.parametrize(
    "name",
    ["hf:dinov2", "hf:a/b/c", "hf:a/../b", "hf:/etc/passwd", "hf:a/b@", "hf:a/b@../c", "hf:a/b@c d", "hf:a--b/c"],
)
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="is not a re"):
        hub.parse(name)


def test_fetches_what_is_needed_and_says_the_licence(server, published, fetch, tmp_path):
    snapshot = fetch(NAME)
    assert (snapshot.repository, snapshot.weights, snapshot.licence) == (NAME, "model.safetensors", "apache-2.0")
    assert snapshot.commit == Repository.commit(published)
    assert sorted(path.name for path in snapshot.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(server.downloaded()) == ["config.json", "model.safetensors"]
    (line,) = fetch.lines
    size = len(published["model.safetensors"]) / 1e6
    assert line == (
        f"{NAME}: fetching {size:.1f} MB of commit {snapshot.commit[:7]}, licence: apache-2.0 ({server.url}/{NAME})"
    )
    assert load_weights(snapshot.folder)["head.weight"].mean() == 1
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (None, "not stated"),
        ({"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0"),
        (
            {"license": "other", "license_name": "dinov3-license", "license_link": "https://x.org"},
            "dinov3-license https",
        ),
        ({"license": ["mit", "apache-2.0"]}, "['mit', 'apache-2.0']"),
        ({"license": "a\x1b[2Jb"}, r"a\x1b[2Jb"),
    ],
)
def test_licences(server, published, fetch, card, expected):
    server.repositories[NAME].card = card
    fetch(NAME)
    assert f"licence: {expected}" in fetch.lines[0]


def test_a_process_of_its_own(server, published, tmp_path):
    """With the client's settings from the environment, and modules of it that nothing else has imported."""
    code = f"from vit_jax.pretrained import hub; print(hub.fetch({NAME!r}).folder)"
    settings = dict(HF_ENDPOINT=server.url, HF_HOME=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.stderr.startswith(f"{NAME}: fetching 0.0 MB of commit"), done.stderr
    assert load_weights(done.stdout.strip())["head.weight"].mean() == 1
    assert done.stdout.startswith(str(tmp_path / "hub"))


def test_the_second_time_asks_only_for_the_commit(server, published, fetch, monkeypatch):
    first = fetch(NAME)
    server.requests.clear()
    monkeypatch.setattr(hub, "_is_intact", None)  # files are compared with their hashes only once
    assert fetch(NAME) == first
    assert [(method, path) for method, path, _ in server.requests] == [("GET", f"/api/models/{NAME}")]
    assert len(fetch.lines) == 1


def test_a_new_commit_is_fetched_and_the_old_one_stays(server, published, fetch, tmp_path):
    old = fetch(NAME)
    server.repositories[NAME] = Repository(content_of(tmp_path / "new", 2.0), old=published)
    new = fetch(NAME)
    server.requests.clear()
    assert load_weights(new.folder)["head.weight"].mean() == 2
    assert fetch(NAME, revision=old.commit).folder == fetch(NAME, revision="old").folder == old.folder
    assert server.downloaded() == []
    assert fetch(NAME, revision=new.commit[:40]).commit == new.commit


def test_offline(server, published, fetch, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"(?s)is not in the cache.* HF_HUB_OFFLINE is set\.\nUnset .*hf download timm/"):
        fetch(NAME)
    assert server.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    online = fetch(NAME)
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", online.commit):
        assert fetch(NAME, revision=revision)[:4] == online[:4]
    with pytest.raises(OSError, match=r"\(revision other\) is not in the cache"):
        fetch(NAME, revision="other")
    assert server.requests == []


def test_without_connection_the_cache_answers(server, published, fetch, monkeypatch):
    online = fetch(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert fetch(NAME)[:4] == online[:4]
    expected = f"{NAME}: cannot ask the hub for news .*; using commit {online.commit[:7]}, which is in the cache"
    assert re.fullmatch(expected, fetch.lines[1])
    with pytest.raises(OSError, match=r"(?s)could not be fetched from http://127.0.0.1:1 \(.*\)\.\nCheck the connect"):
        fetch("timm/other")


def test_the_hub_is_down(server, published, fetch):
    server.status = 503
    with pytest.raises(OSError, match=r"could not be fetched .*\(it answered 503\)"):
        fetch(NAME)
    server.status = None
    online = fetch(NAME)
    server.status = 503
    assert fetch(NAME).folder == online.folder
    assert "for news (it answered 503); using" in fetch.lines[1]


def test_the_connection_is_lost_between_two_files(server, published, fetch, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries again after a while
    server.lost.add("model.safetensors")
    with pytest.raises(OSError, match=r"(?s)^timm/\S+ could not be fetched from .*\(it answered 500\)\.\nCheck"):
        fetch(NAME)
    assert server.downloaded() == ["config.json"]
    server.lost.clear()
    fetch(NAME)
    assert server.downloaded() == ["config.json", "model.safetensors"]


def test_a_broken_transfer_is_resumed(server, published, fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server.cut.add("model.safetensors")
    snapshot = fetch(NAME)
    weights = published["model.safetensors"]
    ranges = [range for method, path, range in server.requests if "storage" in path and method == "GET"]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= len(weights) // 2
    assert (snapshot.folder / "model.safetensors").read_bytes() == weights
    assert leftovers(tmp_path) == []


def sharded(folder) -> dict[str, bytes]:
    names = {"head.weight": "model-00001-of-00002.safetensors", "head.bias": "model-00002-of-00002.safetensors"}
    whole = load_weights(folder)
    files = {"config.json": json.dumps(CONFIG).encode()}
    for key, name in names.items():
        save_folder(folder.parent / name, {}, {key: whole[key]})
        files[name] = (folder.parent / name / "model.safetensors").read_bytes()
    return files | {"model.safetensors.index.json": json.dumps(dict(weight_map=names)).encode()}


def test_shards(server, published, fetch, tmp_path, monkeypatch):
    files = sharded(tmp_path / "published")
    server.repositories[NAME] = Repository(files | {"model-00001-of-00001.bin": b""})
    snapshot = fetch(NAME)
    assert snapshot.weights == "model.safetensors.index.json"
    assert sorted(server.downloaded()) == sorted(files)
    assert len(fetch.lines) == 1
    state = load_weights(snapshot.folder)
    assert {key: array.shape for key, array in state.items()} == {"head.weight": (100, 8), "head.bias": (8,)}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(NAME).folder == snapshot.folder
    (snapshot.folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OSError, match="is not in the cache"):
        fetch(NAME)


def test_an_index_that_lists_files_elsewhere(server, fetch):
    index = json.dumps(dict(weight_map={"w": "../../x.safetensors"})).encode()
    server.repositories[NAME] = Repository({"model.safetensors.index.json": index})
    with pytest.raises(ValueError, match=r"lists '\.\./\.\./x\.safetensors' for w: expected a \.safetensors file"):
        fetch(NAME)
    index = json.dumps(dict(weight_map={"w": "x.safetensors"})).encode()
    server.repositories[NAME] = Repository({"model.safetensors.index.json": index})
    with pytest.raises(ValueError, match=r"lacks 'x\.safetensors', which model\.safetensors\.index\.json lists"):
        fetch(NAME)


def test_gated(server, published, fetch, tmp_path):
    server.repositories[NAME] = Repository(published, gated="manual", token="right")
    for token in (None, "wrong"):
        with pytest.raises(PermissionError, match=rf"is gated: accept its terms at {server.url}/{NAME},\nthen .*HF_"):
            fetch(NAME, token=token)
    assert server.downloaded() == fetch.lines == []
    assert load_weights(fetch(NAME, token="right").folder)
    assert leftovers(tmp_path) == []


def test_unknown(server, published, fetch):
    with pytest.raises(ValueError, match=rf"^timm/none was not found at {server.url}: check the name\.\nIf it is priv"):
        fetch("timm/none")
    with pytest.raises(ValueError, match=f"^{NAME} has no revision 'v9': see {server.url}/{NAME}/commits/main"):
        fetch(NAME, revision="v9")
    with pytest.raises(ValueError, match=f"^{NAME} has no file 'other.bin'"):
        fetch(NAME, weights="other.bin")
    server.repositories[NAME] = Repository({"README.md": b"", "flax_model.msgpack": b""})
    with pytest.raises(ValueError, match=f"^{NAME} has no weights in a known format .*: it has README.md, flax_model"):
        fetch(NAME)


def test_weights_can_be_chosen(server, published, fetch):
    assert fetch(NAME, weights="pytorch_model.bin").weights == "pytorch_model.bin"
    assert sorted(server.downloaded()) == ["config.json", "pytorch_model.bin"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_whose_hash_is_wrong(server, published, fetch, tmp_path, name):
    server.changed[name] = published[name][:-1] + b"\x99"
    with pytest.raises(OSError, match=f"^{NAME}: {name} is not the file that the hub lists, and was removed"):
        fetch(NAME)
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.name == name] == []
    assert leftovers(tmp_path) == []
    server.changed.clear()
    assert load_weights(fetch(NAME).folder)


def test_a_file_whose_size_is_wrong(server, published, fetch, tmp_path):
    server.changed["model.safetensors"] = published["model.safetensors"] + b"more"
    with pytest.raises(OSError, match=f"^{NAME} could not be fetched .*should be of size"):
        fetch(NAME)
    assert [path.name for path in (tmp_path / "cache").rglob("model.safetensors")] == []
    server.changed.clear()
    assert load_weights(fetch(NAME).folder)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "the disk is full. Free space, or set HF_HOME"), (errno.EROFS, "the cache cannot be written")],
)
def test_the_disk_is_full(server, published, fetch, monkeypatch, number, expected):
    def failing(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hub_package, "hf_hub_download", failing)
    with pytest.raises(OSError, match=f"{NAME}: {expected}") as error:
        fetch(NAME)
    assert error.value.errno == number


def test_without_the_package(fetch, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"^weights on the hub need the huggingface_hub package: pip install"):
        fetch(NAME)
