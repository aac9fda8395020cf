"""`train.export` and `train.push`: every form gives the outputs of the run, and nothing wrong is written."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest
from jax import export as jax_export

from tests.initial import initial
from tests.runs import untrained, write_digits
from tests.test_predict import INFO, PATCHES
from tests.test_predict import untrained as run_of
from train.build import build_objective
from train.config import Config, Data
from train.data.augment import normalize
from train.errors import UserError
from train.export import main as export
from train.exporting import folder as exporting
from train.exporting.card import describe
from train.exporting.formats import WRITERS
from train.exporting.program import check_same, program_of, random_pixels
from train.push import main as push
from train.run.stored import Run, load_run
from vit_jax import load_pretrained

pytestmark = pytest.mark.usefixtures("unchecked_types")  # which compare sizes by numpy, where they may broadcast


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "vit"
    untrained(path)
    return path


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtyping.config.jaxtyping_disable", True)
        out = tmp_path_factory.mktemp("exported") / "digits"
        assert export([f"--workdir={workdir}", f"--out={out}"]) == 0
    return out


def test_each_form_gives_the_probabilities_of_the_run(workdir, exported, tmp_path):
    run, ((photo,), _) = load_run(workdir), write_digits(tmp_path, [3])
    names = [path.name for path in exported.iterdir()]
    assert sorted(names) == ["README.md", "config.json", "model.safetensors", "model.stablehlo", "preprocessing.json"]
    model, variables, preprocess = load_pretrained(exported)
    np.testing.assert_allclose(preprocess(photo), run.preprocess(photo), atol=1e-6)
    expected = list(run.predict(photo).values())
    logits = jax.jit(model.apply)(variables, preprocess(photo)[None])
    np.testing.assert_allclose(np.sort(jax.nn.softmax(logits)[0])[::-1], expected, atol=1e-5)
    program = jax_export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for count in (1, 4):
        pixels = np.repeat(preprocess.pixels(photo)[None], count, axis=0)
        np.testing.assert_allclose(np.sort(program.call(pixels)[-1])[::-1], expected, atol=1e-5)


def test_what_stands_beside_tells_input_and_output(workdir, exported):
    info = load_run(workdir).info
    facts = json.loads((exported / "preprocessing.json").read_text())
    assert facts["input"]["shape"] == ["batch", *info.image_shape]
    assert facts["normalize"]["mean"] == list(info.mean)
    assert facts["class_names"] == list(info.class_names)
    assert json.loads((exported / "config.json").read_text())["label_names"] == list(info.class_names)
    card = (exported / "README.md").read_text()
    assert "softmax(model.apply" in card
    assert "onnx" not in card
    assert huggingface_hub.ModelCard(card).data.metrics == ["loss", "accuracy"]


def check(run, name, folder):
    program = program_of(run)
    check_same(program, WRITERS[name](folder, program), name)
    return program


@pytest.mark.parametrize("model", ["levit", pytest.param("max_vit", marks=pytest.mark.exhaustive)])
def test_other_models_are_the_same_in_other_forms(model, tmp_path):
    """With batch norms, and windows."""
    run = run_of(model, shape=(32, 32, 3))
    for name in ("safetensors", "stablehlo"):
        check(run, name, tmp_path)


@pytest.mark.parametrize("pixels", ["uint16", pytest.param("float32", marks=pytest.mark.exhaustive)])
def test_images_of_other_samples_and_bands(pixels, tmp_path):
    """Their preprocessing is not one of published weights."""
    run = run_of("vit", *PATCHES, shape=(8, 12, 5))
    run = dataclasses.replace(run, info=run.info._replace(pixels=pixels))
    check(run, "safetensors", tmp_path)
    assert load_pretrained(tmp_path).preprocess is None
    program = check(run, "stablehlo", tmp_path)
    assert describe(program)["input"] | {"name": "", "meaning": ""} == dict(
        name="", meaning="", dtype=pixels, shape=["batch", 8, 12, 5]
    )


def made(config, info):
    """A run at initialisation."""
    objective = build_objective(config, info)
    return Run(config, info, objective, *initial(objective.init, jax.random.key(0), info.images))


def test_an_encoder_gives_features(tmp_path):
    run = made(Config(model="vit", model_args=PATCHES, objective="simmim"), INFO)
    for name in ("safetensors", "stablehlo"):
        program = check(run, name, tmp_path)
    assert program.output == "features"
    assert program.function(random_pixels(run, 2)).shape == (2, 24)


@pytest.mark.parametrize(
    ("target", "of_outputs", "meaning"),
    [
        ("regression", lambda x: x * [2, 3] + [10, 20], "outputs of the model * [2.0, 3.0] + [10.0, 20.0]"),
        ("multilabel", lambda x: 1 / (1 + np.exp(-x)), "sigmoid of the logits"),
    ],
)
def test_other_targets_have_their_outputs(target, of_outputs, meaning, tmp_path):
    info = INFO._replace(target=target, target_mean=(10.0, 20.0), target_std=(2.0, 3.0))
    run = made(Config(model="vit", model_args=PATCHES, data=Data(target=target)), info)
    program = check(run, "safetensors", tmp_path)
    pixels = random_pixels(run, 1)
    outputs = np.asarray(run.model.apply(run.variables, normalize(pixels, info.mean, info.std)))
    np.testing.assert_allclose(program.function(pixels), of_outputs(outputs), rtol=1e-5)
    assert describe(program)["output"]["meaning"] == meaning


def test_a_distillation_token_is_not_in_weights(tmp_path):
    run = run_of("vit", *PATCHES, distill=True)
    check(run, "stablehlo", tmp_path)
    with pytest.raises(UserError, match="--formats safetensors cannot hold the distillation token"):
        check(run, "safetensors", tmp_path)


@pytest.mark.exhaustive  # tests/pretrained/test_networks.py shows that timm loads what `save_pretrained` writes
def test_timm_loads_its_architectures(tmp_path):
    pytest.importorskip("torch")
    from tests.pretrained.timm_models import timm
    from tests.upstream import channels_first, torch

    sizes = ("dim=24", "depth=2", "heads=3", "mlp_dim=48", "patch_size=4")
    run = run_of("timm/vit_tiny_patch16_224", *sizes)
    check(run, "safetensors", tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = np.random.default_rng(0).standard_normal((2, 8, 12, 3), np.float32)
    with torch.no_grad():
        logits = theirs(channels_first(images)).numpy()
    np.testing.assert_allclose(run.model.apply(run.variables, images), logits, atol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == ["a", "b"]


def test_onnx_runtime_gives_the_same_probabilities(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx_ir")  # jax2onnx needs it
    pytest.importorskip("jax2onnx")
    check(run_of("vit", *PATCHES), "onnx", tmp_path)


def test_a_missing_package_is_told(tmp_path, monkeypatch, workdir, capsys):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert export([f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--formats", "onnx"]) == 2
    assert "--formats onnx needs jax2onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_jax_that_jax2onnx_does_not_know_is_told(tmp_path, monkeypatch, workdir, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "jax2onnx", SimpleNamespace(to_onnx=lambda *_, **__: jax.core.NoSuchName))
    assert export([f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--formats", "onnx"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"jax2onnx does not work with jax {jax.__version__} (" in line
    assert "NoSuchName" in line
    assert not list(tmp_path.iterdir())


def test_a_program_of_too_many_bytes_is_told(tmp_path, monkeypatch, workdir, capsys):
    monkeypatch.setattr("train.exporting.formats.LARGEST", 10_000)
    assert export([f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--formats", "stablehlo"]) == 2
    assert "but those of vit have 0.0 GB: use --formats safetensors" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_wrong_program_is_not_written(tmp_path, monkeypatch, workdir, capsys):
    def wrong(folder, program):
        function = WRITERS["stablehlo"](folder, program)
        return lambda pixels: function(pixels) + 2e-5

    monkeypatch.setattr(exporting, "WRITERS", WRITERS | {"stablehlo": wrong})
    assert export([f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--formats", "stablehlo"]) == 2
    assert "stablehlo is wrong, and nothing was written: its probabilities differ" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out={tmp}",), "already exists: expected a new path"),
        (("--out=gs://bucket/x",), "expected a local path"),
        (("--out={tmp}/out", "--formats", "tflite"), "safetensors or stablehlo or onnx"),
        (("--out={tmp}/out", "--workdir={tmp}"), "holds no run of this version"),
        ((), "--out is missing"),
    ],
)
def test_bad_options_are_told(options, message, workdir, tmp_path, capsys):
    options = [option.format(tmp=tmp_path) for option in options]
    assert export([f"--workdir={workdir}", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


class FakeApi:
    """The hub's client, as far as it is used."""

    endpoint, failure, calls = "https://hub.test", None, []

    def __init__(self, **options):
        self.calls.append(options)

    def create_repo(self, repository, **options):
        if self.failure:
            raise self.failure
        self.calls.append((repository, options))

    def upload_folder(self, repo_id, folder_path, commit_message):
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        self.calls.append((repo_id, files))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr(FakeApi, "failure", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return FakeApi


def test_push_uploads_the_folder_with_a_card(hub, workdir, capsys):
    assert push(["me/digits", f"--workdir={workdir}", "--license=mit", "--private"]) == 0
    client, (repository, options), (uploaded, files) = hub.calls
    assert client["token"] == "hf_token"
    assert repository == uploaded == "me/digits"
    assert options == dict(private=True, exist_ok=True)
    assert {"README.md", "config.json", "model.safetensors", "model.stablehlo", "preprocessing.json"} == files.keys()
    card = huggingface_hub.ModelCard(files["README.md"].decode())
    assert card.data.license == "mit"
    assert 'load_pretrained("hf:me/digits")' in card.text
    assert "https://hub.test/me/digits" in capsys.readouterr().out


def test_a_dry_run_uploads_nothing(hub, workdir, tmp_path):
    out = tmp_path / "out"
    assert push(["me/digits", f"--workdir={workdir}", "--dry-run", f"--out={out}", "--formats", "safetensors"]) == 0
    assert not hub.calls
    assert load_pretrained(out).model == load_run(workdir).model


def test_refused_pushes_are_told(hub, workdir, monkeypatch, capsys):
    of_run = f"--workdir={workdir}"
    assert push(["me/digits", of_run, "--dry-run"]) == 2
    assert "--dry-run needs --out" in capsys.readouterr().err
    assert push(["digits", of_run]) == 2
    assert "expected ORG/REPO" in capsys.readouterr().err
    refused = OSError("no\nconnection")
    monkeypatch.setattr(hub, "failure", refused)
    assert push(["me/digits", of_run, "--formats", "safetensors"]) == 2
    assert "me/digits cannot be written at https://hub.test: no connection" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert push(["me/digits", of_run]) == 2
    assert "without an access token: run `hf auth login`" in capsys.readouterr().err
