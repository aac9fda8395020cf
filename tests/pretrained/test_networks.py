"""Networks of timm's other than vision transformers, with the same weights as timm's."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax import export

from tests.pretrained.parity import assert_close, assert_equal, shake_wide, state_of
from tests.pretrained.timm_models import OTHER_FILES, constructor_arguments, timm
from tests.upstream import channels_first, shake, torch
from vit_jax import capture, create_model, load_pretrained, save_pretrained
from vit_jax.convert import from_torch, to_torch
from vit_jax.objectives.features import pooled, regions
from vit_jax.pretrained.convnext import UNSUPPORTED, ConvNeXt
from vit_jax.pretrained.levit import LeViT
from vit_jax.pretrained.networks import CLASSES, NETWORKS
from vit_jax.pretrained.pit import PiT
from vit_jax.pretrained.swin import Swin
from vit_jax.pretrained.vision_transformer import VisionTransformer

NAMES = [name for kind, presets in CLASSES.items() if kind is not VisionTransformer for name in presets]


class Row(NamedTuple):
    """Narrow networks to compare: timm's name, size of the images, and the arguments of both.

    `ends` are the numbers of the last blocks of the stages. Gradients take several times as long to compile as outputs:
    some are compared at full width alone, on request.
    """

    name: str
    size: tuple[int, int]
    ends: tuple[int, ...]
    theirs: dict[str, Any]
    ours: dict[str, Any]
    gradients: bool = True

    def networks(self):
        theirs = timm.create_model(self.name, num_classes=5, **self.theirs)
        return theirs, create_model(f"timm/{self.name}", num_classes=5, **self.ours)


def sized(name, size, ends, **sizes):
    """A row of networks for images of one size whose arguments have the same names otherwise."""
    return Row(name, size, ends, dict(img_size=size, **sizes), dict(image_size=size, **sizes))


CONVNEXT = dict(dims=(8, 16, 24, 32), depths=(1, 2, 1, 1))
SWIN = dict(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4)
SWIN_S3 = dict(embed_dim=16, depths=(2, 1, 1), num_heads=(2, 2, 4), window_size=(4, 8, 8))
PIT = dict(patch_size=8, stride=4, base_dims=(8, 8, 8), depth=(1, 2, 1), heads=(1, 2, 4))


LEVIT = (
    dict(img_size=(64, 96), embed_dim=(16, 32, 40), key_dim=16, depth=(1, 2, 1), num_heads=(2, 3, 4)),
    dict(image_size=(64, 96), dim=(16, 32, 40), dim_key=16, depth=(1, 2, 1), heads=(2, 3, 4)),
)
ROWS = (
    # Windows are shifted along both axes in the first stage, and along the longer one in the second.
    sized("swin_tiny_patch4_window7_224", (32, 64), (1, 3), **SWIN),
    # Windows of two sizes, which in the second and third stage are as large as the map.
    sized("swin_s3_tiny_224", (32, 32), (1, 2, 3), **SWIN_S3)._replace(gradients=False),
    Row("convnext_tiny", (64, 100), (0, 2, 3, 4), CONVNEXT, CONVNEXT, gradients=False),
    Row("levit_128s", (64, 96), (0, 3, 5), *LEVIT),  # blocks between stages count, too
    sized("pit_s_224", (32, 40), (0, 2, 3), **PIT)._replace(gradients=False),
    sized("pit_s_distilled_224", (32, 40), (0, 2, 3), **PIT),
)
EACH = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def images_of(size, count=2):
    return np.random.default_rng(0).standard_normal((count, *size, 3), np.float32)


def compare(theirs, ours, images, ends, gradients=True, **options):
    """Assert that outputs of stages, inputs of heads, logits and gradients are equal."""
    run, heads = compiled(ours, ends, gradients), ours.timm_heads
    assert_equal(theirs, ours, images, run, lambda module, images: outputs_of_timm(module, images, heads), **options)


def compiled(model, ends, gradients: bool):
    """The function `run` of `assert_equal`."""
    before = 1 + model.distilled if isinstance(model, PiT) else 0

    def loss(params, others, images, weights):
        found = capture.features(model, {"params": params, **others}, images, layers=ends)
        flat = [x.reshape(len(images), -1, x.shape[-1])[:, before:] for x in found.layers]
        stages = {f"stage {i}": x for i, x in enumerate(flat)}
        return (found.logits * weights).sum(), {"logits": found.logits, "pooled": found.pooled} | stages

    gradient = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
    function = jax.jit(gradient if gradients else lambda *args: (loss(*args), None))

    def of_timms(path, gradient):
        """LeViT's biases are timm's divided by a number, so gradients are timm's multiplied by it."""
        return gradient / model.dim_key if jax.tree_util.DictKey("pos_bias") in path else gradient

    def run(variables, images, weights):
        others = {name: tree for name, tree in variables.items() if name != "params"}
        value, gradients = jax.device_get(function(variables["params"], others, images, weights))
        return value, gradients and (jax.tree_util.tree_map_with_path(of_timms, gradients[0]), gradients[1])

    return run


