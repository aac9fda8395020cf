"""Initial LayerScale of CaiT."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax import create_model, list_presets
from vit_jax.convert import to_torch


def starts(model) -> dict[str, float]:
    """Initial value of each LayerScale, by torch key."""
    sides = (model.image_size, model.image_size, 3)

    @jax.jit
    def init(key):  # without random kernels, which compile slowly
        is_scale = lambda path: "_scale_" in jax.tree_util.keystr(path)
        keep = lambda path, leaf: leaf if is_scale(path) else jnp.zeros(leaf.shape)
        return jax.tree_util.tree_map_with_path(keep, model.init(key, jnp.ones((1, *sides))))

    state = to_torch(model, init(jax.random.key(0)))
    return {key: float(value.min()) for key, value in state.items() if key.endswith(".scale")}


def test_by_default_as_upstreams():
    pytest.importorskip("torch")
    sizes = dict(depth=26, dim=6, heads=1, dim_head=4, mlp_dim=4)
    twin = build_upstream(FIRST["cait"], **sizes).state_dict()
    expected = {key: pytest.approx(float(value.min())) for key, value in twin.items() if key.endswith(".scale")}
    assert len(expected) == 2 * (26 + 2)
    assert starts(build(FIRST["cait"], **sizes)) == expected


def test_or_everywhere_alike():
    assert set(starts(build(FIRST["cait"], layer_scale_init=0.5)).values()) == {0.5}


def test_the_papers_presets_go_by_depth():
    paper = {name: create_model(f"cait/{name}", num_classes=2) for name in list_presets("cait") if name != "tiny"}
    assert {(model.depth, model.layer_scale_init) for model in paper.values()} == {(24, 1e-5), (36, 1e-6), (48, 1e-6)}
