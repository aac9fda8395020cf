"""The paper's merging stages of T2T-ViT, which upstream lacks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax import create_model
from vit_jax.models.t2t import NarrowBlock


def test_token_transformer_by_hand():
    x = np.random.default_rng(0).standard_normal((2, 5, 7))
    model = NarrowBlock(4, 0.0)
    params = model.init(jax.random.key(0), jnp.asarray(x, jnp.float32))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, p):
        standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return standard * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    gelu = np.vectorize(lambda value: value * (1 + math.erf(value / math.sqrt(2))) / 2)
    q, k, v = np.split(norm(x, p["norm"]) @ p["to_qkv"]["kernel"], 3, axis=-1)
    scores = np.exp(q @ k.transpose(0, 2, 1) / 2)  # the square root of 4
    y = v + dense(scores / scores.sum(-1, keepdims=True) @ v, p["to_out"])
    y = y + dense(gelu(dense(norm(y, p["ff"]["norm"]), p["ff"]["fc1"])), p["ff"]["fc2"])
    np.testing.assert_allclose(model.apply({"params": params}, jnp.asarray(x, jnp.float32)), y, atol=1e-5)


def test_every_parameter_of_the_papers_form_gets_a_gradient():
    model, x = build(FIRST["t2t"], token_dim=6), jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    stage = variables["params"]["to_patch_embedding"]["transformer_0"]
    assert stage["to_qkv"]["kernel"].shape == (27, 18)
    assert variables["params"]["to_patch_embedding"]["proj"]["kernel"].shape == (9 * 6, 24)
    grads = jax.jit(jax.grad(lambda v: (model.apply(v, x) ** 2).sum()))(variables)
    assert all(jnp.any(grad != 0) for grad in jax.tree.leaves(grads))


def test_paper_presets_take_upstreams_weights_without_token_dim():
    pytest.importorskip("torch")
    model = create_model("t2t/7", num_classes=10, token_dim=None)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    ours = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    sizes = {name: getattr(model, name) for name in ("image_size", "num_classes", "dim", "depth", "heads", "mlp_dim")}
    twin = build_upstream(FIRST["t2t"], **sizes, dim_head=64, t2t_layers=model.t2t_layers)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(ours))
    assert count == sum(parameter.numel() for parameter in twin.parameters())


def test_bad_token_dim_is_named():
    with pytest.raises(ValueError, match="token_dim=0: expected at least 1"):
        build(FIRST["t2t"], token_dim=0)