def outputs_of_timm(module, images, heads):
    tokens, stages = module.forward_intermediates(images)
    assert torch.equal(tokens, module.forward_features(images))
    inputs = []
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for name in heads
    ]
    logits = module(images)
    for hook in hooks:
        hook.remove()
    made = {"logits": logits, "pooled": torch.cat(inputs, dim=-1)}
    return made | {f"stage {i}": stage.flatten(2).transpose(1, 2) for i, stage in enumerate(stages)}


@EACH
def test_narrow_networks_equal_timms(row):
    theirs, ours = row.networks()
    compare(theirs, ours, images_of(row.size), row.ends, row.gradients, perturb=shake_with_biases)


@pytest.mark.usefixtures("unchecked_types")  # which compare sizes by numpy, where they may broadcast
@EACH
def test_narrow_networks_are_traced_for_any_batch(row):
    _, model = row.networks()
    variables = jax.eval_shape(model.init, jax.random.key(0), images_of(row.size))
    (batch,) = export.symbolic_shape("b")
    logits = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((batch, *row.size, 3), np.float32))
    assert logits.shape == (batch, 5)


def shake_with_biases(module, scale: float):
    """`shake`, after which LeViT's position biases change its attention, and attention changes the result."""
    shake(module, scale=scale)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("attention_biases", "proj.ln.bn.weight")):
                parameter.mul_(10 / scale)
    return module.eval()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_full_width_equal_timms(name):
    """With two blocks in each stage."""
    few, ends = {
        ConvNeXt: (dict(depths=(2, 2, 2, 2)), (1, 3, 5, 7)),
        Swin: (dict(depths=(2, 2, 2, 2)), (1, 3, 5, 7)),
        LeViT: (dict(depth=(2, 2, 2)), (1, 4, 7)),
        PiT: (dict(depth=(2, 2, 2)), (1, 3, 5)),
    }[NETWORKS[name][0]]
    theirs = timm.create_model(name, num_classes=5, **few)
    ours = create_model(f"timm/{name}", num_classes=5, **few)
    size = ours.image_size if hasattr(ours, "image_size") else 64
    count = 2 if isinstance(ours, LeViT) else 1  # torch's gradients of LeViT are wrong for one image
    compare(theirs, ours, images_of((size, size), count), ends, perturb=shake_wide)


def test_every_name_is_known():
    modules = [file.__name__.rpartition(".")[2] for file in OTHER_FILES]
    names = {name for module in modules for name in timm.list_models(module=module, pretrained=True)}
    assert {name.partition(".")[0] for name in names} == {*NAMES} | UNSUPPORTED.keys()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("convnextv2_tiny.fcmae", "global response normalisation"),
        ("convnext_atto_ols", "a stem of overlapping patches"),
        ("convnext_large_mlp", "a further linear layer in its head"),
    ],
)
def test_what_is_missing_is_said(name, missing):
    for function in (create_model, load_pretrained):
        with pytest.raises(ValueError, match=f"timm/{name.partition('.')[0]} is not supported: it has {missing}"):
            function(f"timm/{name}")


