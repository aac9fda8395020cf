"""The sparsity loss equals upstream's in value and gradient; registers; invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax.convert import from_torch, to_torch

CASE = FIRST["simple_vit_with_sparse_gating"]


@pytest.mark.parametrize("kwargs", [dict(sparsity_loss_type="l1"), dict(sparsity_threshold=0.5)], ids=str)
def test_loss_is_upstreams(kwargs):
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake

    model, twin = build(CASE, **kwargs), shake(build_upstream(CASE, **kwargs))
    x, _ = CASE.inputs(np.random.default_rng(0))
    params = from_torch(model, twin.state_dict(), jnp.asarray(x))["params"]

    def loss(params):
        logits, loss = model.apply({"params": params}, jnp.asarray(x), return_loss=True)
        return loss + logits.mean(), (logits, loss)

    gradients, (logits, loss) = jax.jit(jax.grad(loss, has_aux=True))(params)
    expected_logits, expected_loss = twin(channels_first(x), return_loss=True)
    (expected_loss + expected_logits.mean()).backward()
    np.testing.assert_allclose(loss, expected_loss.item(), atol=1e-6)  # of mean gates near one half
    np.testing.assert_allclose(logits, expected_logits.detach(), atol=1e-5 * expected_logits.abs().max().item())
    gradients = to_torch(model, {"params": gradients})
    for name, parameter in twin.named_parameters():
        expected = parameter.grad.numpy()
        np.testing.assert_allclose(gradients[name], expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    assert torch.isfinite(expected_loss)
    assert 0 < loss < 1


def test_features_come_with_the_loss_as_well():
    model = build(CASE, num_classes=0)
    x = jnp.zeros(CASE.input_shape)
    (tokens, loss), _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, return_loss=True))
    assert (tokens.shape, loss.shape) == ((2, 16, 24), ())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_register_tokens=-1), "num_register_tokens=-1: expected at least 0"),
        (dict(dim_mask=0), "dim_mask=0: expected at least 1"),
        (dict(sparsity_loss_type="l2"), "sparsity_loss_type='l2': expected one of 'l1', 'thresholded_l1'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(CASE, **kwargs)
