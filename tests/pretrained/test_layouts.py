"""State dicts of timm's that hold other tensors than the network's parameters, and wrong ones."""

import jax
import numpy as np
import pytest

from tests.pretrained.test_use import IMAGES, tiny
from tests.test_models import filled
from vit_jax.convert import from_torch, to_torch
from vit_jax.pretrained.layouts import Join, Layout, PrefixPositions, Rename, Unstack

LAYOUT = Layout(
    (
        Rename("{i}.gamma_{n}", "{i}.ls{n}.gamma"),
        Join(("{i}.q.{p}", "{i}.k.{p}"), "{i}.qk.{p}"),
        Unstack("freqs", "{i}.freqs", axis=1),
        PrefixPositions("positions", ("cls", "registers")),
    )
)


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_operations_by_hand():
    published = {
        "0.gamma_1": numbers(2),
        "0.q.weight": numbers(2, 3),
        "0.k.weight": -numbers(2, 3),
        "freqs": numbers(2, 3, 1),
        "cls": np.ones((1, 1, 2), np.float32),
        "positions": numbers(1, 3, 2),
    }
    read = LAYOUT.read(published)
    assert read.keys() == {"0.ls1.gamma", "0.qk.weight", "0.freqs", "1.freqs", "2.freqs", "cls", "positions"}
    np.testing.assert_array_equal(read["0.qk.weight"], [[0, 1, 2], [3, 4, 5], [0, -1, -2], [-3, -4, -5]])
    np.testing.assert_array_equal(read["1.freqs"], [[1], [4]])
    np.testing.assert_array_equal(read["cls"], [[[1, 2]]])
    np.testing.assert_array_equal(read["positions"], [[[2, 3], [4, 5]]])

    written = LAYOUT.write(read)
    assert written.keys() == published.keys()
    for key in published.keys() - {"cls", "positions"}:
        np.testing.assert_array_equal(written[key], published[key])
    np.testing.assert_array_equal(written["positions"], [[[0, 0], [2, 3], [4, 5]]])
    assert {key: value.tolist() for key, value in LAYOUT.read(written).items()} == {
        k: v.tolist() for k, v in read.items()
    }


@pytest.mark.parametrize(
    "name", ["eva02_base_patch14_224", "vit_small_patch16_rope_mixed_ape_224", "aimv2_large_patch14_224"]
)
def test_weights_go_round(name):
    model = tiny(name)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), IMAGES))
    state = to_torch(model, variables)
    jax.tree.map(np.testing.assert_array_equal, from_torch(model, state, IMAGES), variables)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blocks.0.attn.k_proj.weight": None}, "torch key blocks.0.attn.q_proj.weight .* is left over"),
        ({"blocks.0.attn.k_proj.weight": np.ones((3, 32))}, "blocks.0.attn.k_proj.weight .3, 32. is left over"),
        ({"cls_token": np.ones((1, 1, 16))}, "cls_token .* cannot take torch key cls_token .1, 1, 16."),
        ({"cls_token": np.ones(32)}, "cls_token .* cannot take torch key cls_token .32,."),
        ({"pos_embed": np.ones((1, 26, 32))}, "pos_embedding .1, 6, 32. cannot take torch key pos_embed .1, 25, 32."),
        ({"blocks.0.gamma_1": np.ones(32)}, "torch key blocks.0.gamma_1 .32,. is left over"),
    ],
)
def test_what_does_not_fit_is_named(changed, message):
    model = tiny("eva02_base_patch14_224")
    state = to_torch(model, filled(jax.eval_shape(model.init, jax.random.key(0), IMAGES))) | changed
    with pytest.raises(ValueError, match=message):
        from_torch(model, {key: value for key, value in state.items() if value is not None}, IMAGES)
