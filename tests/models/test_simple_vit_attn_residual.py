"""The history is returned and accepted as in upstream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax.convert import from_torch

CASE = FIRST["simple_vit_attn_residual"]


@pytest.mark.parametrize("learned_query", [True, False])
def test_history_is_upstreams(learned_query):
    pytest.importorskip("torch")
    from tests.upstream import channels_first, shake

    model = build(CASE, learned_query=learned_query)
    twin = shake(build_upstream(CASE, learned_query=learned_query))
    x, _ = CASE.inputs(np.random.default_rng(0))
    variables = from_torch(model, twin.state_dict(), jnp.asarray(x))
    apply = jax.jit(lambda x, history: model.apply(variables, x, history=history, return_history=True))

    _, history = apply(x, None)
    _, expected_history = twin(channels_first(x), return_history=True)
    again, longer = apply(-x, history)
    expected_again, expected_longer = twin(channels_first(-x), history=expected_history, return_history=True)
    assert (len(history), len(longer)) == (5, 10)
    for ours, theirs in zip([again, *longer], [expected_again, *expected_longer], strict=True):
        theirs = theirs.detach().numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert np.abs(again - apply(-x, None)[0]).max() > 1e-3
