"""Features of SepViT only: sizes that upstream ignores."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build


def test_sizes_count_only_when_asked_for():
    """As in upstream, 28 pixels are one window of 7 in the first stage, whatever `window_size` is."""
    case, given = FIRST["sep_vit"], dict(window_size=3, dim_head=5)
    shapes = lambda **kwargs: jax.eval_shape(build(case, **kwargs).init, jax.random.key(0), jnp.ones((1, 28, 28, 3)))
    assert shapes() == shapes(**given)
    with pytest.raises(ValueError, match=r"image_size=\(28, 28\): expected sides such as 24 or 33"):
        shapes(upstream_sizes=False, **given)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depth=2), "depth=2: expected a tuple"),
        (dict(heads=(1, 2)), r"heads=\(1, 2\): expected one number, or 1"),
        (dict(window_size=0), "window_size=0: expected at least 1"),
        (dict(image_size=32), "image_size=32: expected sides such as 28 or 53"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["sep_vit"], **kwargs)
