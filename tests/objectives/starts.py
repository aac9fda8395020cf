"""Where the tests of objectives start from, without compiling an objective's init."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.test_models import filled


def started(objective, images):
    """Random parameters and extras of about their usual size; counters are zero."""
    return fill(jax.eval_shape(objective.init, jax.random.key(0), images))


def fill(shapes):
    """The same for parameters and extras of these shapes."""
    of_kind = lambda shape, leaf: (
        leaf if jnp.issubdtype(shape.dtype, jnp.floating) else jax.device_put(np.zeros((), shape.dtype))
    )
    return jax.tree.map(of_kind, shapes, filled(shapes))
