"""The metric that picks the best checkpoint."""

import math

import pytest

from train.scores import chosen_by, score


@pytest.mark.parametrize(
    ("better", "worse", "by"),
    [
        ({"loss": 2.0, "accuracy": 0.9}, {"loss": 1.0, "accuracy": 0.8}, "accuracy"),
        (
            {"loss": 2.0, "label_accuracy": 0.1, "mean_average_precision": 0.6},
            {"loss": 1.0, "label_accuracy": 0.9, "mean_average_precision": 0.5},
            "mean_average_precision",
        ),
        ({"loss": 2.0, "r2": -0.1, "mae": 5.0}, {"loss": 1.0, "r2": -0.2, "mae": 4.0}, "r2"),
        ({"loss": 2.0, "mae": 4.0}, {"loss": 1.0, "mae": 5.0}, "mae"),  # R2 is undefined if no column varies
        ({"loss": 1.0, "label_accuracy": 0.1}, {"loss": 2.0, "label_accuracy": 0.9}, "loss"),
        ({"loss": 1e30}, {}, "loss"),  # a checkpoint between evaluations
    ],
)
def test_the_better_evaluation_has_the_higher_score(better, worse, by):
    assert chosen_by(better) == by
    assert math.inf > score(better) > score(worse)
