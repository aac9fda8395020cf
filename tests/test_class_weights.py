"""Weights of classes and labels: worked examples, scikit-learn's, and what the option accepts."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from train.class_weights import check_class_weights, class_weights
from train.errors import UserError

LABELS = np.array([0] * 6 + [1] * 3 + [3])  # no image of class c


def of(*given, target="class", names=("a", "b", "c", "d"), labels=LABELS):
    if given:
        check_class_weights(given, target)
    return class_weights(given, target, names, labels)


def test_balanced_classes():
    """Ten images of three classes that occur: 10 / (3 x 6), 10 / (3 x 3), 10 / (3 x 1)."""
    assert of("balanced") == pytest.approx((10 / 18, 10 / 9, 1, 10 / 3))
    theirs = compute_class_weight("balanced", classes=np.unique(LABELS), y=LABELS)
    assert [of("balanced")[i] for i in (0, 1, 3)] == pytest.approx(theirs)


def test_balanced_labels():
    """Images without a label / images with it; 1 for one that is nowhere, and for one that is everywhere."""
    labels = np.array([[1, 0, 0, 1], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]], np.float32)
    assert of("balanced", target="multilabel", labels=labels) == (3, 1, 1, 1)


def test_weights_by_name_and_in_order():
    assert of() == ()
    assert of("b=2", "d=0.5") == (1, 2, 1, 0.5)
    assert of("4", "3", "2", "1") == (4, 3, 2, 1)
    assert of("a=b=2", names=("a=b", "a")) == (2, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("e=2",), "--class-weights e=2: the data has no class e"),
        (("1", "2"), "--class-weights has 2 numbers; the data has 4 classes"),
        (("a=0",), "--class-weights a=0: expected balanced, NAME=WEIGHT"),
        (("a=inf",), "--class-weights a=inf: expected balanced"),
    ],
)
def test_other_weights_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        of(*given)
