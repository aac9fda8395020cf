"""`VisionTransformer` against timm's networks with the same weights, for every configuration with published weights."""

import collections

import jax
import numpy as np
import pytest

from tests.pretrained.parity import assert_close, assert_equal, shake_wide, state_of
from tests.pretrained.timm_models import CONFIGS, NAMES, constructor_arguments, facts, timm
from tests.upstream import channels_first, shake, torch
from vit_jax import capture, create_model, list_presets
from vit_jax.convert import from_torch, to_torch
from vit_jax.pretrained.architectures import ARCHITECTURES, UNSUPPORTED

SIZES = ("image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "pool_mlp_dim")
ALIKE = collections.defaultdict(list)  # names that timm builds with the same arguments but sizes
for _name in ARCHITECTURES:
    ALIKE[facts(_name)].append(_name)
FIRST = [names[0] for names in ALIKE.values()]


def small(name: str):
    """timm's network and ours with two narrow blocks for images of 2 x 3 patches, and images."""
    sizes = dict(img_size=(8, 12), patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=5)
    theirs = timm.create_model(name, **sizes, **heads_of_block(constructor_arguments(name), 2))
    ours = create_model(
        f"timm/{name}",
        **dict(image_size=(8, 12), patch_size=4, dim=32, depth=2, heads=4, num_classes=5),
        mlp_dim=theirs.blocks[0].mlp.fc2.in_features,
        pool_mlp_dim=theirs.attn_pool.mlp.fc2.in_features if theirs.attn_pool else None,
    )
    return theirs, ours, np.random.default_rng(0).standard_normal((2, 8, 12, 3), np.float32)


def heads_of_block(arguments, depth: int = 1) -> dict:
    """The argument of timm that has the heads of keys and values for every block, where it has one."""
    return {"num_kv_heads": (None,) * depth} if "num_kv_heads" in arguments else {}


def outputs(model, images):
    tokens = model.encode(images)
    return {"logits": model.head(tokens), "tokens": tokens, "pooled": model.pooled(tokens)}


def outputs_of_timm(module, images):
    tokens, layers = module.forward_intermediates(images, output_fmt="NLC", return_prefix_tokens=False)
    assert torch.equal(tokens, module.forward_features(images))
    pooled = module.forward_head(tokens, pre_logits=True)
    made = {"logits": module(images), "tokens": tokens, "pooled": pooled}
    return made | {f"layer {i}": layer for i, layer in enumerate(layers)}


def compiled(model):
    """A function of variables, images and weights of the logits: outputs by name, and gradients of their sum."""

    def loss(params, images, weights):
        made, collected = nn_apply(model, {"params": params}, images)
        blocks = collected["intermediates"]["transformer"]["block"]
        patches = {f"layer {i}": x[:, model.tokens_before :] for i, x in enumerate(blocks)}
        return (made["logits"] * weights).sum(), made | patches

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return lambda variables, *args: jax.tree.map(np.asarray, gradient(variables["params"], *args))


def nn_apply(model, variables, images):
    return model.apply(variables, images, method=lambda module, x: outputs(module, x), mutable=["intermediates"])


def compare(theirs, ours, images, **options):
    def without_prefix(gradients):
        """Here positions of the tokens before the patches are part of these tokens."""
        if "prefix_positions" in ours.layout:
            gradients["pos_embed"] = gradients["pos_embed"][:, ours.tokens_before :]
        return gradients

    assert_equal(theirs, ours, images, compiled(ours), outputs_of_timm, as_gradients=without_prefix, **options)


@pytest.mark.filterwarnings("ignore:.*trunc_normal_:UserWarning")
@pytest.mark.parametrize("name", FIRST)
def test_small_networks_equal_timms(name):
    theirs, ours, images = small(name)
    compare(theirs, ours, images)


WIDE = {(facts(name), *[ARCHITECTURES[name].get(size) for size in SIZES[1:]]): name for name in ARCHITECTURES}


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*trunc_normal_:UserWarning")
@pytest.mark.parametrize("name", WIDE.values())
def test_two_blocks_of_full_width_equal_timms(name):
    """Of every architecture, for images of 2 x 3 patches; names that differ in the image size alone are one."""
    patch_size = ARCHITECTURES[name]["patch_size"]
    size = (2 * patch_size, 3 * patch_size)
    heads = heads_of_block(constructor_arguments(name), 2)
    theirs = timm.create_model(name, img_size=size, depth=2, num_classes=5, **heads)
    ours = create_model(f"timm/{name}", image_size=size, depth=2, num_classes=5)
    images = np.random.default_rng(0).standard_normal((1, *size, 3), np.float32)
    compare(theirs, ours, images, perturb=shake_wide)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch16_224"])
def test_logits_at_full_size_equal_timms(name):
    theirs = timm.create_model(name)
    shake_wide(theirs, scale=1.0)
    ours = create_model(f"timm/{name}")
    images = np.random.default_rng(0).standard_normal((2, 224, 224, 3), np.float32)
    logits = jax.jit(ours.apply)(from_torch(ours, state_of(theirs), images), images)
    with torch.no_grad():
        assert_close(np.asarray(logits), theirs(channels_first(images)).numpy(), 1e-5, "logits")


def test_every_name_is_known():
    assert len(CONFIGS) == 416
    assert set(NAMES) == ARCHITECTURES.keys() | UNSUPPORTED.keys()
    assert sum(tag.partition(".")[0] in ARCHITECTURES for tag in CONFIGS) == 406


def test_names_that_timm_builds_alike_have_the_same_facts():
    """So that the numerical comparison of the first one holds for all."""
    for first, *others in ALIKE.values():
        for name in others:
            assert facts_of(name) == facts_of(first), name


def facts_of(name: str) -> dict:
    without = (*SIZES, "any_size")  # the latter is compared in test_positions.py
    return {key: value for key, value in ARCHITECTURES[name].items() if key not in without}


def test_sizes_equal_timms():
    for name, ours in ARCHITECTURES.items():
        arguments = constructor_arguments(name)
        with torch.device("meta"):  # one block without memory
            theirs = timm.create_model(name, depth=1, **heads_of_block(arguments))
        config = CONFIGS[next(tag for tag in CONFIGS if tag.partition(".")[0] == name)]
        sides = ours["image_size"] if isinstance(ours["image_size"], tuple) else (ours["image_size"],) * 2
        assert sides == config.input_size[1:], name
        assert (ours["patch_size"],) * 2 == theirs.patch_embed.patch_size, name
        assert ours["dim"] == theirs.embed_dim, name
        assert ours["depth"] == arguments["depth"], name
        assert ours["heads"] == theirs.blocks[0].attn.num_heads, name
        assert ours["mlp_dim"] == theirs.blocks[0].mlp.fc2.in_features, name
        if theirs.attn_pool:
            assert ours.get("pool_mlp_dim", ours["mlp_dim"]) == theirs.attn_pool.mlp.fc2.in_features, name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_smal_patch16_224",
            "unknown preset of model 'timm': 'vit_smal_patch16_224'; did you mean vit_small_patch16_224",
        ),
        ("vit_5b_patch16_sapiens2.fb", "vit_5b_patch16_sapiens2 is not supported: .* keys and values that several"),
        ("vit_pwee_patch16_reg1_gap_256", "not supported: .* attention in parallel with the feed-forward"),
    ],
)
def test_what_is_not_supported_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        create_model(f"timm/{name}")


