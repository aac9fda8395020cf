"""Networks of timm's other than vision transformers, with the same weights as timm's."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tests.pretrained.parity import assert_close, assert_equal, shake_wide, state_of
from tests.pretrained.timm_models import OTHER_FILES, constructor_arguments, timm
from tests.upstream import channels_first, shake, torch
from vit_jax import capture, create_model, load_pretrained, save_pretrained
from vit_jax.convert import from_torch, to_torch
from vit_jax.pretrained import convnext
from vit_jax.pretrained.networks import CLASSES, NETWORKS
from vit_jax.pretrained.swin import Swin
from vit_jax.pretrained.vision_transformer import VisionTransformer

NAMES = [name for kind, presets in CLASSES.items() if kind is not VisionTransformer for name in presets]


class Row(NamedTuple):
    """Narrow networks to compare: timm's name, size of the images, and the arguments of both."""

    name: str
    size: tuple[int, int]
    theirs: dict[str, Any]
    ours: dict[str, Any]
    gradients: bool = True

    def networks(self):
        theirs = timm.create_model(self.name, num_classes=5, **self.theirs)
        return theirs, create_model(f"timm/{self.name}", num_classes=5, **self.ours)


def swin(name, size, **sizes):
    return Row(name, size, dict(img_size=size, **sizes), dict(image_size=size, **sizes))


CONVNEXT = dict(dims=(8, 16, 24, 32), depths=(1, 2, 1, 1))
SWIN = dict(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4)
SWIN_S3 = dict(embed_dim=16, depths=(2, 1, 1), num_heads=(2, 2, 4), window_size=(4, 8, 8))
ROWS = (
    # Windows are shifted along both axes in the first stage, and along the longer one in the second.
    swin("swin_tiny_patch4_window7_224", (32, 64), **SWIN),
    # Windows of two sizes, which in the second and third stage are as large as the map.
    swin("swin_s3_tiny_224", (32, 32), **SWIN_S3),
    # The gradients take five times as long to compile as all the rest; they are compared at full width, on request.
    Row("convnext_tiny", (64, 100), CONVNEXT, CONVNEXT, gradients=False),
)
EACH = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def images_of(size, count=2):
    return np.random.default_rng(0).standard_normal((count, *size, 3), np.float32)


def last_blocks(model) -> list[int]:
    """The number of the last block of each stage."""
    return (np.cumsum(model.depths) - 1).tolist()


def compiled(model, gradients: bool = True):
    """The function `run` of `assert_equal`."""

    def loss(params, others, images, weights):
        found = capture.features(model, {"params": params, **others}, images, layers=last_blocks(model))
        stages = {f"stage {i}": x for i, x in enumerate(found.layers)}
        return (found.logits * weights).sum(), {"logits": found.logits, "pooled": found.pooled} | stages

    gradient = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
    function = jax.jit(gradient if gradients else lambda *args: (loss(*args), None))

    def run(variables, images, weights):
        others = {name: tree for name, tree in variables.items() if name != "params"}
        return jax.tree.map(np.asarray, function(variables["params"], others, images, weights))

    return run


def outputs_of_timm(module, images):
    tokens, stages = module.forward_intermediates(images)
    assert torch.equal(tokens, module.forward_features(images))
    pooled = module.forward_head(tokens, pre_logits=True)
    made = {"logits": module(images), "pooled": pooled}
    return made | {f"stage {i}": stage.movedim(1, -1) for i, stage in enumerate(stages)}


@EACH
def test_narrow_networks_equal_timms(row):
    theirs, ours = row.networks()
    assert_equal(theirs, ours, images_of(row.size), compiled(ours, row.gradients), outputs_of_timm)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_full_width_equal_timms(name):
    """With few blocks: two in each stage."""
    depths = dict(depths=(2, 2, 2, 2))
    size = create_model(f"timm/{name}").maps[0][0] * 4 if NETWORKS[name][0] is Swin else 64
    theirs = timm.create_model(name, num_classes=5, **depths)
    ours = create_model(f"timm/{name}", num_classes=5, **depths)
    assert_equal(theirs, ours, images_of((size, size), 1), compiled(ours), outputs_of_timm, perturb=shake_wide)


def test_every_name_is_known():
    modules = [file.__name__.rpartition(".")[2] for file in OTHER_FILES]
    names = {name for module in modules for name in timm.list_models(module=module, pretrained=True)}
    assert {name.partition(".")[0] for name in names} == {*NAMES} | convnext.UNSUPPORTED.keys()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("convnextv2_tiny.fcmae", "global response normalisation"),
        ("convnext_atto_ols", "a stem of overlapping patches"),
        ("convnext_large_mlp", "a further linear layer in its head"),
    ],
)
def test_what_is_missing_is_said(name, missing):
    with pytest.raises(ValueError, match=f"timm/{name.partition('.')[0]} is not supported: it has {missing}"):
        create_model(f"timm/{name}")


