"""Published weights, served from a local folder."""

import dataclasses
import email.message
import hashlib
import http.client
import io
import urllib.request
import urllib.response
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from train import pretrained
from train.build import DataInfo
from train.config import Config, Distill
from train.distill.teacher import load_teacher
from train.errors import UserError
from vit_jax import create_model
from vit_jax.convert import to_torch
from vit_jax.pretrained.preprocessing import HALF, IMAGENET, Preprocessing
from vit_jax.pretrained.torchvision.weights import WEIGHTS, Weights, preprocessing_of, published_weights
from vit_jax.registry import TORCHVISION


class Server(urllib.request.BaseHandler):
    """Answers https requests from a local folder instead of the network; a test may set other `answers`."""

    folder: Path
    answers: dict  # name of a file to a function that gives (status, headers, body)

    def https_open(self, request):
        name = request.full_url.rpartition("/")[2]
        file = self.folder / name
        if name in self.answers:
            status, headers, body = self.answers[name]()
        elif file.exists():
            status, headers, body = 200, {"Content-Length": str(file.stat().st_size)}, io.BytesIO(file.read_bytes())
        else:
            status, headers, body = 404, {}, io.BytesIO()
        message = email.message.Message()
        for key, value in headers.items():
            message[key] = value
        response = urllib.response.addinfourl(body, message, request.full_url, status)
        response.msg = http.client.responses[status]
        return response


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A file named like weights of resnet18, which `Server` returns instead of torchvision's."""
    content = b"weights" * 1000
    file = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / file).write_bytes(content)
    monkeypatch.setattr(Server, "folder", folder, raising=False)
    monkeypatch.setattr(Server, "answers", {}, raising=False)
    replaced = [Server if h is urllib.request.HTTPSHandler else h for h in pretrained.HANDLERS]
    monkeypatch.setattr(pretrained, "HANDLERS", replaced)
    published = Weights(file, preprocessing_of("resnet18"))
    monkeypatch.setitem(WEIGHTS, "resnet18", {"IMAGENET1K_V1": published})
    return folder / file


def test_weights_are_fetched_once_and_kept(server, tmp_path):
    path = pretrained.published_file("resnet18", "IMAGENET1K_V1", tmp_path / "cache" / "deep")
    assert path.read_bytes() == server.read_bytes()
    server.unlink()
    assert pretrained.published_file("resnet18", "IMAGENET1K_V1", tmp_path / "cache" / "deep") == path


