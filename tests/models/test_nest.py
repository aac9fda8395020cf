"""Features of NesT only: blocks that must fit, and positions of one number."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            dict(image_size=20),
            r"image_size=20: expected multiples of patch_size \* 2 \*\* .*=\(8, 8\)",
        ),
        (dict(image_size=(16, 24), num_hierarchies=3), r"image_size=\(16, 24\): expected multiples of .*=\(16, 16\)"),
        (dict(num_hierarchies=0), "num_hierarchies=0: expected at least 1"),
        (dict(block_repeats=(1, 2, 3)), r"block_repeats=\(1, 2, 3\): expected one number, or 2"),
        (dict(block_repeats=0), "block_repeats=0: expected at least 1"),
        (dict(mlp_mult=0), "mlp_mult=0: expected at least 1"),
        (dict(heads=25), "heads=25: expected at most dim=24"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["nest"], **kwargs)


def test_images_that_blocks_do_not_fill_are_named():
    with pytest.raises(ValueError, match=r"image_size=\(12, 16\): expected multiples of .*=\(8, 8\)"):
        jax.eval_shape(build(FIRST["nest"]).init, jax.random.key(0), jnp.ones((1, 12, 16, 3)))


def test_blocks_do_not_see_each_other_before_they_merge():
    """Changing the first block of an image does not change the features of the second one."""
    case = FIRST["nest"]
    model = build(case, num_classes=0, num_hierarchies=2)
    x = jax.random.normal(jax.random.key(0), case.input_shape)
    variables = model.init(jax.random.key(1), x)

    def second_block(x):
        _, state = model.apply(variables, x, capture_intermediates=lambda module, _: module.name == "transformer_0")
        return state["intermediates"]["transformer_0"]["__call__"][0].reshape(2, 2, 2, 2, 2, -1)[:, 0, 1]

    changed = x.at[:, :8, :8].add(1.0)
    assert jnp.array_equal(second_block(x), second_block(changed))
    assert not jnp.array_equal(second_block(x), second_block(x.at[:, :8, 8:].add(1.0)))
