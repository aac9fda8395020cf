"""LayerScale of `vit`, which adds parameters only if it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.cases import FIRST
from tests.cases.case import build
from tests.test_models import inputs_of, variables_of
from vit_jax.convert import from_torch, to_torch
from vit_jax.layers.execution import execution

CASE = FIRST["vit"]


@pytest.mark.parametrize("settings", [{}, dict(scan=True)], ids=str)
def test_layer_scale_multiplies_every_branch(settings):
    """So it may as well multiply the last linear map of the branch."""
    plain, scaled = build(CASE), build(CASE, layer_scale_init=0.1)
    x, _ = inputs_of(CASE)
    variables = variables_of(scaled, x, {})
    flat, folded = flatten_dict(variables["params"]["transformer"], sep="/"), {}
    for name, leaf in flat.items():
        layer, _, rest = name.partition("/")
        part, number = layer.rsplit("_", 1) if "_" in layer else (layer, "")
        if rest.startswith(("to_out", "fc2")):
            leaf = leaf * jnp.expand_dims(flat[f"{part}_scale_{number}/gamma"], range(leaf.ndim - 1))
        if not part.endswith("_scale"):
            folded.setdefault(layer, {})[rest] = leaf
    nested = {layer: unflatten_dict(leaves, sep="/") for layer, leaves in folded.items()}

    @jax.jit
    def both(variables, x):
        with execution(**settings):
            ours = scaled.apply(variables, x)
        return ours, plain.apply({"params": {**variables["params"], "transformer": nested}}, x)

    ours, theirs = both(variables, x)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_initial_layer_scale():
    model, (x, _) = build(CASE, layer_scale_init=0.3), inputs_of(CASE)
    params = flatten_dict(jax.jit(model.init)(jax.random.key(0), x)["params"], sep="/")
    plain = flatten_dict(jax.eval_shape(build(CASE).init, jax.random.key(0), x)["params"], sep="/")
    added = params.keys() - plain.keys()
    assert added == {f"transformer/{part}_scale_{i}/gamma" for part in ("attn", "ff") for i in range(2)}
    assert all(np.all(np.asarray(params[name]) == np.float32(0.3)) for name in added)


def test_layer_scale_is_stored_beside_upstreams_keys():
    """What upstream knows keeps its keys, and upstream's weights alone are refused."""
    plain, scaled, (x, _) = build(CASE), build(CASE, layer_scale_init=0.1), inputs_of(CASE)
    variables = variables_of(scaled, x, {})
    state = to_torch(scaled, variables)
    jax.tree.map(np.testing.assert_array_equal, from_torch(scaled, state, x), variables)
    upstreams = to_torch(plain, variables_of(plain, x, {}))
    assert state.keys() - upstreams.keys() == {
        f"transformer.layers.{i}.{j}.layer_scale.gamma" for i in (0, 1) for j in (0, 1)
    }
    with pytest.raises(ValueError, match=r"attn_scale_0"):
        from_torch(scaled, upstreams, x)
