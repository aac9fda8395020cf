"""Comparison of networks with timm's: outputs, gradients and exported weights, at usual and at small activations."""

from collections.abc import Callable

import numpy as np

from tests.upstream import channels_first, shake, torch
from vit_jax.convert import from_torch, to_torch


def state_of(module) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in module.state_dict().items()}


def assert_close(ours, theirs, tolerance, what, floor=0.0):
    assert ours.shape == theirs.shape, what
    error = np.abs(ours - theirs).max() / (max(np.abs(theirs).max(), floor) or 1)
    assert error <= tolerance, f"{what}: relative error {error:.2g}"


def shake_wide(module, scale: float):
    """`shake`, with linear layers whose outputs have the size that they have in narrow networks."""
    shake(module, scale=scale)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel()
            if parameter.ndim in (2, 4) and fan_in > 48:
                parameter.mul_((48 / fan_in) ** 0.5)
    return module.eval()


def assert_equal(
    theirs,
    ours,
    images: np.ndarray,
    run: Callable,
    outputs_of_timm: Callable,
    perturb: Callable = shake,
    as_gradients: Callable = dict,
):
    """Assert that `ours` computes what timm's network does with the same weights, and gives them back.

    Args:
        theirs: timm's network.
        ours: the network here.
        images: (b, h, w, c).
        run: a function of variables, images and weights of the logits: the weighted sum, outputs by name, and the
            sum's gradients with respect to parameters and images, or None.
        outputs_of_timm: a function of timm's network and images (b, c, h, w): the same outputs.
        perturb: a function of timm's network and a scale, which perturbs its weights.
        as_gradients: a function of gradients by timm's names: those that are comparable.
    """
    for scale in (1.0, 0.1):
        perturb(theirs, scale=scale)
        state, scaled = state_of(theirs), (images * scale).astype(np.float32)
        variables = from_torch(ours, state, scaled)
        exported = to_torch(ours, variables)
        assert exported.keys() == state.keys()
        theirs.zero_grad()
        torch_images = channels_first(scaled).requires_grad_()
        expected = outputs_of_timm(theirs, torch_images)
        weights = np.random.default_rng(1).standard_normal(expected["logits"].shape, np.float32)
        (expected["logits"] * torch.from_numpy(weights)).sum().backward()
        (_, made), gradients = run(variables, scaled, weights)
        for what, value in expected.items():
            assert_close(made[what], value.detach().numpy(), 1e-5, f"{what}, {scale=}")

        if gradients is not None:
            params_grad, images_grad = gradients
            found = as_gradients(to_torch(ours, {"params": params_grad}))
            wanted = as_gradients({key: parameter.grad.numpy() for key, parameter in theirs.named_parameters()})
            found["images"], wanted["images"] = channels_first(images_grad).numpy(), torch_images.grad.numpy()
            largest = max(np.abs(value).max() for value in wanted.values())
            for key, value in wanted.items():
                assert_close(found[key], value, 1e-4, f"gradient of {key}, {scale=}", largest * 1e-3)

        theirs.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=True)
        with torch.no_grad():
            assert_close(theirs(channels_first(scaled)).numpy(), expected["logits"].detach().numpy(), 1e-6, "exported")
