"""`use_flash_attn` changes what is stored for the gradient, but no output."""

import jax
import numpy as np

from tests.cases import FIRST
from tests.cases.case import build


def test_attention_maps_are_not_kept():
    case = FIRST["simple_flash_attn_vit_3d"]
    video = jax.random.normal(jax.random.key(0), case.input_shape)
    params = build(case).init(jax.random.key(1), video)

    def run(use_flash_attn):
        loss = lambda params: build(case, use_flash_attn=use_flash_attn).apply(params, video).sum()
        kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params))
        maps = sum(leaf.shape == (2, 3, 12, 12) for leaf in kept)
        return maps, jax.jit(jax.grad(loss))(params)

    (with_flash, gradient), (without, expected) = run(True), run(False)
    assert with_flash == 0 < without
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected)
