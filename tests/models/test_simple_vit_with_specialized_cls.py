"""Specialised layers of the class token, and their number of parameters."""

import math

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build
from vit_jax import create_model

NAME = "simple_vit_with_specialized_cls"


@pytest.mark.parametrize("size", ["s16", "b16"])
def test_eight_percent_of_parameters_are_added(size):
    """As the abstract of the paper states."""

    def count(name):
        shapes = jax.eval_shape(create_model(name, num_classes=0).init, jax.random.key(0), jnp.ones((1, 224, 224, 3)))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    assert count(f"{NAME}/{size}") / count(f"simple_vit/{size}") == pytest.approx(1.08, abs=0.005)


@pytest.mark.parametrize(("given", "specialized"), [(None, 2), (0, 0), (1, 1), (9, 7)])
def test_first_layers_are_specialized(given, specialized):
    model = build(FIRST[NAME], depth=7, specialize_qkv_depth=given)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    layers = [shapes["params"]["transformer"][f"attn_{i}"] for i in range(7)]
    assert ["cls_qkv" in layer for layer in layers] == [i < specialized for i in range(7)]


def test_a_negative_depth_is_named():
    with pytest.raises(ValueError, match="specialize_qkv_depth=-1: expected at least 0, or None"):
        build(FIRST[NAME], specialize_qkv_depth=-1)
