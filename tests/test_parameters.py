"""The quicker `Scope.param` of the tests: programs and errors are those of Flax."""

import jax
import numpy as np
import pytest
from flax.core.scope import Scope
from flax.errors import ScopeParamShapeError

from tests.cases import FIRST
from tests.cases.case import build
from tests.parameters import flax_param, param
from tests.test_models import inputs_of, variables_of


def test_the_program_is_that_of_flax(monkeypatch):
    model, (x, kwargs) = build(FIRST["levit"]), inputs_of(FIRST["levit"])
    variables = variables_of(model, x, kwargs)
    program = lambda: str(jax.make_jaxpr(lambda variables: model.apply(variables, x))(variables))
    assert Scope.param is param
    quick = program()
    monkeypatch.setattr(Scope, "param", flax_param)
    assert program() == quick


def test_a_parameter_of_another_shape_is_named_as_by_flax(monkeypatch):
    model, x = build(FIRST["simple_vit"]), np.ones(FIRST["simple_vit"].input_shape, np.float32)
    variables = jax.eval_shape(build(FIRST["simple_vit"], dim=28).init, jax.random.key(0), x)
    messages = []
    for function in (param, flax_param):
        monkeypatch.setattr(Scope, "param", function)
        with pytest.raises(ScopeParamShapeError) as caught:
            jax.eval_shape(model.apply, variables, x)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
