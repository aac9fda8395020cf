"""Published weights as the start of a run: from every source, for other classes and sizes, with their preprocessing."""

import dataclasses
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from tests.pictures import write_folder
from tests.runs import untrained
from train import convert
from train.build import DataInfo, build_objective
from train.config import Config, Data
from train.data import image_to_input
from train.errors import UserError
from train.fitting import fit
from train.initial import Initial, load_initial
from train.published import with_published
from train.run.stored import abstract_state, read_run_file
from vit_jax import create_model, load_pretrained, save_pretrained
from vit_jax.convert import to_torch
from vit_jax.objectives import create_objective
from vit_jax.pretrained.positions import resample_positions
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.tags import find_tag

ARCHITECTURE = "timm/vit_tiny_patch16_224"
SIZES = dict(depth=2, dim=16, heads=2, mlp_dim=32)
PAIRS = tuple(f"{key}={value}" for key, value in SIZES.items())
PREPROCESSING = Preprocessing((32, 48), 0.9, "squash", "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
INFO = DataInfo(("a", "b"), (32, 48, 3), PREPROCESSING.mean, PREPROCESSING.std)


class Published(NamedTuple):
    """A folder of weights, and what is in it."""

    folder: str
    variables: dict

    @property
    def flat(self) -> dict:
        return flatten_dict(self.variables)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    model = create_model(ARCHITECTURE, image_size=(32, 48), num_classes=3, **SIZES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 48, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    save_pretrained(folder, model, variables, PREPROCESSING)
    return Published(str(folder), variables)


def initial(info=INFO, **options) -> Initial:
    """The initial variables of a run for `info`, whose data is never read."""
    config = with_published(Config(**options))
    objective = build_objective(config, info)
    return load_initial(config, objective, info, abstract_state(config, objective, info))


def test_a_folder_is_fine_tuned_and_predicts(published, tmp_path, capsys):
    data = write_folder(tmp_path / "data", {"train": 4, "val": 2}, size=lambda i: (40 + i, 60))
    workdir = tmp_path / "run"
    base = (f"--model={published.folder}", f"--data=folder:{data}", "--batch-size=2")
    untrained(workdir, "--steps=1", base=base)
    said = capsys.readouterr().out
    assert re.search(r"model +timm/test_vit dim=16 depth=2 mlp_dim=32", said)
    assert "2 classes" in said
    assert "as the weights expect: squash crop of 90.0%, bilinear, mean 0.4 0.5 0.6, deviation 0.2 0.3 0.4" in said
    left = "classifier/bias, classifier/kernel"
    assert f"2 left random ({left}), 2 of the source left out ({left})" in said

    config, info = read_run_file(workdir)
    assert (info.image_shape, info.mean, info.std) == ((32, 48, 3), PREPROCESSING.mean, PREPROCESSING.std)
    photo = data / "val/a/000.png"
    seen = image_to_input(photo, info.image_shape, config.data, info.mean)
    np.testing.assert_array_equal(seen, PREPROCESSING.pixels(photo))

    from train.predict import main

    assert main([str(photo), "--workdir", str(workdir)]) == 0


def test_the_name_of_weights_gives_model_and_preprocessing():
    name = "timm/vit_base_patch16_clip_224.openai"
    config = with_published(Config(model=name, data=Data("folder:photos", mean=(0.1, 0.2, 0.3))))
    expected = find_tag(name).preprocessing
    assert (config.model, config.init) == ("timm/vit_base_patch16_clip_224", name)
    data = config.data
    assert (data.image_size, data.channels, data.interpolation) == ((224, 224), 3, "bicubic")
    assert (data.mean, data.std, data.eval_crop) == ((0.1, 0.2, 0.3), expected.std, expected.crop_pct)
    assert with_published(config) == config  # as when a run continues
    resnet = with_published(Config(model="resnet50", init="IMAGENET1K_V2"))
    assert (resnet.data.interpolation, resnet.data.eval_crop) == ("bilinear", pytest.approx(224 / 232))
    assert with_published(Config(model="timm/vit_tiny_patch16_224")) == Config(model="timm/vit_tiny_patch16_224")


def test_a_repository_gives_model_and_preprocessing(published, monkeypatch):
    from vit_jax.pretrained import hub, loading

    def fetch(repository, revision, *, notify):
        assert (repository, revision) == ("someone/flowers", "v1")
        notify("fetched")
        return hub.Snapshot(loading.Path(published.folder), "model.safetensors", repository, "0" * 40, None)

    monkeypatch.setattr(hub, "fetch", fetch)
    source = "hf:someone/flowers@v1"
    found = initial(model=source, data=Data("folder:photos"))
    assert (found.report.source, len(found.report.loaded)) == (source, len(published.flat) - 2)


@pytest.mark.parametrize("size", [(64, 48), (32, 16)])
def test_positions_are_resampled(published, size):
    info = INFO._replace(image_shape=(*size, 3))
    found = initial(info, model=ARCHITECTURE, model_args=PAIRS, init=published.folder)
    assert found.report.resampled == ("pos_embedding",)
    grid = (size[0] // 16, size[1] // 16)
    expected = resample_positions(published.variables["params"]["pos_embedding"], (2, 3), grid)
    np.testing.assert_allclose(found.variables["params"]["pos_embedding"], expected, rtol=1e-6)


def test_tables_of_relative_positions_are_resampled(tmp_path):
    """Swin's windows of 4 pixels do not tile the maps of images of 48 pixels; those of 3 do."""
    sizes = dict(embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, image_size=32)
    model = create_model("timm/swin_tiny_patch4_window7_224", num_classes=2, **sizes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    save_pretrained(tmp_path, model, variables, Preprocessing(32))
    info = INFO._replace(image_shape=(48, 48, 3))
    found = flatten_dict(initial(info, model=str(tmp_path), model_args=("window_size=3",)).variables["params"])
    tables = [leaf for path, leaf in found.items() if path[-1] == "relative_position_bias_table"]
    assert [table.shape for table in tables] == [(25, 1), (25, 2)]
    with pytest.raises(UserError, match=r"window_size=4: expected windows that tile the maps of image_size=48"):
        initial(info, model=str(tmp_path))


def test_a_head_for_as_many_classes_is_kept_unless_the_encoder_alone_is_wanted(published):
    info = INFO._replace(class_names=("a", "b", "c"))
    options = dict(model=ARCHITECTURE, model_args=PAIRS)
    whole = initial(info, **options, init=published.folder)
    assert (whole.report.random, whole.report.left_out) == ((), ())
    jax.tree.map(np.testing.assert_array_equal, whole.variables, published.variables)
    encoder = initial(info, **options, init_from=published.folder)
    assert encoder.report.random == encoder.report.left_out == ("classifier/bias", "classifier/kernel")
    assert encoder.report.missing == ()


@pytest.mark.parametrize("objective", ["mae", "dino"])
def test_pretraining_goes_on_from_published_weights(published, objective):
    found = initial(model=published.folder, objective=objective)
    assert found.path == ("encoder",) == create_objective(objective, create_model("vit/tiny", num_classes=0)).trunk_path
    assert "encoder/transformer/block_1/attn/qkv/kernel" in found.report.loaded
    assert found.report.missing == ()
    assert found.report.left_out == ("classifier/bias", "classifier/kernel")


def test_a_file_is_read_in_its_publishers_layout(published, tmp_path):
    expected = initial(model=ARCHITECTURE, model_args=PAIRS, init=published.folder)
    model = create_model(ARCHITECTURE, image_size=(32, 48), num_classes=3, **SIZES)
    state = to_torch(model, published.variables)
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.safetensors")
    pairs = (*PAIRS, "image_size=(32, 48)")
    with pytest.raises(UserError, match="image_size: is set by the data"):
        initial(model=ARCHITECTURE, model_args=pairs, init=f"{tmp_path}/w.safetensors")
    # Without a configuration, positions are taken to be those of a square; six are not.
    info = INFO._replace(image_shape=(32, 32, 3))
    square = resample_positions(published.variables["params"]["pos_embedding"], (2, 3), (2, 2))
    state["pos_embed"] = np.concatenate([state["pos_embed"][:, :1], np.asarray(square)], axis=1)
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.safetensors")
    found = initial(info, model=ARCHITECTURE, model_args=PAIRS, init=f"{tmp_path}/w.safetensors")
    assert found.report.loaded == expected.report.loaded
    assert found.report.resampled == ()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Weights of vit-pytorch's ViT for 16x16 pixels and three classes, as a file and as `train.convert` writes them."""
    root = tmp_path_factory.mktemp("zoo")
    sizes = dict(patch_size=4, dim=16, depth=1, heads=2, dim_head=8, mlp_dim=32)
    model = create_model("vit", image_size=16, num_classes=3, **sizes)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    save_file(to_torch(model, variables), root / "w.safetensors")
    pairs = tuple(f"{key}={value}" for key, value in sizes.items())
    arguments = ["--model=vit", f"--out={root}/flax", "--model-args", *pairs, "image_size=16", "num_classes=3"]
    assert convert.main([f"{root}/w.safetensors", *arguments]) == 0
    return root, pairs, variables["params"]


@pytest.mark.parametrize("name", ["w.safetensors", "flax"])
@pytest.mark.parametrize("option", ["init", "init_from"])
def test_weights_of_the_zoo_for_other_classes_and_sizes(zoo, name, option):
    root, pairs, params = zoo
    info = INFO._replace(image_shape=(16, 24, 3))
    found = initial(info, model="vit/tiny", model_args=pairs, **{option: f"{root}/{name}"})
    assert found.report.random == found.report.left_out == ("mlp_head/bias", "mlp_head/kernel")
    assert found.report.resampled == ("pos_embedding",)
    patches = resample_positions(params["pos_embedding"][None, 1:], (4, 4), (4, 6))[0]
    expected = np.concatenate([params["pos_embedding"][:1], patches])
    np.testing.assert_allclose(found.variables["params"]["pos_embedding"], expected, rtol=1e-6)
    kernel = ("params", "transformer", "attn_0", "to_qkv", "kernel")
    np.testing.assert_array_equal(flatten_dict(found.variables)[kernel], flatten_dict({"params": params})[kernel])


def test_a_run_with_other_classes_gives_no_head(tmp_path, published):
    untrained(tmp_path, "--steps=1")
    info = DataInfo(tuple("0123456789"), (8, 8, 1), (0.5,), (0.5,))
    config = read_run_file(tmp_path).config
    same = initial(info, model="vit", model_args=config.model_args, init=str(tmp_path))
    assert same.report.random == ()
    renamed = info._replace(class_names=tuple("abcdefghij"))
    other = initial(renamed, model="vit", model_args=config.model_args, init=str(tmp_path))
    assert other.report.random == ("mlp_head/bias", "mlp_head/kernel")


def test_blocks_that_stay_random_are_told(published):
    found = initial(model=ARCHITECTURE, model_args=(*PAIRS[1:], "depth=3"), init=published.folder)
    assert len(found.report.missing) == 12
    assert {name.split("/")[1] for name in found.report.missing} == {"block_2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="timm/vit_tiny_patch16_224.augreg"), "did you mean timm/vit_tiny_patch16_224.augreg_in21k"),
        (dict(model="timm/vit_tiny_patch16_224", init="timm/vit_tiny_patch16_224"), "has no tag: expected one of"),
        (dict(model="timm/vit_tiny_patch16_224.augreg_in21k", init="w.pth"), "both name initial weights"),
        (dict(model="hf:nobody"), "--model hf:nobody"),
        (dict(model="timm/vit_tiny_patch16_224", init="{folder}", model_args=("depth=1",)), "there and"),
        (
            dict(model=ARCHITECTURE, init="{folder}", model_args=(*PAIRS, "activation=quick_gelu")),
            "activation is 'gelu'",
        ),
        (dict(model=ARCHITECTURE, init="{folder}", model_args=PAIRS, init_prefix="a."), "--init-prefix a. is not used"),
        (dict(model="vit/tiny", init="{folder}"), "it is of a VisionTransformer, not of a ViT; --model=/"),
        (dict(model="cait/tiny", init="{folder}/model.safetensors"), "look like timm's ViT or Meta's DeiT"),
    ],
)
def test_what_does_not_fit_is_told(published, options, message):
    options = {key: value.format(folder=published.folder) if key == "init" else value for key, value in options.items()}
    with pytest.raises(UserError) as caught:
        initial(**options)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize("family", ["Dinov2", "ViT", "CLIPVision"])
def test_a_folder_of_transformers_gives_an_architecture_of_timms(tmp_path, family):
    pytest.importorskip("torch")
    import tests.pretrained.timm_models  # noqa: F401  (replaces torchvision, which transformers imports)

    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    config = getattr(transformers, f"{family}Config")(image_size=32, patch_size=16, **sizes)
    theirs = getattr(transformers, f"{family}Model")(config)
    theirs.save_pretrained(tmp_path)
    info = INFO._replace(image_shape=(32, 32, 3))
    found = initial(info, model=str(tmp_path), data=Data("folder:photos", image_size=(32, 32)))
    assert found.report.missing == ()
    expected = load_pretrained(tmp_path, image_size=32).variables["params"]["transformer"]
    jax.tree.map(np.testing.assert_array_equal, found.variables["params"]["transformer"], expected)


def test_positions_of_a_turned_image_are_resampled(zoo):
    root, pairs, _ = zoo
    wide = initial(
        INFO._replace(image_shape=(16, 24, 3)), model="vit/tiny", model_args=pairs, init=f"{root}/w.safetensors"
    )
    loaded = {("params", "pos_embedding"): wide.variables["params"]["pos_embedding"]}
    fitted = fit(loaded, loaded, head=frozenset(), old=(4, 6), new=(6, 4))
    assert fitted.resampled == loaded.keys()
    assert not np.allclose(*fitted.variables.values(), *loaded.values())


def test_the_preprocessing_of_a_fine_tuned_run_goes_on(published, tmp_path):
    data = write_folder(tmp_path / "data", {"train": 4, "val": 2}, size=lambda i: (40 + i, 60))
    base = (f"--model={published.folder}", f"--data=folder:{data}", "--batch-size=2")
    untrained(tmp_path / "run", "--steps=1", base=base)
    stored = read_run_file(tmp_path / "run").config
    again = with_published(Config(model="timm/test_vit", init=str(tmp_path / "run"), data=Data(f"folder:{data}")))
    assert dataclasses.replace(again.data, min_crop=stored.data.min_crop) == stored.data


def test_a_folder_that_is_gone_and_grey_images_are_told(published, tmp_path):
    with pytest.raises(UserError, match=r"--model /nowhere: expected a folder with weights and config.json, or a name"):
        with_published(Config(model="/nowhere"))
    with pytest.raises(UserError, match=r"--data.channels is 1, but published weights expect RGB"):
        with_published(Config(model=published.folder, data=Data("folder:photos", channels=1)))


def test_weights_of_other_heads_are_refused(tmp_path):
    untrained(tmp_path, "--steps=1")
    config, info = read_run_file(tmp_path)
    pairs = tuple(pair for pair in config.model_args if not pair.startswith(("heads", "dim_head")))
    with pytest.raises(UserError, match="heads is 2 there and 1 here"):
        initial(info, model="vit", model_args=(*pairs, "heads=1", "dim_head=16"), init=str(tmp_path))
