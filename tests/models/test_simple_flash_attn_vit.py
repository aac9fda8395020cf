"""`use_flash` changes what is stored for the gradient, but no output."""

import jax
import numpy as np

from tests.cases import FIRST
from tests.cases.case import build


def test_attention_maps_are_not_kept():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = build(FIRST["simple_flash_attn_vit"]).init(jax.random.key(1), images)

    def run(use_flash):
        loss = lambda params: build(FIRST["simple_flash_attn_vit"], use_flash=use_flash).apply(params, images).sum()
        kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params))
        maps = sum(leaf.shape == (2, 3, 16, 16) for leaf in kept)
        return maps, jax.jit(jax.grad(loss))(params)

    (with_flash, gradient), (without, expected) = run(True), run(False)
    assert with_flash == 0 < without
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected)
