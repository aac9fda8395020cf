"""What is evaluated: published weights, classes matched by name, and several views; and the command of a run."""

import csv
import itertools
import json
import shlex
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import train.cli
from tests.pictures import noise
from tests.runs import untrained
from train.config import Config, Data
from train.data import load_dataset
from train.data_info import DataInfo
from train.errors import UserError
from train.evaluate import Options
from train.evaluation.predictions import views, with_margin
from train.evaluation.report import write_report
from train.evaluation.subject import Subject, load_subject
from train.extension import extensions_of, with_former_length
from train.main import parse
from train.optim import Extension
from train.run.command import command_of, commands_of
from train.run.stored import Run, read_stored
from train.sharding import make_mesh
from vit_jax import create_model, load_pretrained, save_pretrained
from vit_jax.pretrained.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((16, 24), 0.9, "squash", "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture
def one_device():
    mesh = lambda: make_mesh(None, jax.devices()[:1])
    with (
        mock.patch("train.evaluation.report.make_mesh", mesh),
        mock.patch("train.evaluation.evaluation.make_mesh", mesh),
    ):
        yield


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of weights for three classes and of their images, and the classes in the order of the head."""
    folder, images = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("images")
    sizes = dict(depth=1, dim=16, heads=2, mlp_dim=32, image_size=(16, 24), patch_size=8)
    model = create_model("timm/vit_tiny_patch16_224", num_classes=3, **sizes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 16, 24, 3), np.float32))
    rng = np.random.default_rng(0)
    save_pretrained(
        folder, model, jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes), PREPROCESSING
    )
    names = ["dog", "bird", "cat"]
    for i, (split, name, _) in enumerate(itertools.product(("train", "val"), names, range(3))):
        path = images / split / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(20, 30, seed=i)).save(path)
    return folder, images, names


def with_names(folder, names):
    """Write the names of classes into the folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"label_names": names}))


def test_published_weights_are_evaluated_by_the_names_of_their_classes(published, tmp_path, one_device):
    folder, images, names = published
    with_names(folder, names)
    assert train.cli.main(["evaluate", f"--model={folder}", f"--data=folder:{images}", f"--out={tmp_path}"]) == 0
    model, variables, preprocess = load_pretrained(folder)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["true"] for row in rows] == ["bird"] * 3 + ["cat"] * 3 + ["dog"] * 3
    pixels = np.stack([preprocess(row["image"]) for row in rows])
    logits = np.asarray(jax.jit(model.apply)(variables, pixels))
    assert [row["predicted"] for row in rows] == [names[i] for i in logits.argmax(axis=1)]
    found = np.array([[row[f"p({name})"] for name in names] for row in rows], float)
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=2e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog", "bird", "cow"], "has classes that the network does not know: cat"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], None),  # a placeholder: the order decides
    ],
)
def test_names_that_do_not_match(published, names, message, capsys, one_device):
    folder, images, _ = published
    with_names(folder, names)
    status = train.cli.main(["evaluate", f"--model={folder}", f"--data=folder:{images}"])
    assert (status, message or "") == (2 if message else 0, message or "")
    assert (message or "") in capsys.readouterr().err


def test_another_number_of_classes_is_refused(published, capsys):
    folder, _, _ = published
    with_names(folder, [])
    assert train.cli.main(["evaluate", f"--model={folder}", "--data=digits"]) == 2
    assert f"digits has 10 classes, but {folder} has 3" in capsys.readouterr().err


def test_views_are_crops_and_mirror_images():
    image = jnp.asarray(np.arange(4 * 6).reshape(1, 4, 6, 1))
    every = views(image, (2, 4), flip=True, crops=5)
    corners = [image[:, :2, :4], image[:, :2, 2:], image[:, 2:, :4], image[:, 2:, 2:], image[:, 1:3, 1:5]]
    for found, expected in zip(every, [*corners, *(corner[:, :, ::-1] for corner in corners)], strict=True):
        np.testing.assert_array_equal(found, expected)
    (alone,) = views(corners[0], (2, 4), flip=False, crops=1)
    np.testing.assert_array_equal(alone, corners[0])