def test_sizes_equal_timms():
    for name in NAMES:
        theirs = constructor_arguments(name)
        model = create_model(f"timm/{name}")
        same = {name: name for name in ("conv_mlp", "use_conv", "distilled")}
        for keyword, argument in (model.timm_keywords | same).items():
            if keyword in theirs:
                value = theirs.pop(keyword)
                assert getattr(model, argument) == (tuple(value) if isinstance(value, list) else value), (name, keyword)
        assert theirs.keys() <= {"class", "patch_size"}, name
        if hasattr(model, "image_size"):
            assert (3, model.image_size, model.image_size) == timm.get_pretrained_cfg(name).input_size


@pytest.mark.parametrize(("linear", "name"), [(ROWS[2], "convnext_atto"), (ROWS[3], "levit_conv_128s")])
def test_layers_as_convolutions_are_the_same_network(linear, name):
    """timm stores the linear layers of some networks as 1x1 convolutions."""
    images, convolutional = images_of(linear.size), linear._replace(name=name)
    (theirs, ours), (theirs_too, ours_too) = linear.networks(), convolutional.networks()
    weights = shake(theirs).state_dict()
    other = {key: weights[key].reshape(value.shape) for key, value in theirs_too.state_dict().items()}
    theirs_too.eval().load_state_dict(other)
    with torch.no_grad():
        torch.testing.assert_close(theirs_too(channels_first(images)), theirs(channels_first(images)))
    variables = from_torch(ours_too, state_of(theirs_too), images)
    jax.tree.map(np.testing.assert_array_equal, variables, from_torch(ours, state_of(theirs), images))
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
@pytest.mark.parametrize(("side", "window"), [(64, 8), (16, 4)])
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


def test_positions_of_pit_are_resampled(tmp_path):
    """As those of vision transformers: timm has no way for PiT."""
    theirs, _ = ROWS[4].networks()
    timm.models.save_for_hf(shake(theirs), tmp_path)
    lines = []
    loaded = load_pretrained(tmp_path, image_size=(48, 32), notify=lines.append)
    given = state_of(theirs)["pos_embed"]
    flat = torch.from_numpy(given).flatten(2).transpose(1, 2)
    expected = timm.layers.resample_abs_pos_embed(flat, new_size=(11, 7), old_size=(7, 9), num_prefix_tokens=0)
    positions = to_torch(loaded.model, loaded.variables)["pos_embed"]
    assert positions.shape == (1, 8, 11, 7)
    assert_close(positions.reshape(1, 8, -1), expected.transpose(1, 2).numpy(), 1e-5, "positions")
    assert lines == ["positions are resampled from 7 x 9 to 11 x 7 patches"]


def test_levit_has_one_image_size(tmp_path):
    theirs, _ = ROWS[3].networks()
    timm.models.save_for_hf(theirs, tmp_path)
    message = r"image_size=64: expected \(64, 96\), as the position biases of LeViT's weights are for that size alone"
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path, image_size=64)


def test_pooled_features_of_pit_are_those_of_the_class_token():
    model = create_model("timm/pit_ti_distilled_224", num_classes=0)
    tokens = jax.device_put(np.random.default_rng(0).standard_normal((2, 51, 8), np.float32))
    np.testing.assert_array_equal(pooled(model, tokens), tokens[:, 0])
    np.testing.assert_array_equal(regions(model, tokens), tokens[:, 2:])
    assert create_model("timm/pit_ti_224", image_size=200).grid(200) == (24, 24)  # patches of 16 pixels, 8 apart
