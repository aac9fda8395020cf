"""Initial variables without the programs that draw random numbers, which take half the time of a small training."""

import jax
import numpy as np
from jax.interpreters import partial_eval


def _normal(rng, shape) -> np.ndarray:
    return rng.standard_normal(shape)


def _truncated_normal(rng, shape) -> np.ndarray:
    """Normal numbers between -2 and 2, as JAX's initialisers ask for."""
    numbers = rng.standard_normal(shape)
    while (outside := np.abs(numbers) > 2).any():
        numbers[outside] = rng.standard_normal(outside.sum())
    return numbers


# By the name that a function of jax.random has in a jaxpr. Draws by another name stay JAX's: slower, and as right.
DRAWS = {"_normal": _normal, "_normal_real": _normal, "_truncated_normal": _truncated_normal}


def initial(init, *args):
    """What `init(*args)` returns, with numpy's numbers in place of JAX's normal ones."""
    closed, shapes = jax.make_jaxpr(init, return_shape=True)(*args)
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    inputs = [value for value, is_used in zip(jax.tree.leaves(args), used, strict=True) if is_used]
    draws = [equation for equation in jaxpr.eqns if equation.params.get("name") in DRAWS]
    drawn = [out for equation in draws for out in equation.outvars]
    rng = np.random.default_rng(0)
    numbers = [DRAWS[e.params["name"]](rng, out.aval.shape).astype(out.aval.dtype) for e in draws for out in e.outvars]
    rest = jaxpr.replace(
        constvars=[*jaxpr.constvars, *drawn], eqns=[equation for equation in jaxpr.eqns if equation not in draws]
    )
    leaves = jax.jit(lambda *values: jax.core.eval_jaxpr(rest, values, *inputs))(*closed.consts, *numbers)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