def test_without_a_network_it_says_which_file_to_put_where(server, tmp_path):
    name = server.name
    server.unlink()
    with pytest.raises(UserError, match=f"{name} cannot be fetched .*: fetch it elsewhere, and put it at .*{name}"):
        pretrained.published_file("resnet18", "IMAGENET1K_V1", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_another_file_under_that_name_is_refused(server, tmp_path):
    server.write_bytes(b"something else")
    with pytest.raises(UserError, match="did not give the published file"):
        pretrained.published_file("resnet18", "IMAGENET1K_V1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]
    (tmp_path / server.name).write_bytes(b"half of it")
    with pytest.raises(UserError, match="delete it"):
        pretrained.published_file("resnet18", "IMAGENET1K_V1", tmp_path)


class Failing(io.BytesIO):
    """A response body that ends with an error of the HTTP layer."""

    def read(self, *_):
        raise http.client.IncompleteRead(b"half", 1000)


def raising(error: Exception):
    def answer():
        raise error

    return answer


def redirect(url: str):
    return lambda: (302, {"Location": url}, io.BytesIO())


@pytest.mark.parametrize(
    ("answer", "reason"),
    {
        "a cut body": (lambda: (200, {}, Failing()), r"IncompleteRead\(4 bytes read, 1000 more expected\)"),
        "no HTTP": (raising(http.client.BadStatusLine("\x1b[2J")), r"\\x1b\[2J"),
        "a long header": (raising(http.client.LineTooLong("header line")), "got more than 65536 bytes"),
        "no answer": (raising(TimeoutError("timed out")), "timed out"),
        "an error without words": (raising(http.client.CannotSendRequest()), "CannotSendRequest"),
        "an error of the server": (lambda: (500, {}, io.BytesIO()), "HTTP Error 500: Internal Server Error"),
        "less than promised": (lambda: (200, {"Content-Length": "9"}, io.BytesIO(b"abc")), "ended after 3 of 9 bytes"),
        "too much, as it says": (
            lambda: (200, {"Content-Length": "1001"}, io.BytesIO()),
            "has 1,001 bytes, expected at",
        ),
        "too much, untold": (lambda: (200, {}, io.BytesIO(bytes(1001))), "more than 1,000 bytes"),
        "plain http": (redirect("http://elsewhere/file"), "redirects to http://elsewhere/file, expected an https"),
        "a file of this machine": (
            redirect("file:///etc/passwd"),
            "file:///etc/passwd.* is not allowed",
        ),
        "an address that is none": (redirect("https://[::1/file"), "Invalid IPv6 URL"),
        "itself": (lambda: redirect(f"https://here/{Server.name}")(), "redirect"),
    }.values(),
)
def test_whatever_a_server_answers_is_one_line(server, tmp_path, monkeypatch, answer, reason):
    monkeypatch.setattr(pretrained, "LARGEST", 1000)
    monkeypatch.setattr(Server, "name", server.name, raising=False)
    Server.answers[server.name] = answer
    with pytest.raises(UserError, match=f"cannot be fetched .*{reason}") as error:
        pretrained.published_file("resnet18", "IMAGENET1K_V1", tmp_path / "cache")
    assert str(error.value).isprintable()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("length", ["many", "-1", "\u0663", "9" * 5000, "7000, 7000"])
def test_a_length_that_is_no_number_is_passed_over(server, tmp_path, length):
    Server.answers[server.name] = lambda: (200, {"Content-Length": length}, io.BytesIO(server.read_bytes()))
    path = pretrained.published_file("resnet18", "IMAGENET1K_V1", tmp_path / "cache")
    assert path.read_bytes() == server.read_bytes()


def test_a_redirect_to_https_is_followed(server, tmp_path):
    Server.answers[server.name] = lambda: Server.answers.clear() or redirect(f"https://there/{server.name}")()
    assert pretrained.published_file("resnet18", "IMAGENET1K_V1", tmp_path / "cache").exists()


@pytest.mark.parametrize("url", ["http://here/file", "file:///etc/passwd", "ftp://here/file", "data:,x"])
def test_other_schemes_than_https_are_not_opened(url):
    with pytest.raises(OSError, match="unknown url type"):
        pretrained.opener().open(url)


def test_a_source_is_a_file_or_the_name_of_weights(server, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "CACHE", tmp_path / "cache")
    assert pretrained.weights_file("resnet18", str(server), "--init") == str(server)
    with pytest.raises(UserError, match=r"^--init /nowhere.pth does not exist: .* or one of IMAGENET1K_V1"):
        pretrained.weights_file("resnet18", "/nowhere.pth", "--init")
    with pytest.raises(UserError, match=r"/nowhere.pth does not exist: expected a .pth, .pt or .safetensors file$"):
        pretrained.weights_file("vit/tiny", "/nowhere.pth", "--init")


def test_every_teacher_has_published_weights():
    assert WEIGHTS.keys() == TORCHVISION.keys()
    with pytest.raises(ValueError, match="'IMAGENET1K_V9' of resnet50: expected one of IMAGENET1K_V1, IMAGENET1K_V2"):
        published_weights("resnet50", "IMAGENET1K_V9")
    with pytest.raises(ValueError, match="did you mean resnet50"):
        published_weights("resnet5", "IMAGENET1K_V1")


def test_preprocessing_follows_the_weights():
    assert preprocessing_of("resnet50") == Preprocessing((224, 224), 224 / 256, "center", "bilinear", *IMAGENET)
    assert preprocessing_of("resnet50", "resnet50-11ad3fa6.pth").resized(500, 500) == (232, 232)
    assert preprocessing_of("googlenet").mean == HALF[0]


def test_the_table_is_torchvisions():
    pytest.importorskip("torch")
    import tests.upstream  # noqa: F401, which makes torchvision importable

    torchvision = pytest.importorskip("torchvision")
    for teacher in TORCHVISION:
        theirs = {w.name: w for w in torchvision.models.get_model_weights(teacher)}
        theirs.pop("IMAGENET1K_FEATURES", None)  # has no classifier
        assert WEIGHTS[teacher].keys() == theirs.keys()
        for name, ours in WEIGHTS[teacher].items():
            assert theirs[name].url == pretrained.URL + ours.file
            seen, shown = ours.preprocessing, theirs[name].transforms()
            assert seen.image_size == (*shown.crop_size, *shown.crop_size)
            assert seen.resized(100, 200) == (shown.resize_size[0], 2 * shown.resize_size[0])
            assert seen.interpolation == shown.interpolation.value
            if teacher not in ("googlenet", "inception_v3"):
                assert (seen.mean, seen.std) == (tuple(shown.mean), tuple(shown.std))


def zeros(network):
    """Variables of `network`, all zero."""
    abstract = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)


def test_a_teacher_of_torchvisions_sees_images_as_its_weights_did(tmp_path):
    network = create_model("mnasnet0_5", num_classes=2)
    file = str(tmp_path / "weights.safetensors")
    save_file(to_torch(network, zeros(network)), file)
    info = DataInfo(("a", "b"), (32, 48, 3), (0.5,) * 3, (0.25,) * 3)
    distill = Distill(teacher="mnasnet0_5", weights=file)
    preprocessing = preprocessing_of("mnasnet0_5")

    teacher, _ = load_teacher(Config(distill=distill), info)
    assert (teacher.mean, teacher.std, teacher.interpolation) == (*IMAGENET, preprocessing.interpolation)
    assert (teacher.student_mean, teacher.student_std, teacher.image_size) == (info.mean, info.std, (32, 48))
    teacher, _ = load_teacher(Config(distill=dataclasses.replace(distill, image_size="own")), info)
    assert teacher.image_size == preprocessing.image_size == (224, 224)

    save_file(to_torch(model := create_model("vit/tiny", num_classes=2), zeros(model)), file)
    ours = Distill(teacher="vit/tiny", weights=file, image_size="own")
    with pytest.raises(UserError, match=r"--distill\.image-size own: vit/tiny has no known size"):
        load_teacher(Config(distill=ours), info)
