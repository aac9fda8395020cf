"""Muon against numpy and timm, and the parameters that it updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cases import CLASSIFIERS
from tests.optim.updates import PARAMS, flat, of_timm, reference, updated, with_
from tests.test_models import abstract
from train.errors import UserError
from train.optim import make_optimizer
from train.optim.muon import hidden_matrices

# In a block: a fused kernel, filters, a depthwise filter, and others; outside of one: a head.
HIDDEN = {
    "transformer": {
        "attn_0": {"to_qkv": {"kernel": (4, 9)}, "to_out": {"kernel": (3, 4), "bias": (4,)}},
        "ff_0": {"fc1": {"kernel": (2, 2, 2, 3)}, "depthwise": {"kernel": (3, 3, 1, 4)}},
    },
    "mlp_head": {"kernel": (4, 5)},
}


def drawn(shapes, seed):
    """Normal numbers of these shapes."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def orthogonalized(matrix):
    """Five iterations of Newton and Schulz, with the authors' coefficients."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def muon_reference(matrix, grads, decay):
    """Two updates of a matrix (inputs, outputs) with learning rates 0.1 and 0.05, with Nadam's momentum."""
    m, out, beta = 0.0, [], 0.95
    for t, (g, lr) in enumerate(zip(grads, (0.1, 0.05), strict=True), 1):
        m = beta * m + (1 - beta) * g
        momentum = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        direction = 0.2 * np.sqrt(max(g.shape)) * orthogonalized(momentum)
        matrix = matrix - lr * (direction + decay * matrix)
        out.append(matrix)
    return out


def muon_history():
    """The parameters `HIDDEN`, two gradients, and the parameters after each update."""
    params, *grads = (drawn(HIDDEN, seed) for seed in range(3))
    history = updated(with_(name="muon"), params, grads)
    return flat(params), list(map(flat, grads)), list(map(flat, history))


def test_muon_against_numpy():
    start, grads, history = muon_history()
    as_matrices = {  # each part of a fused kernel by itself; filters with all inputs in the rows
        "transformer/attn_0/to_qkv/kernel": [lambda x, i=i: x[:, 3 * i : 3 * i + 3] for i in range(3)],
        "transformer/attn_0/to_out/kernel": [lambda x: x],
        "transformer/ff_0/fc1/kernel": [lambda x: x.reshape(8, 3)],
    }
    for path, weights in start.items():
        gradients = [g[path].astype(np.float64) for g in grads]
        if path in as_matrices:
            for part in as_matrices[path]:
                expected = muon_reference(part(weights), list(map(part, gradients)), decay=0.3)
                for got, want in zip(history, expected, strict=True):
                    np.testing.assert_allclose(part(got[path]), want, rtol=1e-5, atol=1e-6)
        else:
            decay = 0.0 if path.endswith("bias") else 0.3
            expected = reference("adamw", weights.astype(np.float64), gradients, decay, adapt=False)
            for got, want in zip(history, expected, strict=True):
                np.testing.assert_allclose(got[path], want, rtol=1e-5, atol=1e-6)


def test_first_update_of_muon_against_timm():
    """The first, because timm does not correct the bias of Nesterov momentum, which later changes the direction."""
    torch, muon = of_timm("muon")
    start, grads, history = muon_history()
    path = "transformer/attn_0/to_out/kernel"
    gradient = torch.tensor(grads[0][path].T)  # torch has outputs first
    coefficients, float32 = muon._COEFFICIENTS["original"], torch.float32  # its optimizer iterates in bfloat16
    direction = muon.zeropower_via_newtonschulz(gradient, steps=5, coefficients=coefficients, dtype=float32)
    update = muon.get_lr_scale(gradient.shape, "match_rms_adamw") * direction.numpy().T
    np.testing.assert_allclose(history[0][path], start[path] - 0.1 * (update + 0.3 * start[path]), rtol=1e-5, atol=1e-6)


def test_muon_updates_the_matrices_of_lora_as_they_are():
    layer = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 9))}
    params = {"lora": {"transformer": {"attn_0": {"to_qkv": layer}}}, "mlp_head": {"kernel": jnp.ones((4, 5))}}
    assert flat(hidden_matrices(params)) == {path: path.startswith("lora") for path in flat(params)}
    state = jax.eval_shape(make_optimizer(with_(name="muon"), optax.constant_schedule(0.1), params).init, params)
    assert [leaf.shape for leaf in jax.tree.leaves(state[0].inner_states["muon"].inner_state.mu)] == [(4, 2), (2, 9)]


def test_muon_needs_a_matrix_in_a_block():
    with pytest.raises(UserError, match=r"--optim\.name muon: none of the trained parameters is a matrix in a block"):
        make_optimizer(with_(name="muon"), optax.constant_schedule(0.1), PARAMS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_muon_splits_and_flattens_the_kernels_of_every_model(name):
    _, variables, *_ = abstract(name)
    optimizer = make_optimizer(with_(name="muon"), optax.constant_schedule(0.1), variables["params"])
    shapes = jax.eval_shape(optimizer.init, variables["params"])
    muon = shapes[0].inner_states["muon"].inner_state.mu
    assert {len(leaf.shape) for leaf in jax.tree.leaves(muon)} <= {2, 3}
