"""LeVJEPA and LeVJEPAND against upstream's on the same views, patches and directions."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from tests.compiler import DEFAULT_FUSION
from tests.runs import records
from tests.test_models import variables_of
from train.main import main
from vit_jax import create_model
from vit_jax.convert import from_torch
from vit_jax.objectives import create_objective
from vit_jax.objectives.levjepa import LeVJEPA
from vit_jax.objectives.levjepa_nd import LeVJEPAND

VIDEO, ARRAY = FIRST["levjepa:VideoTransformer"], FIRST["levjepa_nd:NDTransformer"]
SIZES = dict(num_classes_K=20, projection_hidden=12, sigreg_loss_kwargs=dict(num_proj=64, knots=9))
SETTINGS = [
    dict(drop_ratio=0.5, sigreg_loss_weight=0.3),
    dict(drop_ratio=0.7, use_batch_norm=False, use_weight_standardization=True, invariance_loss_weight=0.6),
]


def draw(objective, images) -> dict:
    """The random draws of `objective`, except those of the views."""
    drawn = jax.jit(lambda key: {**objective.draw(key, images), "views": None})(jax.random.key(0))
    return {name: value for name, value in drawn.items() if name != "views"}


@pytest.mark.parametrize("kwargs", SETTINGS, ids=["batch-norm", "standardized"])
@pytest.mark.parametrize("name", ["levjepa", pytest.param("levjepa_nd", marks=pytest.mark.exhaustive)])
def test_loss_and_gradient_are_upstreams(name, kwargs, monkeypatch):
    """In training mode, with dropped patches and batch statistics, and with images mixed as upstream mixes them."""
    torch = pytest.importorskip("torch")
    from tests.objectives.views import Fixed, assert_same_gradients, gradients_of
    from tests.upstream import shake

    case, batch, targets = VIDEO if name == "levjepa" else ARRAY, 6, 2
    shape, rng = case.input_shape[1:], np.random.default_rng(0)
    upstream, trunk = importlib.import_module(f"vit_pytorch.{name}"), build_upstream(case)
    views = rng.standard_normal((batch, 1 + targets, *shape), np.float32)
    flat = views[:, 1:].reshape(-1, *shape)
    if name == "levjepa":
        learner = upstream.LeVJEPA(trunk, image_size=8, local_size=8, num_local_views=targets, **SIZES, **kwargs)
        learner.global_crop, learner.local_crop = Fixed(views[:, :1]), Fixed(flat[:, None])
        learner.global_augment = learner.local_augment = torch.nn.Identity()
        objective = LeVJEPA(build(case), num_local_views=targets, mix_images=True, **SIZES, **kwargs)
    else:
        learner = upstream.LeVJEPAND(trunk, input_shape=16, num_target_aug_views=targets, **SIZES, **kwargs)
        learner.augment_src, learner.augment_tgt = Fixed(views[:, :1]), Fixed(flat[:, None])
        objective = LeVJEPAND(build(case), num_target_aug_views=targets, mix_images=True, **SIZES, **kwargs)
    shake(learner).train()

    images = jnp.zeros((batch, *shape))
    drawn = draw(objective, images)
    directions = torch.from_numpy(np.array(drawn["directions"]).T)
    kept = [np.array(patches) for patches in drawn["kept"]]
    count = kept[0].shape[1]
    assert count == int(16 * (1 - kwargs["drop_ratio"])) or name == "levjepa"
    if name == "levjepa":
        drawn["views"], order = [jnp.asarray(views[:, :1]), jnp.asarray(views[:, 1:])], np.concatenate(kept)
    else:
        drawn["views"], by_image = [jnp.asarray(views)], kept[0].reshape(batch, 1 + targets, count)
        order = np.concatenate([by_image[:, 0], by_image[:, 1:].reshape(-1, count)])

    def rand(rows, patches, **_):
        """Random numbers that are largest at the patches to keep."""
        numbers = np.zeros((rows, patches), np.float32)
        np.put_along_axis(numbers, order, 1 - np.arange(count, dtype=np.float32)[None] / 100, axis=1)
        return torch.from_numpy(numbers)

    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: directions.to(torch.get_default_dtype()))
    state = {key: tensor.clone() for key, tensor in learner.state_dict().items()}  # batch norm changes it in place
    variables = from_torch(objective.model, state, images, **drawn)
    # Batch norm removes what all images share, and so nearly all of the class token's gradient: compare in float64.
    nothing = torch.zeros(batch, shape[-1], *shape[:-1])
    torch.set_default_dtype(torch.float64)
    learner.double()(nothing.double()).backward()
    exact = gradients_of(learner)
    torch.set_default_dtype(torch.float32)
    learner.zero_grad()
    learner.float().load_state_dict({key: tensor.clone() for key, tensor in state.items()})
    expected = learner(nothing)
    expected.backward()

    def value(params):
        losses, moved = objective.model.apply(
            {**variables, "params": params}, images, **drawn, train=True, mutable=["batch_stats"]
        )
        return losses.mean(), moved

    # The quick compilation of tests sums sequentially, and statistics of so few rows amplify its rounding errors: on
    # some CPUs to 2.2e-5.
    ordinary = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        **DEFAULT_FUSION,
    }
    step = jax.jit(jax.value_and_grad(value, has_aux=True), compiler_options=ordinary)
    (loss, moved), gradients = step(variables["params"])
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    statistics = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}
    assert_same_gradients(objective.model, gradients, learner, exact, statistics)
    if statistics:
        norm = learner.projector[1]
        np.testing.assert_allclose(moved["batch_stats"]["norm"]["mean"], norm.running_mean, rtol=1e-5, atol=1e-6)
        # torch's running variance is the unbiased one.
        count, old = 3 * batch, state["projector.1.running_var"].numpy()
        biased = 0.9 * old + (norm.running_var.numpy() - 0.9 * old) * (count - 1) / count
        np.testing.assert_allclose(moved["batch_stats"]["norm"]["var"], biased, rtol=1e-5)


def test_upstream_mixes_images():
    """Equal views of an image have distance 0. Upstream compares them with views of another image."""
    model = build(VIDEO)
    images = jax.device_put(np.random.default_rng(0).standard_normal((3, *VIDEO.input_shape[1:]), np.float32))
    losses = []
    for mixed in (False, True):
        objective = LeVJEPA(model, num_local_views=2, mix_images=mixed, sigreg_loss_weight=0.0, **SIZES)
        alike = np.stack([images] * 3, axis=1)
        drawn = draw(objective, images) | {"views": [alike[:, :1], alike[:, 1:]]}
        variables = variables_of(objective.model, images, drawn)
        losses.append(float(jax.jit(objective.model.apply)(variables, images, **drawn).mean()))
    assert losses[0] < 1e-10 < 1e-3 < losses[1]


def test_patches_stay_as_the_ratio_says():
    model = build(ARRAY)
    kept = np.array(model.draw_kept(jax.random.key(0), (500, 16, 16, 3), 0.7))
    assert kept.shape == (500, 4)
    assert all(len(set(row)) == 4 for row in kept)
    assert np.abs(np.bincount(kept.ravel(), minlength=16) / 500 - 0.25).max() < 0.1
    assert model.draw_kept(jax.random.key(0), (2, 16, 16, 3), 0.99).shape == (2, 1)
    x = jnp.ones((2, 16, 16, 3))
    variables, rngs = jax.eval_shape(model.init, jax.random.key(0), x), {"dropout": jax.random.key(1)}
    apply = lambda **kwargs: jax.eval_shape(lambda v: model.apply(v, x, rngs=rngs, **kwargs), variables)
    assert apply(drop_ratio=0.5, train=True).shape == (2, 9, 24)
    assert apply(drop_ratio=0.5).shape == apply(train=True).shape == (2, 17, 24)


def test_an_image_is_a_video_of_one_frame():
    model, images = build(VIDEO), jax.device_put(np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32))
    variables, apply = variables_of(model, images, {}), jax.jit(model.apply)
    np.testing.assert_array_equal(apply(variables, images), apply(variables, images[:, None]))


def test_frames_share_the_draw_of_their_video():
    frame = jax.random.uniform(jax.random.key(0), (2, 1, 8, 8, 3))
    objective = LeVJEPA(build(VIDEO), local_size=(4, 4), num_local_views=3)
    draw = jax.jit(lambda key: objective.draw(key, jnp.repeat(frame, 3, axis=1))["views"])
    large, small = draw(jax.random.key(1))
    assert (large.shape, small.shape) == ((2, 1, 3, 8, 8, 3), (2, 3, 3, 4, 4, 3))
    np.testing.assert_array_equal(small[:, :, 0], small[:, :, 2])
    assert (np.abs(small[:, 0] - small[:, 1]).max(axis=(1, 2, 3, 4)) > 1e-3).all()


def test_other_encoders_keep_their_patches():
    vit = create_model("vit/tiny", num_classes=0, image_size=8, channels=1, depth=1)
    objective = LeVJEPA(vit, num_local_views=1, **SIZES)
    assert objective.draw(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))["kept"] == [None, None]
    with pytest.raises(ValueError, match=r"drop_ratio=0.5: expected 0, as ViT keeps all its patches"):
        LeVJEPA(vit, drop_ratio=0.5)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("levjepa", dict(num_local_views=0), "num_local_views=0: expected at least 1"),
        ("levjepa", dict(drop_ratio=1.0), "drop_ratio=1.0: expected at least 0 and below 1"),
        ("levjepa_nd", dict(num_target_aug_views=0), "num_target_aug_views=0: expected at least 1"),
        ("levjepa_nd", dict(noise=-1.0), "noise=-1.0: expected 0 or more"),
        ("levjepa_nd", dict(num_classes_K=0), "num_classes_K=0: expected at least 1"),
    ],
)
def test_bad_values_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_objective(name, build(VIDEO), **kwargs)


@pytest.mark.parametrize(
    ("case", "kwargs", "message"),
    [
        (ARRAY, dict(patch_size=(4, 4, 4)), r"patch_size=\(4, 4, 4\): expected one number, or 2"),
        (ARRAY, dict(input_shape=18), r"input_shape=\(18, 18\): expected multiples of patch_size"),
        (ARRAY, dict(causal_dims=(2,)), r"causal_dims=\(2,\): expected axes from 0 to 1"),
        (ARRAY, dict(dim_head=3), "dim_head=3: expected at least 4"),
        (VIDEO, dict(dim_head=5), "dim_head=5: expected at least 6"),
    ],
)
def test_bad_arguments_of_the_trunks_are_named(case, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(case, **kwargs)


@pytest.mark.parametrize("name", ["levjepa", pytest.param("levjepa_nd", marks=pytest.mark.exhaustive)])
def test_a_run_from_the_command_line(name, tmp_path):
    options = ("--batch-size=32", "--steps=2", "--eval-batch-size=256", "--log-steps=1", "--recipe=digits")
    sizes = ("--model-args", "depth=1", "dim=16", "heads=2", "mlp_dim=32", "--objective-args", "num_classes_K=16")
    assert main(["--no-report", f"--objective={name}", *options, f"--workdir={tmp_path}", *sizes]) == 0
    assert len(records(tmp_path, "train")) == 2
