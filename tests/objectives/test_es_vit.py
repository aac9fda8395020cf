"""EsViT against upstream's on the same views; its matching of regions computed by hand."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.cases import FIRST
from tests.cases.case import BLOCKS, IMAGE, Case, build, build_upstream
from tests.runs import records, train
from vit_jax.convert import from_torch, to_torch
from vit_jax.objectives.es_vit import EsViT
from vit_jax.objectives.features import pooled, regions

SIZES = dict(num_classes_K=20, projection_hidden_size=12, projection_layers=3)
VIT = Case("vit", "vit:ViT", (2, 16, 16, 3), 0, IMAGE | BLOCKS)


def test_two_steps_are_upstreams():
    """With CvT, which returns a feature map. Batch norms are in evaluation mode, as `shake` sets upstream's."""
    torch = pytest.importorskip("torch")
    from tests.objectives.views import assert_same_gradients, crops, fix, wrapper_of
    from tests.upstream import shake

    case = FIRST["cvt"]
    shape = case.input_shape[1:]
    upstream = importlib.import_module("vit_pytorch.es_vit")
    nothing = dict(augment_fn=torch.nn.Identity(), augment_fn2=torch.nn.Identity())
    options = dict(student_temp=0.7, teacher_temp=0.3, moving_average_decay=0.8, center_moving_average_decay=0.6)
    learner = upstream.EsViTTrainer(
        build_upstream(case), image_size=shape[0], hidden_layer="layers", **SIZES, **options, **nothing
    )
    shake(learner)
    learner.teacher_view_centers.normal_()
    learner.teacher_region_centers.normal_()
    objective = EsViT(build(case, num_classes=0), "upstream", **SIZES, **options)
    model, images = objective.model, jnp.zeros((2, *shape))
    variables = from_torch(model, wrapper_of(learner, "student_encoder", "student_encoder"), images)
    teacher = from_torch(model, wrapper_of(learner, "teacher_encoder", "student_encoder"), images)
    params, statistics = variables["params"], variables["batch_stats"]
    extras = {"ema": teacher["params"], "ema_batch_stats": teacher["batch_stats"], "batch_stats": statistics}
    now = lambda center: {"now": jnp.asarray(center[0].numpy()), "next": jnp.zeros(20)}
    extras |= {"center": now(learner.teacher_view_centers), "region_center": now(learner.teacher_region_centers)}
    extras |= {"step": jnp.zeros((), jnp.int32)}

    @jax.jit
    def step(params, extras, drawn):
        def value(params):
            losses, moved = objective.compare(params, extras, drawn, {}, train=False)
            return losses.mean(), moved

        (loss, extras), gradients = jax.value_and_grad(value, has_aux=True)(params)
        return loss, gradients, objective.updated(params, extras)

    for _ in range(2):
        drawn = crops(3, 2, 2, shape=shape)
        fix(learner, drawn)
        learner.zero_grad()
        expected = learner(torch.zeros(3, 3, *shape[:2]))
        expected.backward()
        loss, gradients, extras = step(params, extras, drawn)
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
        assert_same_gradients(model, gradients, learner, variables={"batch_stats": statistics})
        learner.update_moving_average()
        for name, theirs in (("center", "teacher_view_centers"), ("region_center", "teacher_region_centers")):
            np.testing.assert_allclose(extras[name]["now"], getattr(learner, theirs)[0], rtol=1e-5, atol=1e-6)
    average = to_torch(model, {"params": extras["ema"], "batch_stats": statistics})
    for key, value in wrapper_of(learner, "teacher_encoder", "student_encoder").items():
        if "running" not in key and "tracked" not in key:
            np.testing.assert_allclose(average[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


def test_regions_are_compared_with_the_nearest_by_hand():
    objective = EsViT(build(VIT, num_classes=0), **SIZES)
    rng = np.random.default_rng(0)
    told, logs = rng.random((1, 5)), rng.random((1, 5))
    told_regions, region_logs = rng.random((1, 3, 5)), rng.random((1, 2, 5))
    known = np.array([[[1.0, 0.0], [0.0, 9.0], [-1.0, 0.0]]])
    found = np.array([[[5.0, 1.0], [-1.0, 0.5]]])  # by angle: regions 0 and 2; by product the second: region 1
    expected = -(told * logs).sum() - ((told_regions[0, [0, 2]] * region_logs[0]).sum(-1)).mean()
    narrow = lambda values: tuple(jnp.asarray(value, jnp.float32) for value in values)
    loss = objective.of_pair(narrow((told, told_regions, known)), narrow((logs, region_logs, found)))
    np.testing.assert_allclose(loss, [expected / 2], rtol=1e-5)


def test_features_of_every_form():
    class Encoder(nn.Module):
        pool: str = "cls"

    class Plain(nn.Module):
        pass

    tokens = jnp.arange(24.0).reshape(2, 4, 3)
    np.testing.assert_array_equal(pooled(Encoder(), (tokens, 1.0)), tokens[:, 0])
    np.testing.assert_array_equal(regions(Encoder(), tokens), tokens[:, 1:])
    np.testing.assert_array_equal(pooled(Plain(), tokens), tokens.mean(1))
    np.testing.assert_array_equal(regions(Plain(), tokens), tokens)
    grid = tokens.reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(pooled(Encoder(), grid), tokens.mean(1))
    np.testing.assert_array_equal(regions(Encoder(), grid), tokens)
    np.testing.assert_array_equal(pooled(Encoder(), tokens[:, 0]), tokens[:, 0])
    with pytest.raises(ValueError, match="encoder=Encoder: expected one that returns tokens or a map, not a vector"):
        regions(Encoder(), tokens[:, 0])


@pytest.mark.exhaustive  # dino's run is a default test
def test_a_run_of_tokens_and_smaller_views(tmp_path):
    arguments = ("--objective-args", "num_classes_K=32", "num_local_views=1", "projection_layers=2")
    assert train(tmp_path, "--steps=2", "--objective=es_vit", *arguments) == 0
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path, "train"))
