"""What every classifier can do, with `VisionTransformer`: capture, objectives, execution, other image sizes."""

import functools

import jax
import numpy as np
import pytest
from jax import export

from tests.test_execution import assert_close, gradient
from tests.test_models import assert_bfloat16, filled
from vit_jax import capture, create_model
from vit_jax.objectives import create_objective
from vit_jax.objectives.features import pooled, regions

# Each with something that the others lack: registers, a second head, attention pooling, fixed and learned rotations.
NAMES = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3_qkvb",
    "vit_small_patch16_rope_mixed_ape_224",
    "eva02_large_patch14_clip_224",
    "aimv2_large_patch14_224",
)
IMAGES = np.random.default_rng(0).standard_normal((2, 8, 12, 3), np.float32)


def tiny(name: str, **kwargs):
    sizes = dict(image_size=(8, 12), patch_size=4, dim=32, depth=2, heads=4, mlp_dim=48, num_classes=5)
    return create_model(f"timm/{name}", **sizes | kwargs)


@functools.cache
def model_and_variables(name: str, **kwargs):
    model = tiny(name, **kwargs)
    return model, filled(jax.eval_shape(model.init, jax.random.key(0), IMAGES))


@pytest.mark.parametrize("name", NAMES)
def test_features_attention_and_embeddings(name):
    model, variables = model_and_variables(name)

    @jax.jit
    def everything(variables, images):
        maps = capture.attention(model, variables, images)
        features = capture.features(model, variables, images, layers=(-1, 0))
        return features, maps, capture.rollout(maps), capture.embeddings(model, variables, images)

    features, maps, rollout, tokens = everything(variables, IMAGES)
    n = model.tokens_before + 6
    assert features.tokens.shape == (2, n, 32)
    np.testing.assert_array_equal(features.tokens, tokens)
    assert [layer.shape for layer in features.layers] == [(2, n, 32)] * 2
    assert maps.shape == (2, 2, 4, n, n)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(rollout.sum(axis=-1), 1, rtol=1e-5)
    params = variables["params"]
    logits = features.pooled[:, :32] @ params["classifier"]["kernel"] + params["classifier"]["bias"][None]
    if model.distilled:
        dist = params["classifier_dist"]
        logits = (logits + features.pooled[:, 32:] @ dist["kernel"] + dist["bias"][None]) / 2
    np.testing.assert_allclose(features.logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked_types")  # which compare sizes by numpy, where they may broadcast
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_regions_are_traced_for_any_batch(name):
    model, variables = model_and_variables(name)
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *IMAGES.shape[1:]), np.float32)
    assert jax.eval_shape(model.apply, variables, images).shape == (batch, 5)
    encoder = model.clone(num_classes=0)
    tokens = jax.eval_shape(lambda images: regions(encoder, encoder.apply(variables, images, method="encode")), images)
    assert tokens.shape == (batch, 6, 32)


@pytest.mark.parametrize("name", NAMES)
def test_without_classes_pooling_keeps_its_parameters(name):
    """As published weights without a head have them."""
    shapes = lambda classes: jax.eval_shape(tiny(name, num_classes=classes).init, jax.random.key(0), IMAGES)["params"]
    headed, headless = shapes(5), shapes(0)
    assert headless.keys() == headed.keys() - {"classifier", "classifier_dist"}
    assert all(headed[part] == headless[part] for part in headless)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_rope_mixed_ape_224"])
def test_execution_changes_nothing(name):
    model, variables = model_and_variables(name)
    plain, _ = gradient(model, variables, IMAGES)
    for settings in (dict(remat="full"), dict(scan=True), dict(platform="tpu")):
        other, stacks = gradient(model, variables, IMAGES, **settings)
        assert stacks == ["Transformer"]
        assert_close(other, plain)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_policy(name):
    model = tiny(name)
    assert_bfloat16(model, jax.eval_shape(model.init, jax.random.key(0), IMAGES), IMAGES, {})


@pytest.mark.parametrize("objective", ["dino", "lejepa", "mpp", "simmim", "mae"])
def test_objectives_train_it(objective):
    trained = create_objective(objective, tiny("vit_small_patch14_reg4_dinov2", num_classes=0))

    def gradients(params, extras, images, key):
        rngs = {"objective": key, "dropout": key}
        return jax.grad(trained.loss, has_aux=True)(params, extras, {"image": images}, rngs, True)[0]

    params, extras = jax.eval_shape(trained.init, jax.random.key(0), IMAGES)
    assert jax.eval_shape(gradients, params, extras, IMAGES, jax.random.key(0)) == params
    if objective == "mae":
        grads = jax.jit(gradients)(filled(params), extras, IMAGES, jax.random.key(0))
        assert all(
            np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(grads["encoder"]["transformer"])
        )


def test_objectives_read_patches_without_registers():
    tokens = np.random.default_rng(0).standard_normal((2, 11, 32), np.float32)
    with_class, without = tiny("vit_small_patch14_reg4_dinov2"), tiny("vit_medium_patch16_reg4_gap_256")
    np.testing.assert_array_equal(pooled(with_class, jax.device_put(tokens)), tokens[:, 0])
    np.testing.assert_array_equal(regions(with_class, jax.device_put(tokens)), tokens[:, 5:])
    np.testing.assert_allclose(pooled(without, jax.device_put(tokens)), tokens[:, 4:].mean(axis=1), rtol=1e-5)


def test_rotary_positions_need_all_patches():
    model, variables = model_and_variables("vit_small_patch16_dinov3_qkvb", num_classes=0)
    with pytest.raises(ValueError, match="encoder that takes any number of patches, without rotary positions"):
        create_objective("mae", model)
    create_objective("simmim", model)
    tokens = jax.ShapeDtypeStruct((2, 5, 32), np.float32)
    with pytest.raises(ValueError, match="5 tokens: rotary positions need all 2 x 3 patches"):
        jax.eval_shape(lambda tokens: model.apply(variables, tokens, method="transform"), tokens)


@pytest.mark.parametrize("rate", ["dropout", "drop_path"])
def test_dropout_is_for_training(rate):
    model, variables = model_and_variables(NAMES[0], **{rate: 0.5})
    run = jax.jit(model.apply, static_argnames="train")
    np.testing.assert_array_equal(run(variables, IMAGES), run(variables, IMAGES))
    first, second = (run(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2))
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(heads=5), "dim=32: expected a multiple of heads=5"),
        (dict(pool="max"), "pool='max': expected one of 'cls', 'mean', 'map'"),
        (dict(class_token=False), "pool='cls': expected 'mean' or 'map' without a class token"),
        (dict(activation="relu"), "activation='relu': expected one of 'gelu', 'gelu_tanh', 'quick_gelu', 'swiglu'"),
        (dict(last_norm="both"), "last_norm='both': expected one of 'tokens', 'pooled', 'none'"),
        (dict(qkv_bias="q"), "qkv_bias='q': expected one of 'qkv', 'qv', ''"),
        (dict(image_size=9), "image_size=9: expected multiples of patch_size=4"),
        (dict(drop_path=2.0), "drop_path=2.0: expected 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(NAMES[0], **kwargs)