def test_five_crops_are_cut_from_a_larger_image():
    dataset, data = with_margin(load_dataset(Data()), Data(eval_crop=0.7))
    assert dataset.image_shape == (10, 10, 1)  # 8 / 0.875, rounded up
    assert (data.image_size, data.eval_crop) == ((10, 10), pytest.approx(0.8))


@pytest.mark.parametrize(
    ("target", "chosen", "name", "expected"),
    [
        ("regression", (), "table:other.csv", ("a", "b")),
        ("regression", (), "array:other.npz", ()),
        ("multilabel", ("b", "a"), "hf:other", ("a", "b")),
        ("multilabel", ("tags",), "hf:other", ()),
        ("class", ("kind",), "table:other.csv", ()),
        ("regression", (), "folder:other", "folder:other has only classes, but the run predicts numbers"),
    ],
)
def test_another_table_is_read_with_the_columns_that_the_run_predicts(target, chosen, name, expected, monkeypatch):
    def load(data, **_):
        raise UserError(repr(data.label_columns))

    info = DataInfo(("a", "b"), (8, 8, 1), (0.5,), (0.2,))
    run = mock.Mock(spec=Run, config=Config(data=Data("table:own.csv", target=target, label_columns=chosen)), info=info)
    monkeypatch.setattr("train.evaluation.subject.load_run", lambda _: run)
    monkeypatch.setattr("train.evaluation.subject.check_classifies", lambda *_: None)
    monkeypatch.setattr("train.evaluation.subject.load_dataset", load)
    with pytest.raises(UserError) as caught:
        load_subject(Options(workdir="run", data=name))
    assert str(caught.value) == (expected if isinstance(expected, str) else repr(expected))


@pytest.mark.exhaustive
def test_an_encoder_has_a_report_without_classes(tmp_path, one_device):
    untrained(tmp_path, "--objective=mae")
    lines = [dict(step=i, split=split, loss=1 / (1 + i)) for i in (0, 9) for split in ("train", "eval")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    began = read_stored(tmp_path)
    extensions = (Extension(90, 100, "stretch"), Extension(100, 120, "constant", 1e-4))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"extensions": [e._asdict() for e in extensions]}))
    page = write_report(tmp_path).read_text()
    assert page.count("Extended by") == 2
    first, _, last = commands_of(read_stored(tmp_path))
    assert parse(shlex.split(first)[2:]) == began.config
    again = parse(shlex.split(last)[2:])
    assert extensions_of(again, with_former_length(again), 1437) == extensions
    assert "<dt>Loss</dt><dd>0.1000</dd>" in page
    assert "Training images as the network saw them" in page
    assert "features = jax.jit(" in page
    assert not any(heading in page for heading in ("Confusions", "mistakes", "run.predict"))


@pytest.mark.parametrize(
    "line",
    [
        "--model=vit",
        "--model=t2t --seed=3 --optim.lr=1e-4 --epochs=2.5 --no-report --augment.flip --model-args depth=2 dim=48",
        "--model=vit/s16 --recipe=deit --data=folder:photos --data.image-size 96 128 --label-smoothing=0",
        "--model=vit --data=folder:my(photos) --freeze backbone --workdir=/a/b",
        "--model=vit --recipe=deit --data=tfds:cifar10 --augment.no-flip",
    ],
)
def test_the_command_of_a_config_gives_it_again(line):
    config = parse(line.split())
    words = shlex.split(command_of(config))
    assert words[:2] == ["vit-jax", "train"]
    assert parse(words[2:]) == config
    assert isinstance(config, Config)


def test_targets_in_the_order_of_the_run():
    """The dataset's column 0 is the run's 1, its 1 the run's 2, and its 2 the run's 0."""
    subject = SimpleNamespace(places=(1, 2, 0))
    assert Subject.targets(subject, np.array([0, 1, 2])).tolist() == [1, 2, 0]
    assert Subject.targets(subject, np.array([[10.0, 20, 30]])).tolist() == [[30, 10, 20]]
