"""`from_torch` accepts all inputs of a model's call: arrays are traced, other values are passed on unchanged."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.cases import CASES, FIRST
from tests.cases.case import Inner, build
from vit_jax import list_models
from vit_jax.convert import from_torch, to_torch

ROWS = {str(case): case for case in CASES}
CONDITIONS = [
    dict(extra=np.zeros((2, 5), np.float32)),
    dict(tasks=np.array([1, 0])),
    dict(advantages=np.array([-1, 3])),
    dict(advantages=2),
    dict(actions=np.zeros((2, 7, 6), np.float32)),
]
GROUPS = [dict(group_images=True, group_max_seq_len=64)]
KEPT = [dict(kept=np.array([[0, 2], [1, 2]]), train=True), dict(drop_ratio=0.5, train=True)]
MASKS = [dict(mask=np.ones((2, 6), bool)), dict(mask=None)]
TOKENS = np.zeros((2, 16, 24), np.float32)

# Values for keywords that are not flags.
VALUES = {
    "accept_video_wrapper": [dict(forward_kwargs=dict(return_hiddens=flag)) for flag in (True, False)],
    "distill:DistillableViT": [dict(distill_token=np.zeros((1, 24), np.float32))],
    "levjepa:VideoTransformer": KEPT,
    "levjepa_nd:NDTransformer": KEPT,
    "looped_vit": [dict(loop_depth=3), *(dict(exit_threshold=value) for value in (0.5, np.ones((), np.float32)))],
    "na_vit": GROUPS,
    "na_vit_nested_tensor": GROUPS,
    "na_vit_nested_tensor_3d": GROUPS,
    "simple_vit_attn_residual": [dict(history=[TOKENS, jnp.ones((2, 16, 24))]), dict(history=[])],
    "vaat": CONDITIONS,
    "vat": CONDITIONS,
    "vat_siglip": CONDITIONS,
    "vit_detpool": [dict(object_mask=np.ones((2, 16), bool)), dict(object_mask=None)],
    "vivit": MASKS,
    "vivit_with_moss": MASKS,
    "vivit_with_moss:MOSS": [dict(cache=None)],
}
# Rows, if not the first of a model, and arguments with which a model takes all of its keywords.
ROW_NAMES = {name: f"{name}-conditions" for name in ("vaat", "vat", "vat_siglip")}
ARGUMENTS = {
    "accept_video_wrapper": dict(image_net=Inner("vat:ViT", "vat:ViT", FIRST["vat:ViT"].kwargs)),
    "looped_vit": dict(adaptive_loop=True),
    "vivit_with_moss": dict(moss_causal=False),
}


@pytest.mark.parametrize("name", list_models())
def test_every_keyword_of_every_model(name):
    """The same upstream state dict fits with flags on, with flags off, and with every other keyword."""
    case = ROWS[ROW_NAMES.get(name, name)]
    arguments = case.kwargs | ARGUMENTS.get(name, {})
    keywords = keywords_of(build(Inner(case.name, case.upstream, arguments)))
    flags = {key for key, parameter in keywords.items() if parameter.annotation in (bool, bool | None)}
    values = VALUES.get(name, [])
    assert keywords.keys() == flags | {key for given in values for key in given}

    model = build(dataclasses.replace(case, kwargs=arguments, options={}, keyword_inputs={}))
    x, _ = case.inputs(np.random.default_rng(0))
    state = state_of(model, x)
    off = [dict.fromkeys(flags, False)] if len(flags) > 1 else []  # train=False alone is every other test's
    for given in (dict.fromkeys(flags, True), *off, *values):
        variables = from_torch(model, state, x, **given)
        assert to_torch(model, variables).keys() == state.keys()


def keywords_of(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a model's call."""
    parameters = inspect.signature(type(model).__call__).parameters
    return {key: parameter for key, parameter in parameters.items() if parameter.kind == parameter.KEYWORD_ONLY}


def state_of(model: nn.Module, *inputs) -> dict[str, np.ndarray]:
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return to_torch(model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables))


def test_a_cache_of_arrays():
    case = FIRST["vivit_with_moss:MOSS"]
    model = build(case, causal=True)
    x, _ = case.inputs(np.random.default_rng(0))
    variables = from_torch(model, state_of(model, x), x)
    _, cache = jax.eval_shape(lambda x: model.apply(variables, x, return_cache=True), x)
    from_torch(model, to_torch(model, variables), x, cache=cache, return_cache=True)


def test_arrays_are_traced_and_nothing_else():
    arrays = [np.ones(3), jnp.ones(3), jax.ShapeDtypeStruct((3,), jnp.int32), np.array(True), jax.random.key(0)]
    others = [True, None, 3, 0.5, 1j, "text", b"text", np.float32(1), np.bool_(True), np.int8, print, object(), {1, 2}]
    calls = []

    class Witness(nn.Module):
        """A linear layer that records the arguments of its call."""

        @nn.compact
        def __call__(self, x, *args, **kwargs):
            calls.append((args, kwargs))
            return nn.Dense(2, name="dense")(x)

    state = {"dense.weight": np.ones((2, 4), np.float32), "dense.bias": np.ones(2, np.float32)}
    from_torch(Witness(), state, np.ones((1, 4)), *arrays, *others, arrays=(arrays, {"a": arrays}), others=[others])

    ((args, kwargs),) = calls
    given = [*args[: len(arrays)], *kwargs["arrays"][0], *kwargs["arrays"][1]["a"]]
    assert all(isinstance(each, jax.core.Tracer) for each in given)
    assert len(given) == 3 * len(arrays)
    for seen in (args[len(arrays) :], kwargs["others"][0]):
        assert len(seen) == len(others)
        assert all(a is b for a, b in zip(seen, others, strict=True))
