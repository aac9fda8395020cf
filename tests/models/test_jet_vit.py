"""Attentions that layers of JetViT draw from, and invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import BLOCKS, IMAGE, build
from vit_jax import create_model

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
SIZES = IMAGE | BLOCKS | dict(depth=1, window_size=2)


def test_layers_draw_their_attention_in_training_alone():
    """Each of 300 outputs equals that of one attention, and all attentions are drawn equally often."""
    names = ("WA", "LA", "FA")
    model = create_model("jet_vit", **SIZES, attn_layers=[names])
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    models = [create_model("jet_vit", **SIZES, attn_layers=[name]) for name in names]
    alone = np.stack([jax.jit(one.apply)(variables, IMAGES) for one in models])
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, IMAGES), alone[0])

    draw = jax.jit(lambda key: model.apply(variables, IMAGES, train=True, rngs={"dropout": key}))
    outputs = np.stack([draw(key) for key in jax.random.split(jax.random.key(2), 300)])
    errors = np.abs(outputs[:, None] - alone[None]).max((2, 3))
    assert (np.sort(errors, axis=1)[:, 0] < 1e-5).all()
    assert (np.sort(errors, axis=1)[:, 1] > 1e-3).all()
    counts = np.bincount(errors.argmin(1), minlength=3)
    assert np.abs(counts - 100).max() < 4 * (300 * 2 / 9) ** 0.5


def test_layers_draw_by_themselves():
    model = create_model("jet_vit", **SIZES | dict(depth=2), attn_layers=[("WA", "FA")] * 2)
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    draw = jax.jit(lambda key: model.apply(variables, IMAGES, train=True, rngs={"dropout": key}))
    outputs = {f"{draw(key)[0, 0]:.4f}" for key in jax.random.split(jax.random.key(2), 60)}
    assert len(outputs) == 4


def test_gradients_reach_what_was_drawn():
    model = create_model("jet_vit", **SIZES, attn_layers=[("WA", "LA")], dropout=0.1)
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    loss = lambda variables, key: model.apply(variables, IMAGES, train=True, rngs={"dropout": key}).sum()
    gradient = jax.jit(jax.grad(loss))
    grads = [gradient(variables, jax.random.key(seed))["params"]["transformer"] for seed in range(8)]
    kernels = lambda grad: [grad[f"{kind}_attn_0"]["to_out"]["kernel"] for kind in ("window", "linear")]
    used = {tuple(bool(np.any(np.asarray(kernel))) for kernel in kernels(grad)) for grad in grads}
    assert used == {(True, False), (False, True)}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            dict(attn_layers=("FA",)),
            r"attn_layers=\('FA',\): expected depth=2 entries, each 'FA', 'WA', 'LA' or a tuple of them",
        ),
        (dict(attn_layers=("FA", "XA")), r"attn_layers=\('FA', 'XA'\): expected"),
        (dict(attn_layers=("FA", ())), r"attn_layers=\('FA', \(\)\): expected"),
        (dict(dim=20), "dim=20: expected a multiple of dim_head=8"),
        (dict(attn_layers=("FA", "WA"), window_size=3), r"window_size=3: expected one of \[1, 2, 4\], which divide"),
        (dict(window_size=0), r"window_size=0: expected one of \[1, 2, 4\]"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["jet_vit"], **kwargs)


def test_images_of_another_size_are_named():
    model = build(FIRST["jet_vit"])
    with pytest.raises(ValueError, match=r"images of 8 patches: expected a grid of \(4, 4\)"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 16, 3)))