def test_arguments_override_the_architecture():
    model = create_model("timm/vit_small_patch16_224", num_classes=10, image_size=(160, 256), depth=2)
    assert (model.dim, model.depth, model.num_classes, model.grid) == (384, 2, 10, (10, 16))
    assert create_model("timm/vit_small_patch16_224.augreg_in1k") == create_model("timm/vit_small_patch16_224")
    assert set(list_presets("timm")) > ARCHITECTURES.keys()
    with pytest.raises(ValueError, match="unknown argument of model 'timm': 'deph'"):
        create_model("timm/vit_small_patch16_224", deph=2)


@pytest.mark.filterwarnings("ignore:.*trunc_normal_:UserWarning")
@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "eva02_base_patch14_224"])
def test_weights_without_classes(name):
    """Their pooling has parameters, and gives timm's features."""
    theirs, ours, images = small(name)
    theirs.reset_classifier(0)
    ours = ours.clone(num_classes=0)
    state = state_of(shake(theirs))
    variables = from_torch(ours, state, images)
    assert to_torch(ours, variables).keys() == state.keys()
    features = jax.jit(lambda variables, images: capture.features(ours, variables, images))(variables, images)
    with torch.no_grad():
        expected = theirs(channels_first(images)).numpy()
    assert features.logits is None
    assert_close(np.asarray(features.pooled), expected, 1e-5, "pooled")
