"""Quicker traces: Flax's `apply` traces every initialiser again for its shape, which takes half of its time."""

import numpy as np
from flax.core.scope import Scope
from flax.errors import ScopeParamShapeError

flax_param = Scope.param


def param(scope, name, init_fn, *args, **kwargs):
    """`Scope.param`, without traces of JAX's own initialisers, which return the shape that they are given."""
    if not scope.has_variable("params", name) or not init_fn.__module__.endswith("nn.initializers"):
        return flax_param(scope, name, init_fn, *args, **kwargs)
    scope.reserve(name, "params")
    value, shape = scope.get_variable("params", name), tuple(args[0])
    if np.shape(value) != shape:
        raise ScopeParamShapeError(name, scope.path_text, np.shape(value), shape)
    return value
