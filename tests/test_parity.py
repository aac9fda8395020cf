"""Every model against its upstream twin, with the same weights: values and gradients, in float32."""

import dataclasses
import random

import jax
import numpy as np
import pytest

from tests.cases import CASES, Case, build, build_upstream
from vit_jax.convert import from_torch, to_torch

torch = pytest.importorskip("torch")
from tests.upstream import channels_first, shake  # noqa: E402


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_upstreams(case):
    assert_parity(case, case.tolerance, case.tolerance)


def assert_parity(case: Case, value_tolerance: float, gradient_tolerance: float):
    """Within these relative errors, at ordinary activations and at small ones, where a wrong epsilon shows."""
    model = build(case)

    @jax.jit
    def run(params, x, kwargs, cotangents):
        apply = lambda params, x, kwargs: model.apply({"params": params}, x, **kwargs)
        outputs, pull_back = jax.vjp(apply, params, x, kwargs)
        return outputs, pull_back(cotangents)

    for scale in (1.0, 0.1):
        outputs, gradients = compare(case, model, run, scale)
        for what, (ours, theirs) in outputs.items():
            assert_close(ours, theirs, value_tolerance, f"{what}, {scale=}")
        for what, (ours, theirs) in gradients.items():
            assert_close(ours, theirs, gradient_tolerance, f"gradient of {what}, {scale=}")


def compare(case: Case, model, run, scale: float) -> tuple[dict, dict]:
    """Outputs and gradients by name, each as (ours, upstream's)."""
    rng = np.random.default_rng(1)
    normal = lambda shape: rng.standard_normal(shape, np.float32)
    x = normal(case.input_shape) * scale
    kwargs = {name: normal(shape) * scale for name, shape in case.keyword_inputs.items()}
    twin = shake(build_upstream(case), scale=scale)
    params = from_torch(model, twin.state_dict(), x, **kwargs)["params"]

    torch_x = channels_first(x).requires_grad_()
    torch_kwargs = {name: torch.from_numpy(value).requires_grad_() for name, value in kwargs.items()}
    expected = twin(torch_x, **torch_kwargs)
    cotangents = jax.tree.map(lambda out: normal(out.shape), expected)
    torch.autograd.backward(expected, jax.tree.map(torch.from_numpy, cotangents))

    outputs, (params_grad, x_grad, kwargs_grad) = run(params, x, kwargs, cotangents)
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True)
    ours = to_torch(model, {"params": params_grad}) | {"the input": channels_first(np.array(x_grad))} | kwargs_grad
    theirs = dict(twin.named_parameters()) | {"the input": torch_x} | torch_kwargs
    return (
        {f"output {i}": (a, b.detach()) for i, (a, b) in enumerate(pairs)},
        {name: (ours[name], theirs[name].grad) for name in theirs if theirs[name].numel()},
    )


def assert_close(ours, theirs, tolerance: float, what: str):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, f"{what}: relative error {error:.2g}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parameter_count_is_upstreams(case):
    assert sum(p.numel() for p in build_upstream(case).parameters()) == case.parameters


FIRST_ROWS = {case.name: case for case in reversed(CASES)}.values()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", FIRST_ROWS, ids=str)
def test_other_configurations_are_equal_too(case, seed):
    assert_parity(draw(case, seed), value_tolerance=1e-5, gradient_tolerance=1e-4)


def draw(case: Case, seed: int) -> Case:
    """The row with other arguments, drawn at random."""
    rng = random.Random(f"{case} {seed}")
    dim, channels, patch = 8 * rng.randint(2, 6), rng.randint(1, 3), rng.choice((2, 4, 6))
    blocks = dict(dim=dim, depth=rng.randint(1, 3), heads=rng.randint(1, 4), dim_head=rng.choice((4, 7, 16)))
    blocks |= dict(mlp_dim=rng.randint(5, 60), cls_depth=rng.randint(1, 3))
    drawn = blocks | dict(image_size=patch * rng.randint(2, 4), patch_size=patch, num_classes=rng.randint(2, 12))
    drawn["t2t_layers"] = ((rng.choice((3, 4, 7)), rng.choice((2, 3))), (3, rng.choice((1, 2))))
    if case.name == "t2t":
        drawn["image_size"] = rng.randint(9, 20)
    if case.name == "pit":
        drawn["depth"] = tuple(rng.randint(1, 2) for _ in range(rng.randint(1, 3)))
    if case.name == "deepvit":  # its norm over heads makes of two numbers hardly more than their sign
        blocks["heads"] = drawn["heads"] = rng.randint(3, 4)
    if "transformer" in case.kwargs:
        inner = case.kwargs["transformer"]
        drawn["transformer"] = dataclasses.replace(inner, kwargs={key: blocks[key] for key in inner.kwargs})

    kwargs = {key: drawn[key] for key in case.kwargs}
    if hasattr(build(case), "pool"):
        kwargs["pool"] = rng.choice(("cls", "mean"))
    if "image_size" not in kwargs:
        return dataclasses.replace(case, kwargs=kwargs, input_shape=(2, rng.randint(2, 20), dim))
    if case.name == "cait":  # upstream's takes three
        channels = 3
    else:
        kwargs["channels"] = channels
    side = kwargs["image_size"]
    return dataclasses.replace(case, kwargs=kwargs, input_shape=(2, side, side, channels))
