"""`load_pretrained` and `save_pretrained`: folders that timm writes and reads, single files, and what is refused."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained.timm_models import timm
from tests.test_models import filled
from tests.upstream import channels_first, shake, torch
from vit_jax import create_model, load_pretrained, save_pretrained
from vit_jax.convert import to_torch
from vit_jax.pretrained.preprocessing import Preprocessing

NAME = "vit_tiny_patch16_224"
SIZES = dict(img_size=(32, 48), depth=1, embed_dim=24, num_heads=3, num_classes=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as timm writes it; the network is returned by `published`."""
    folder = tmp_path_factory.mktemp("published")
    model = shake(timm.create_model(NAME, **SIZES).eval())
    timm.models.save_for_hf(model, folder, safe_serialization="both")
    return folder


def in_timm(folder, **arguments):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()


def logits(model, variables, images):
    return np.asarray(jax.jit(model.apply)(variables, images))


def assert_equal_logits(ours, theirs, height, width):
    model, variables, _ = ours
    images = np.random.default_rng(0).standard_normal((2, height, width, 3), np.float32)
    with torch.no_grad():
        expected = theirs(channels_first(images)).numpy()
    np.testing.assert_allclose(logits(model, variables, images), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_folder_of_timms(folder, capsys):
    loaded = load_pretrained(folder)
    assert (loaded.model.depth, loaded.model.dim, loaded.model.mlp_dim, loaded.model.num_classes) == (1, 24, 96, 5)
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert loaded.preprocess == Preprocessing((32, 48), config["crop_pct"], mean=(0.5,) * 3, std=(0.5,) * 3)
    assert_equal_logits(loaded, in_timm(folder), 32, 48)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(64, 48), (16, 32)])
def test_positions_are_resampled_as_timm_resamples_them(folder, size, capsys):
    loaded = load_pretrained(folder, image_size=size)
    assert loaded.model.image_size == loaded.preprocess.image_size == size
    assert_equal_logits(loaded, in_timm(folder, img_size=size), *size)
    assert f"positions are resampled from 2 x 3 to {size[0] // 16} x {size[1] // 16} patches" in capsys.readouterr().err


def test_another_number_of_classes_makes_a_new_head(folder, capsys):
    lines = []
    same, new, none = (load_pretrained(folder, num_classes=n, notify=lines.append) for n in (5, 7, 0))
    assert lines == ["the head for 7 classes is new and random"]
    assert new.variables["params"]["classifier"]["kernel"].shape == (24, 7)
    assert np.std(new.variables["params"]["classifier"]["kernel"]) == pytest.approx(0.02, rel=0.2)
    assert "classifier" not in none.variables["params"]
    for variables in (new.variables, none.variables):
        kept = {name: leaf for name, leaf in variables["params"].items() if name != "classifier"}
        jax.tree.map(np.testing.assert_array_equal, kept, {name: same.variables["params"][name] for name in kept})


def test_what_we_save_is_what_timm_reads(folder, tmp_path):
    model = create_model(f"timm/{NAME}", image_size=(32, 16), depth=1, dim=24, mlp_dim=60, num_classes=3)
    loaded = load_pretrained(folder)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 16, 3), np.float32))
    save_pretrained(tmp_path / "new", model, variables, loaded.preprocess)
    again = load_pretrained(tmp_path / "new")
    assert again.model == model
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    assert_equal_logits((model, variables, None), in_timm(tmp_path / "new"), 32, 16)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_needs_its_architecture(folder, tmp_path, name):
    model = create_model(f"timm/{NAME}", image_size=(32, 48), depth=1, dim=24, mlp_dim=96, num_classes=5)
    with pytest.raises(ValueError, match=f"{name} has no config.json: pass architecture='timm/NAME'"):
        load_pretrained(folder / name)
    sizes = {key: getattr(model, key) for key in ("image_size", "depth", "dim", "mlp_dim")}
    loaded = load_pretrained(folder / name, architecture=f"timm/{NAME}", **sizes)
    expected = load_pretrained(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected.variables)


def test_positions_of_a_file_tell_its_image_size(tmp_path):
    small = dict(depth=1, dim=24, heads=3, mlp_dim=96, num_classes=5)
    model = create_model(f"timm/{NAME}", image_size=48, **small)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 48, 48, 3), np.float32))
    save_pretrained(tmp_path, model, variables, Preprocessing(48))
    lines = []
    file = tmp_path / "model.safetensors"
    loaded = load_pretrained(file, architecture=f"timm/{NAME}", notify=lines.append, **small)
    assert loaded.model.image_size == loaded.preprocess.image_size == (48, 48)
    assert lines == ["the weights have positions of 3 x 3 patches, for images of 48 x 48 pixels"]
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_arguments_in_training_are_kept(folder):
    assert load_pretrained(folder, drop_path=0.1).model.drop_path == 0.1
    with pytest.raises(ValueError, match="unknown argument of load_pretrained: 'drop_pat'; did you mean drop_path"):
        load_pretrained(folder, drop_pat=0.1)


