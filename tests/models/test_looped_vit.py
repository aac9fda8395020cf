"""Loops of LoopedViT: logits of each, the gate, and early exits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases.case import INPUT, build
from tests.cases.looped_vit import LOOPED, PLAIN, Case
from tests.test_models import variables_of
from vit_jax import create_model

pytest.importorskip("torch")
from tests.test_parity import Row, assert_parity

GATED = PLAIN | dict(adaptive_loop=True, loop_depth=3)
IMAGES = jax.device_put(np.random.default_rng(0).standard_normal(INPUT, np.float32))


@pytest.mark.parametrize(
    "options",
    [
        dict(return_all_logits=True, return_exit_benefits=True),
        dict(return_exit_benefits=True, loop_depth=2),
        dict(return_all_logits=True),
        dict(loop_depth=1),
    ],
    ids=str,
)
def test_options_equal_upstreams(options):
    assert_parity(Row(Case(*LOOPED, INPUT, 0, GATED, options=options)), 1e-5, 1e-5)


ROUNDING = 4e-6  # of logits near 1, between one compiled program and another


def test_an_early_exit_repeats_the_loop_that_it_leaves():
    model = create_model("looped_vit", **GATED | dict(loop_depth=4))
    variables = variables_of(model, IMAGES, {})
    both = dict(return_all_logits=True, return_exit_benefits=True)
    apply = jax.jit(
        lambda threshold: model.apply(variables, IMAGES, adaptive_exit=True, exit_threshold=threshold, **both)
    )
    logits, benefits = jax.jit(lambda: model.apply(variables, IMAGES, **both))()
    assert logits.shape == (4, 2, 5)
    assert benefits.shape == (3, 2)

    never, _ = apply(-1e9)
    np.testing.assert_allclose(never, logits, atol=ROUNDING)
    at_once, _ = apply(1e9)
    np.testing.assert_allclose(at_once, jnp.broadcast_to(logits[:1], logits.shape), atol=ROUNDING)
    highest = np.asarray(benefits.max(1))
    threshold = float(highest[:2].mean())  # between the gains of the first two loops
    leaves = 0 if highest[0] < highest[1] else 1
    some, _ = apply(threshold)
    expected = logits[jnp.minimum(jnp.arange(4), leaves)]
    np.testing.assert_allclose(some, expected, atol=ROUNDING)
    last = jax.jit(lambda: model.apply(variables, IMAGES, adaptive_exit=True, exit_threshold=threshold))()
    np.testing.assert_allclose(last, logits[leaves], atol=ROUNDING)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(loop_depth=0), "loop_depth=0: expected at least 1"),
        (dict(post_loop_depth=-1), "post_loop_depth=-1: expected at least 0"),
        (dict(deep_supervision_weighting="mean"), r"deep_supervision_weighting='mean': expected one of \('final'"),
        (dict(deep_supervision_weighting=(1.0,)), r"weighting=\(1.0,\): expected .* or loop_depth=2 numbers"),
        (dict(input_shape=(9,), patch_size=4), r"input_shape=\(9,\): expected multiples of patch_size=\(4,\)"),
        (dict(input_shape=(8, 8, 8), patch_size=(4, 4)), r"patch_size=\(4, 4\): expected an integer or 3 of them"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("looped_vit", **PLAIN | kwargs)


def test_bad_calls_are_named():
    model = build(Case(*LOOPED, INPUT, 0, PLAIN))
    for options, message in (
        (dict(adaptive_exit=True), "adaptive_loop=False: expected True"),
        (dict(loop_depth=0), "loop_depth=0: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda options=options: model.init(jax.random.key(0), IMAGES, **options))
    gated = create_model("looped_vit", **GATED)
    with pytest.raises(ValueError, match="loop_depth=1: expected at least 1, and 2 for a gate"):
        jax.eval_shape(lambda: gated.init(jax.random.key(0), IMAGES, loop_depth=1, adaptive_exit=True))
