"""Rules, aliases and constants, which a module's class has as attributes."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.cases import CASES
from tests.cases.case import Inner, build
from tests.states import PRECISIONS, Toy, assert_equal_states, refusal, state_of
from vit_jax.convert import from_torch, to_torch
from vit_jax.layers import sincos_1d


class Tied(nn.Module):
    """Two layers in a row, a tied one and a table that upstream stores."""

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.Dense(4, name=f"block_{i}")(x)
        return nn.Dense(4, name="block")(x) + jnp.arange(4.0)[None]

    torch_rules = (
        (r"block_(\d+)", r"layers.\1.0"),
        ("layers", "never: what a rule has replaced no other sees"),
    )
    torch_aliases = ((r"layers\.1\.0\.(\w+)", r"tied.\1"),)

    def torch_constants(self):
        return {"table": np.arange(4, dtype=np.float32)}


class Sines(nn.Module):
    """A module without parameters, whose upstream counterpart stores a constant."""

    def __call__(self, x):
        return x

    def torch_constants(self):
        return {"table": sincos_1d(1000, 4)}


TIED_KEYS = {"layers.0.0", "layers.1.0", "block", "tied"}


def test_rules_aliases_and_constants():
    state = state_of(Tied(), jnp.ones((1, 4)))
    assert state.keys() == {f"{key}.{leaf}" for key in TIED_KEYS for leaf in ("weight", "bias")} | {"table"}
    assert state["tied.weight"] is not state["layers.1.0.weight"]
    variables = from_torch(Tied(), state, jnp.ones((1, 4)))
    np.testing.assert_array_equal(variables["params"]["block_1"]["kernel"], state["tied.weight"].T)
    assert_equal_states(to_torch(Tied(), variables), state)


def test_tables_are_inherited_and_may_depend_on_arguments():
    class Moved(Tied):
        first: int = 5

        def torch_rules(self):
            return ((r"block_(\d+)", rf"layers.\1.{self.first}"),)

        torch_aliases = ((r"layers\.1\.5\.(\w+)", r"moved.\1"),)

    class Renamed(Moved):
        def torch_former_keys(self):
            return ((r"(.*)\.old\.(\w+)", rf"\1.{self.first}.\2"),)

    state = state_of(Renamed(), jnp.ones((1, 4)))
    keys = {"layers.0.5", "layers.1.5", "block", "moved"}
    assert state.keys() == {f"{key}.{leaf}" for key in keys for leaf in ("weight", "bias")} | {"table"}
    older = {key.replace(".5.", ".old."): value for key, value in state.items()}
    assert_equal_states(to_torch(Renamed(), from_torch(Renamed(), older, jnp.ones((1, 4)))), state)
    assert "layers.0.old.weight" in refusal(Moved(), older, jnp.ones((1, 4)))
    assert {"layers.0.7.weight", "block.weight"} <= state_of(Moved(first=7), jnp.ones((1, 4))).keys()


def test_ties_and_tables_are_checked():
    state = state_of(Tied(), jnp.ones((1, 4)))
    untied = {**state, "tied.weight": state["tied.weight"] + 1, "table": state["table"] + 1}
    message = refusal(Tied(), untied, jnp.ones((1, 4)))
    assert "torch key tied.weight differs from layers.1.0.weight" in message
    assert "torch key table differs from its formula" in message
    del state["tied.bias"], state["layers.1.0.weight"]
    message = refusal(Tied(), state, jnp.ones((1, 4)))
    assert "there is no torch key tied.bias" in message
    assert "Flax leaf params/block_1/kernel (4, 4) is left empty" in message


def test_modules_in_modules_go_by_their_own_classes():
    """`Tied` two arguments deep keeps its rules, aliases and tables, under both names; so do real models."""
    model = Toy(Toy(Tied()))
    keys = {f"layer.layer.{key}" for key in state_of(Tied(), jnp.ones((1, 4)))}
    state = state_of(model, jnp.ones((1, 4)))
    assert state.keys() == keys
    assert_equal_states(to_torch(model, from_torch(model, state, jnp.ones((1, 4)))), state)

    transformer = next(case for case in CASES if str(case) == "efficient").kwargs["transformer"]
    assert isinstance(transformer, Inner)
    outer = state_of(Toy(build(transformer)), jnp.ones((1, 2, 24)))
    assert outer.keys() == {f"layer.{key}" for key in state_of(build(transformer), jnp.ones((1, 2, 24)))}


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_constants_are_compared_as_precisely_as_they_are_stored(dtype):
    model, tokens = Sines(), jnp.ones((1, 4))
    state = state_of(model, tokens)
    assert_equal_states(
        to_torch(model, from_torch(model, {k: v.astype(dtype) for k, v in state.items()}, tokens)), state
    )
    for shift in (1.02, 0.98):  # two units in the last place of bfloat16, and more
        wrong = {"table": (shift * state["table"]).astype(dtype)}
        assert "torch key table differs from its formula" in refusal(model, wrong, tokens)


def test_constants_of_bfloat16_tensors():
    torch = pytest.importorskip("torch")
    model, tokens = Sines(), jnp.ones((1, 4))
    state = state_of(model, tokens)
    tensors = {key: torch.from_numpy(value).bfloat16() for key, value in state.items()}
    assert_equal_states(to_torch(model, from_torch(model, tensors, tokens)), state)