def test_what_does_not_fit_is_refused_in_a_few_lines(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist: expected a folder, a file, timm/NAME\.TAG or hf:"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="does not fit") as error:
        load_pretrained(folder / "model.safetensors", architecture="timm/vit_base_patch16_224")
    assert len(str(error.value).splitlines()) <= 21


@pytest.mark.parametrize(
    ("network", "damage"),
    [
        ("vit_tiny_patch16_224", {"pos_embed": np.zeros(4)}),
        ("vit_tiny_patch16_224", {"head.weight": np.zeros(())}),
        ("pit_ti_224", {"pos_embed": np.zeros((2, 3, 27, 27))}),
        ("swin_tiny_patch4_window7_224", {"layers.7.x.relative_position_bias_table": np.zeros((169, 3))}),
        ("swin_tiny_patch4_window7_224", {"layers.0.x.relative_position_bias_table": np.zeros((170, 3))}),
        ("swin_tiny_patch4_window7_224", {"layers.0.x.relative_position_bias_table": np.zeros(())}),
    ],
)
def test_arrays_of_wrong_shapes_are_refused(tmp_path, network, damage):
    state = {"norm.weight": np.zeros(8), **damage}
    save_file({key: value.astype(np.float32) for key, value in state.items()}, tmp_path / "w.safetensors")
    sizes = dict(image_size=64, window_size=2) if "swin" in network else dict(image_size=64)
    with pytest.raises(ValueError, match=r"w\.safetensors: "):
        load_pretrained(tmp_path / "w.safetensors", architecture=f"timm/{network}", **sizes)


def test_a_model_of_the_zoo_is_not_saved_for_timm(tmp_path):
    model = create_model("vit/tiny", num_classes=2)
    with pytest.raises(ValueError, match=r"model is a ViT, expected a network of timm's, or name="):
        save_pretrained(tmp_path, model, {}, Preprocessing(32))
    odd = create_model(f"timm/{NAME}", qk_norm=True, rms_norm=True)
    with pytest.raises(ValueError, match="no architecture of timm's has the blocks of this model"):
        save_pretrained(tmp_path, odd, {}, Preprocessing(224))


def test_to_torch_gives_timms_keys(folder):
    loaded = load_pretrained(folder)
    assert to_torch(loaded.model, loaded.variables).keys() == in_timm(folder).state_dict().keys()


def test_folders_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)
    theirs = shake(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval())
    theirs.save_pretrained(tmp_path)
    transformers.BitImageProcessorPil(size={"shortest_edge": 64}, crop_size=56).save_pretrained(tmp_path)
    model, variables, preprocess = load_pretrained(tmp_path)
    assert model.image_size == preprocess.image_size == (56, 56)  # as transformers prepares images
    assert preprocess.crop_pct == pytest.approx(56 / 64)
    for height, width in ((56, 56), (32, 32), (24, 40)):  # transformers resamples positions without antialiasing
        images = np.random.default_rng(0).standard_normal((1, height, width, 3), np.float32)
        with torch.no_grad():
            expected = theirs(channels_first(images)).last_hidden_state.numpy()
        if height != 56:
            model, variables, _ = load_pretrained(tmp_path, image_size=(height, width))
        tokens = jax.jit(lambda *args, model=model: model.apply(*args, method="encode"))(variables, images)
        np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_model_of_the_zoo_is_saved_with_its_name(tmp_path):
    model = create_model("efficient/tiny", num_classes=2, channels=1, image_size=16)  # an argument is a module
    images = np.zeros((1, 16, 16, 1), np.float32)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), images))
    preprocess = Preprocessing(16, mean=(0.5,), std=(0.25,))
    more = dict(name="efficient/tiny", input_shape=(16, 16, 1), class_names=("cat", "dog"))
    save_pretrained(tmp_path, model, variables, preprocess, **more)
    loaded = load_pretrained(tmp_path)
    assert loaded.model == model
    assert loaded.preprocess == preprocess
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    with pytest.raises(ValueError, match="is loaded as it is, without num_classes="):
        load_pretrained(tmp_path, num_classes=3)
    for entry, message in ((3, "expected model, arguments"), (dict(model="vti", arguments={}, input_shape=[1]), "vit")):
        (tmp_path / "config.json").write_text(json.dumps({"vit_jax": entry}))
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)


def test_greyscale_is_prepared_as_colour_is():
    grey = np.random.default_rng(0).integers(0, 256, (30, 20, 1), np.uint8)
    one, three = Preprocessing(16, mean=(0.5,), std=(0.25,)), Preprocessing(16, mean=(0.5,) * 3, std=(0.25,) * 3)
    np.testing.assert_array_equal(np.repeat(one(grey), 3, axis=-1), three(np.repeat(grey, 3, axis=-1)))
    with pytest.raises(ValueError, match=r"expected uint8 \(height, width, 1\)"):
        one(np.repeat(grey, 3, axis=-1))