def test_sizes_equal_timms():
    for name in NAMES:
        theirs = constructor_arguments(name)
        model = create_model(f"timm/{name}")
        for keyword, argument in (model.timm_keywords | {"conv_mlp": "conv_mlp"}).items():
            if keyword in theirs:
                value = theirs.pop(keyword)
                assert getattr(model, argument) == (tuple(value) if isinstance(value, list) else value), (name, keyword)
        assert theirs.keys() <= {"class", "patch_size"}, name
        if hasattr(model, "image_size"):
            assert (3, model.image_size, model.image_size) == timm.get_pretrained_cfg(name).input_size


def test_layers_as_convolutions_are_the_same_network():
    """timm stores the linear layers of small ConvNeXts as 1x1 convolutions."""
    images = images_of((32, 32))
    (linear, ours), (convolutional, ours_too) = (
        Row(name, (32, 32), CONVNEXT, CONVNEXT).networks() for name in ("convnext_tiny", "convnext_atto")
    )
    weights = shake(linear).state_dict()
    other = {key: weights[key].reshape(value.shape) for key, value in convolutional.state_dict().items()}
    convolutional.eval().load_state_dict(other)
    with torch.no_grad():
        torch.testing.assert_close(convolutional(channels_first(images)), linear(channels_first(images)))
    variables = from_torch(ours_too, state_of(convolutional), images)
    jax.tree.map(np.testing.assert_array_equal, variables, from_torch(ours, state_of(linear), images))
    exported = to_torch(ours_too, variables)
    assert {key: value.shape for key, value in exported.items()} == {key: value.shape for key, value in other.items()}


@EACH
def test_folders_are_timms(row, tmp_path):
    """Those that timm writes are read, and those that are written here are read by timm."""
    theirs, ours = row.networks()
    timm.models.save_for_hf(shake(theirs), tmp_path / "theirs")
    model, variables, preprocess = load_pretrained(tmp_path / "theirs")
    assert model == ours
    jax.tree.map(np.testing.assert_array_equal, variables, from_torch(ours, state_of(theirs), images_of(row.size)))
    save_pretrained(tmp_path / "ours", model, variables, preprocess)
    again = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True)
    torch.testing.assert_close(again.state_dict(), theirs.state_dict())


@EACH
def test_heads_for_other_classes(row, tmp_path):
    theirs, ours = row.networks()
    timm.models.save_for_hf(shake(theirs), tmp_path)
    lines = []
    new, none = (load_pretrained(tmp_path, num_classes=count, notify=lines.append) for count in (7, 0))
    assert lines == ["the head for 7 classes is new and random"]
    head = ours.timm_heads[0]
    state, given = to_torch(new.model, new.variables), state_of(theirs)
    assert state[f"{head}.weight"].shape == (7, ours.num_features)
    assert np.std(state[f"{head}.weight"]) == pytest.approx(0.02, rel=0.2)
    theirs.reset_classifier(0)
    without = to_torch(none.model, none.variables)
    assert without.keys() == theirs.state_dict().keys()
    for key, value in without.items():
        np.testing.assert_array_equal(value, given[key])
        np.testing.assert_array_equal(value, state[key])


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")
@pytest.mark.parametrize(("side", "window"), [(64, 8), (24, 3), (16, 4)])
def test_tables_of_relative_positions_are_resampled_as_timm_does_it(side, window, tmp_path):
    theirs, _ = ROWS[0].networks()
    timm.models.save_for_hf(shake(theirs), tmp_path)
    lines = []
    model, variables, preprocess = load_pretrained(tmp_path, image_size=side, window_size=window, notify=lines.append)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=side, window_size=window)
    assert preprocess.image_size == (side, side)
    for key, value in state_of(theirs).items():
        assert_close(to_torch(model, variables)[key], value, 1e-5, key)
    assert lines == [f"relative positions are resampled from windows of (4, 4) to {model.windows} pixels"]


def test_windows_that_do_not_tile_are_refused():
    message = "window_size=7: expected windows that tile the maps of image_size=64, 16x16, 8x8, 4x4, 2x2 pixels"
    with pytest.raises(ValueError, match=message):
        create_model("timm/swin_tiny_patch4_window7_224", image_size=64)
    model = create_model("timm/swin_tiny_patch4_window7_224", image_size=64, window_size=8)
    assert model.windows == (8, 8, 4, 2)
    with pytest.raises(ValueError, match=r"images of shape \(1, 32, 64, 3\): expected sides of image_size=64"):
        jax.eval_shape(model.init, jax.random.key(0), images_of((32, 64), 1))
