"""Learning-rate schedules at points computed by hand."""

import jax
import numpy as np
import pytest

from tests.optim.updates import with_
from train.build import DataInfo, build_objective
from train.config import Config, Optim, without_former_defaults
from train.optim import Extension, make_schedule
from train.program import build_program
from train.run.description import optimizer_line
from train.sharding import make_mesh


# 10 steps per epoch, 2 epochs of warm-up, 100 steps: halfway after the warm-up is step 60.
@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("cosine", {0: 0, 10: 0.05, 20: 0.1, 40: 0.02 + 0.04 * (1 + 2**-0.5), 60: 0.06, 100: 0.02}),
        ("linear", {0: 0, 5: 0.025, 20: 0.1, 40: 0.08, 60: 0.06, 100: 0.02}),
        ("constant", {0: 0, 10: 0.05, 20: 0.1, 60: 0.1, 100: 0.1}),
        ("rsqrt", {0: 0, 10: 0.05, 20: 0.1, 80: 0.05, 180: 0.1 / 3}),
        ("wsd", {0: 0, 10: 0.05, 20: 0.1, 60: 0.1, 75: 0.1, 80: 0.084, 95: 0.036, 100: 0.02, 200: 0.02}),
    ],
)
def test_schedule_at_hand_worked_points(shape, points):
    schedule = make_schedule(with_(schedule=shape, decay_share=0.25), total_steps=100, steps_per_epoch=10.0)
    np.testing.assert_allclose([schedule(step) for step in points], list(points.values()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "rsqrt", "wsd"])
def test_schedule_without_warmup_starts_at_the_peak(shape):
    schedule = make_schedule(with_(schedule=shape, warmup_epochs=0.0), total_steps=100, steps_per_epoch=10.0)
    assert schedule(0) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "rsqrt", "wsd"])
def test_run_shorter_than_its_warmup_ends_on_the_rise(shape):
    schedule = make_schedule(with_(schedule=shape), total_steps=5, steps_per_epoch=10.0)
    np.testing.assert_allclose([schedule(step) for step in range(6)], 0.005 * np.arange(6), rtol=1e-6)


def test_a_decay_longer_than_the_run_begins_after_the_warmup():
    schedule = make_schedule(with_(schedule="wsd", decay_share=1.0), total_steps=100, steps_per_epoch=10.0)
    np.testing.assert_allclose([schedule(step) for step in (20, 60, 100)], [0.1, 0.06, 0.02], rtol=1e-6)


def test_an_extended_run_is_constant_again_before_it_decays_once_more():
    config = with_(schedule="wsd", warmup_epochs=0.0, decay_share=0.5, final_lr=0.0)
    schedule = make_schedule(config, 4, 10.0, (Extension(4, 12, "stretch"),))
    expected = [0.1, 0.1, 0.1, 0.05, 0.1, 0.1, *(0.1 * (12 - step) / 6 for step in range(6, 13))]
    np.testing.assert_allclose([schedule(step) for step in range(13)], expected, rtol=1e-5, atol=1e-9)


def test_default_schedules_are_as_before():
    """Older versions stored `cosine` where no schedule was given."""
    for name, default in (("adamw", "cosine"), ("schedule_free_adamw", "constant")):
        assert Optim(name=name).shape == default
        for given, kept in ((default, None), (None, None), ("linear", "linear")):
            assert without_former_defaults(Config(optim=Optim(name=name, schedule=given))).optim.schedule == kept


def test_the_learning_rate_is_scaled_with_the_batch_on_request():
    config = Config(model="vit", batch_size=64, optim=with_(lr_batch_size=256, warmup_epochs=0.0))
    info = DataInfo(("a", "b"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    program = build_program(config, info, make_mesh(devices=jax.devices()[:1]), build_objective(config, info), 10, 1.0)
    assert program.schedule(0) == pytest.approx(0.1 * 64 / 256)
    assert program.schedule(10) == pytest.approx(0.02)  # the final one is not scaled
    assert with_().for_batches_of(64) == with_()
    shown = optimizer_line(config.optim, 64)
    assert shown == "adamw, learning rate 0.025 (0.1 x 64 / 256 images), cosine"
    assert optimizer_line(with_(cautious=True), 64) == "cautious adamw, learning rate 0.1, cosine"
