"""Objectives with masked patches: what they mask, which encoders they accept, their targets, and that they learn."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cases import FIRST, IMAGE_CLASSIFIERS
from tests.cases.case import BLOCKS, IMAGE, build
from tests.objectives.starts import fill, started
from tests.runs import TINY, records, train
from tests.test_learns import digits
from tests.test_models import variables_of
from tests.test_step import equations
from train.main import ENCODERS, parse
from train.run.stored import load_run
from train.step import cast
from vit_jax import create_model
from vit_jax.layers.check import pair
from vit_jax.objectives import create_objective
from vit_jax.objectives.mae import normalize_patches
from vit_jax.objectives.masked import to_images, to_patches
from vit_jax.objectives.mpp import mean_colours

IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((4, 16, 16, 3), np.float32))
NAMES = ["mae", "simmim", "mpp", "mp3"]


def objective_of(name: str, depth: int = 2, **kwargs):
    """An objective around the model that it trains by default, for images of 16 patches."""
    sizes = IMAGE | BLOCKS | dict(num_classes=0, depth=depth)
    return create_objective(name, create_model(ENCODERS[name], **sizes), **kwargs)


# Random draws.


@pytest.mark.parametrize("name", NAMES)
def test_every_image_and_every_key_draws_its_own(name):
    shares = dict(random_patch_prob=0.25) if name == "mpp" else {}  # by default what is not replaced is exchanged
    objective, images = objective_of(name, **shares), jnp.zeros((32, 16, 16, 3))
    drawn, again, others = (objective.draw(jax.random.key(seed), images) for seed in (0, 0, 1))
    for what, values in drawn.items():
        np.testing.assert_array_equal(values, again[what])
        assert not np.array_equal(values, others[what]), what
        assert len(np.unique(values, axis=0)) > 4, what  # three that are true or false can be no more than eight


@pytest.mark.parametrize(
    ("name", "kwargs", "masked"),
    [("mae", {}, 12), ("mae", dict(masking_ratio=0.4), 6), ("simmim", {}, 8), ("mpp", {}, 3), ("mp3", {}, 12)],
)
def test_as_many_patches_are_masked_as_upstreams(name, kwargs, masked):
    drawn = objective_of(name, **kwargs).draw(jax.random.key(0), IMAGES)
    if "masked" in drawn:
        assert drawn["masked"].shape == (4, masked)
    if "seen" in drawn:
        assert drawn["seen"].shape == (4, 16 - masked)
    parts = np.concatenate([drawn[what] for what in ("masked", "seen") if what in drawn], axis=1)
    assert all(len(set(row)) == len(row) and set(row) <= set(range(16)) for row in parts.tolist())


def test_mpp_replaces_and_exchanges_the_shares_it_is_told():
    images = jnp.zeros((2000, 16, 16, 3))
    drawn = objective_of("mpp", replace_prob=0.5, random_patch_prob=0.2).draw(jax.random.key(0), images)
    assert drawn["replaced"].mean() == pytest.approx(0.5, abs=0.03)
    assert (drawn["exchanged"] & ~drawn["replaced"]).mean() == pytest.approx(0.2, abs=0.03)
    every = objective_of("mpp", replace_prob=1.0, random_patch_prob=0.0).draw(jax.random.key(0), images)
    assert every["replaced"].all()
    assert not every["exchanged"].any()


@pytest.mark.parametrize("name", NAMES)
def test_training_draws_anew_and_evaluation_does_not(name):
    objective = objective_of(name, depth=1)
    params, extras = started(objective, IMAGES)

    @jax.jit
    def losses(key):
        training, _ = objective.loss(params, extras, {"image": IMAGES}, {"objective": key}, True)
        return training, objective.evaluate(params, extras, {"image": IMAGES})["loss"]

    (loss, first), (again, second), (other, third) = (losses(jax.random.key(seed)) for seed in (0, 0, 1))
    assert loss == again != other
    assert first.shape == (4,)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


# Targets.


def test_patches_come_apart_and_together():
    encoder, images = (
        create_model("vit", **IMAGE | BLOCKS | dict(image_size=(8, 12), patch_size=(4, 2))),
        IMAGES[:, :8, :12],
    )
    patches = to_patches(images, encoder)
    assert patches.shape == (4, 12, 24)
    np.testing.assert_array_equal(patches[1, 7], images[1, 4:8, 2:4].reshape(-1))  # second row, second column
    np.testing.assert_array_equal(to_images(patches, encoder, (8, 12)), images)


def test_normalised_patches_are_the_papers():
    patches = np.random.default_rng(0).uniform(0, 255, (2, 3, 48)).astype(np.float32)
    patches[0, 0] = 7.0  # of one colour, so the variance is 0
    expected = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalize_patches(jnp.asarray(patches)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(normalize_patches(jnp.asarray(patches))[0, 0], 0)


def test_mean_colours_by_hand():
    """Two channels of two bits: bins end at 0.25, 0.5 and 0.75; the second channel has a factor of four."""
    pixels = jnp.array([[[0.1, 0.9], [0.2, 0.9]], [[0.25, 0.5], [0.25, 0.5]], [[0.2, -1.0], [0.8, 3.0]]])
    colours = mean_colours(pixels.reshape(1, 3, 4), 2, 2, 1.0, None, None)
    np.testing.assert_array_equal(colours, [[0 + 4 * 3, 0 + 4 * 1, 1 + 4 * 0]])  # 3.0 is no more than 1
    scaled = (pixels - 0.5) / 0.2
    np.testing.assert_array_equal(
        mean_colours(scaled.reshape(1, 3, 4) - 1e-5, 2, 2, 1.0, (0.5, 0.5), (0.2, 0.2)), colours
    )


def test_fresh_encoders_guess():
    """Without information, the loss is 1 for normalised pixels, else the logarithm of the number of classes."""
    expected = {"mae": 1.0, "mpp": np.log(512), "mp3": np.log(16)}
    for name, value in expected.items():
        objective = objective_of(name)
        loss = lambda key, objective=objective: objective.evaluate(*objective.init(key, IMAGES), {"image": IMAGES})
        assert value < jax.jit(loss)(jax.random.key(0))["loss"].mean() < 2.5 * value


# No encoder sees masked patches.

MOVABLE = {
    *("attn_residual_with_dca_simple_vit", "deepvit", "distill:DistillableViT", "efficient", "jumbo_vit"),
    *("learnable_memory_vit", "mp3:ViT", "normalized_vit", "parallel_vit", "simple_flash_attn_vit", "simple_uvit"),
    *("simple_vit", "simple_vit_attn_residual", "simple_vit_orthog_residual_update", "simple_vit_with_qk_norm"),
    *("simple_vit_with_hyper_connections", "simple_vit_with_register_tokens", "simple_vit_with_sparse_gating"),
    *("simple_vit_with_specialized_cls", "simple_vit_with_value_residual", "vit", "vit_with_decorr"),
    *("vat:ViT", "vaat:ViT", "vit_with_keel_post_ln"),
}
IN_PLACE = {"jet_vit", "local_vit", "rvt", "simple_vit_with_relative_proj_pos_bias", "vit_5"}
LEAKING = {"simple_vit_with_fft", "vit_for_small_dataset"}
SEEING = MOVABLE | IN_PLACE | LEAKING  # models whose number of blocks `blocks` changes
FEWEST = {"vit_with_keel_post_ln": 2}  # blocks, where one is too few
ACCEPTED = {"mae": MOVABLE, "simmim": MOVABLE | IN_PLACE, "mpp": MOVABLE | IN_PLACE | LEAKING, "mp3": {"mp3:ViT"}}


def encoder_of(name: str, **kwargs):
    """The model of a row as an encoder, without patch dropout."""
    keep = dict(patch_dropout=0.0) if name.endswith("patch_dropout") else {}
    return build(FIRST[name], num_classes=0, **keep, **kwargs)


def ready(name: str, encoder):
    """An objective around `encoder`, with images and the shapes of its parameters and extras.

    Raises ValueError for an encoder that the objective refuses.
    """
    objective, images = create_objective(name, encoder), images_for(encoder)
    return objective, images, jax.eval_shape(objective.init, jax.random.key(0), images)


def images_for(encoder):
    shape = (2, *encoder_shape(encoder))
    return jax.device_put(np.random.default_rng(0).standard_normal(shape, np.float32))


def blocks(model: str, depth: int) -> dict:
    """Arguments with which the model has `depth` blocks."""
    if model == "efficient":
        return dict(transformer=create_model("vit:Transformer", **BLOCKS | dict(depth=depth)))
    return dict(depth=depth) | (dict(attn_layers=("FA",) * depth) if model == "jet_vit" else {})


def encoder_shape(encoder) -> tuple[int, int, int]:
    size = encoder.image_size if isinstance(encoder.image_size, tuple) else (encoder.image_size,) * 2
    return (*size, encoder.channels)


@pytest.mark.parametrize("name", NAMES)
def test_which_encoders_are_taken(name):
    taken, refused = set(), []
    for model in IMAGE_CLASSIFIERS:
        try:
            ready(name, encoder_of(model, **(blocks(model, FEWEST.get(model, 1)) if model in SEEING else {})))
            taken.add(model)
        except ValueError as error:
            refused.append(str(error))
    dropping = {"simple_vit_with_patch_dropout", "vit_with_patch_dropout"} if name != "mp3" else set()
    assert taken == ACCEPTED[name] | dropping
    assert all(re.match(r"encoder=\w+: expected ", message) for message in refused)


@pytest.mark.parametrize("model", sorted(MOVABLE | IN_PLACE))
def test_reconstructions_read_what_is_seen_alone(model):
    encoder = encoder_of(model, **blocks(model, FEWEST.get(model, 1)))
    for name in ("mae", "simmim") if model in MOVABLE else ("simmim",):
        objective, images, shapes = ready(name, encoder)
        params, extras = fill(shapes)
        drawn = objective.draw(jax.random.key(1), images)
        seen = np.ones(to_patches(images, encoder).shape[:2], bool)
        seen[np.arange(len(seen))[:, None], drawn["masked"]] = False

        @jax.jit
        def reconstruct(where, objective=objective, images=images, params=params, extras=extras, drawn=drawn):
            patches = to_patches(images, encoder)
            patches = jnp.where(where[:, :, None], patches[:, ::-1], patches)
            images = to_images(patches, encoder, images.shape[1:3])
            return objective.model.apply({"params": params, **extras}, images, **drawn, method="reconstruct")

        unchanged = reconstruct(jnp.zeros_like(seen))
        np.testing.assert_array_equal(reconstruct(~seen), unchanged, err_msg=name)
        for number in (0, -1):  # the first and the last that are seen
            one = np.zeros_like(seen)
            one[:, np.flatnonzero(seen[0])[number]] = True
            assert np.abs(reconstruct(one & seen) - unchanged)[0].max() > 1e-4, name


@pytest.mark.parametrize("model", sorted(SEEING - FEWEST.keys()))
def test_tokens_are_the_patches_in_their_order(model):
    """Without blocks a token depends on its patch, and perhaps its neighbours. The patches are the last tokens."""
    encoder = encoder_of(model, **blocks(model, 0))
    images = images_for(encoder)
    variables = variables_of(encoder, images, {})

    @jax.jit
    def encode(change):
        patches = to_patches(images, encoder)
        patches = patches.at[:, 5].add(change * jnp.arange(patches.shape[-1], dtype=jnp.float32)[None])
        return encoder.apply(variables, to_images(patches, encoder, images.shape[1:3]), method="encode")

    patches = math.prod(images.shape[1:3]) // math.prod(pair("patch_size", encoder.patch_size))
    difference = np.abs(encode(1.0) - encode(0.0)).max(axis=(0, 2))[-patches:]
    assert difference.argmax() == 5
    if model not in LEAKING:
        assert np.flatnonzero(difference).tolist() == [5]


def test_mpp_shows_what_it_says():
    """Masked patches become the mask token, another patch, or are unchanged; all others are unchanged."""
    seen = []

    class Encoder(type(create_model("vit/tiny", num_classes=0))):
        def encode(self, images, extra_tokens=None, *, train=False):
            seen.append(images)
            return super().encode(images, extra_tokens, train=train)

    objective = create_objective("mpp", Encoder(**IMAGE | BLOCKS | dict(num_classes=0)))
    params, _ = started(objective, IMAGES)
    drawn = {
        "masked": jnp.array([[3, 0, 9]] * 4),
        "replaced": jnp.array([[True, False, False]] * 4),
        "exchanged": jnp.array([[True, True, False]] * 4),
        "others": jnp.array([[1, 2, 4]] * 4),
    }

    @jax.jit
    def show():
        objective.model.apply({"params": params}, IMAGES, **drawn)
        return to_patches(seen[-1], objective.encoder)

    shown, patches = show(), to_patches(IMAGES, objective.encoder)
    expected = patches.at[:, 3].set(params["mask_token"][0]).at[:, 0].set(patches[:, 2])
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_the_class_token_learns_unless_it_is_left_out(name):
    for class_token in (True, False):
        objective = objective_of(name, depth=1, class_token=class_token)
        params, extras = started(objective, IMAGES)
        rngs = {"objective": jax.random.key(1)}
        loss = lambda params, *given, objective=objective: objective.loss(params, *given, train=False)[0]
        gradient = jax.jit(jax.grad(loss))(params, extras, {"image": IMAGES}, rngs)
        assert np.any(gradient["encoder"]["cls_token"]) == class_token
        assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient)) == class_token


def test_a_head_is_kept_for_later():
    encoder = create_model("vit", **IMAGE | BLOCKS)
    for name in ("mae", "simmim", "mpp"):
        objective = create_objective(name, encoder)
        trunk, variables = objective.trunk(*jax.eval_shape(objective.init, jax.random.key(0), IMAGES))
        assert jax.eval_shape(trunk.apply, variables, IMAGES).shape == (4, 5)


# Learning.


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.exhaustive), "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(name, dtype):
    """On a few digits. By the trainer's precision policy, matmuls are in bfloat16 and losses in float32."""
    batch = {"image": digits(24, 16, 16, 3)["image"].astype(dtype)}
    objective = objective_of(name, depth=1)
    params, extras = started(objective, batch["image"])
    optimizer = optax.adam(4e-3)
    state = optimizer.init(params)

    def step(params, state, key):
        rngs = {"objective": key, "dropout": key}
        loss = lambda params: objective.loss(cast(params, dtype), extras, batch, rngs, train=True)[0]
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    traced = jax.jit(step).trace(params, state, jax.random.key(0))
    products = [
        {str(variable.aval.dtype) for variable in equation.invars}
        for equation in equations(traced.jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    assert len(products) > 18  # of the block alone, forward and backward
    assert all(dtypes == {dtype} for dtypes in products)
    losses, step = [], traced.lower().compile()
    for key in jax.random.split(jax.random.key(1), 40):
        params, state, value = step(params, state, key)
        losses.append(float(value))
    assert value.dtype == jnp.float32
    assert np.mean(losses[-5:]) < 0.85 * losses[0]


# One for all, as the trainer knows no difference. tests/test_trunk.py runs MAE.
@pytest.mark.parametrize(
    "name", ["mpp", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in NAMES if name != "mpp")]
)
def test_a_run_of_the_trainer(name, tmp_path):
    assert train(tmp_path, base=(f"--objective={name}", "--epochs=1", *TINY[1:])) == 0
    first, *_, last = records(tmp_path, "train")
    assert last["loss"] < first["loss"]
    evaluation = records(tmp_path, "eval")[-1]
    assert np.isfinite(evaluation["loss"])
    run = load_run(tmp_path)
    trunk, variables = run.objective.trunk(run.params, run.extras)
    assert trunk.apply(variables, run.info.images).ndim == 3
    if name == "mpp":
        assert (run.objective.mean, run.objective.std) == (run.info.mean, run.info.std)


# Errors.


def test_the_default_encoder_is_one_that_can_be_used():
    assert all(parse([f"--objective={name}"]).model == encoder for name, encoder in ENCODERS.items())
    assert parse(["--objective=mae", "--model=simple_vit"]).model == "simple_vit"


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mae", dict(masking_ratio=0.0), "masking_ratio=0.0: expected more than 0 and less than 1"),
        ("simmim", dict(masking_ratio=1.0), "masking_ratio=1.0: expected more than 0"),
        ("mp3", dict(masking_ratio=-0.5), "masking_ratio=-0.5: expected more than 0"),
        ("mae", dict(decoder_dim=0), "decoder_dim=0: expected at least 1"),
        ("mae", dict(decoder_depth=-1), "decoder_depth=-1: expected at least 0"),
        ("mae", dict(decoder_heads=0), "decoder_heads=0: expected at least 1"),
        ("mpp", dict(mask_prob=0.0), "mask_prob=0.0: expected more than 0"),
        ("mpp", dict(replace_prob=1.5), "replace_prob=1.5: expected 0 to 1"),
        ("mpp", dict(random_patch_prob=0.6), "random_patch_prob=0.6: expected at most 1 - replace_prob=0.5"),
        ("mpp", dict(output_channel_bits=0), "output_channel_bits=0: expected at least 1"),
        ("mpp", dict(max_pixel_val=0.0), "max_pixel_val=0.0: expected more than 0"),
        ("mpp", dict(mean=(0.5, 0.5, 0.5)), r"std=None: expected mean and std to be given together, but mean=\(0.5"),
    ],
)
def test_bad_values_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        objective_of(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("mae", "t2t", "encoder=T2TViT: expected an encoder of non-overlapping patches, with `patch_size`"),
        ("mpp", "t2t", "encoder=T2TViT: expected an encoder of non-overlapping patches, with `patch_size`"),
        ("simmim", "cait", "encoder=CaiT: expected an encoder of non-overlapping patches, with `encode`"),
        ("mp3", "vit", "encoder=ViT: expected an encoder of non-overlapping patches, with `encode_seen`"),
        ("mae", "vit_5", "encoder=ViT5: expected an encoder that takes any number of patches"),
        ("mae", "vit_for_small_dataset", "encoder=ViTForSmallDataset: expected an encoder whose tokens see one patch"),
        ("simmim", "vit_with_patch_dropout", "ViTWithPatchDropout: expected patch_dropout=0, not 0.25"),
    ],
)
def test_bad_encoders_are_named(name, model, message):
    with pytest.raises(ValueError, match=message):
        create_objective(name, create_model(f"{model}/tiny", num_classes=0))


def test_too_few_patches_are_named():
    with pytest.raises(ValueError, match=r"masking_ratio=0.05: expected at least 1/16, as it masks no patch"):
        objective_of("mae", masking_ratio=0.05).init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r"mean=\(0.5,\): expected 3 numbers, one for each channel"):
        objective_of("mpp", mean=(0.5,), std=(0.5,)).init(jax.random.key(0), IMAGES)


def test_the_trainer_names_a_model_without_patches(tmp_path, capsys):
    assert train(tmp_path, "--objective=mae", base=("--model=t2t",)) == 2
    assert "--objective mae: encoder=T2TViT: expected an encoder of non-overlapping patches" in capsys.readouterr().err
