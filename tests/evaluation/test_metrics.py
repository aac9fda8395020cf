"""Metrics equal scikit-learn's, called in other ways, and examples worked by hand."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from train.evaluation.metrics import classification_metrics, multilabel_metrics, regression_metrics, reliability

NAMES = tuple("abcdefg")


@pytest.fixture(scope="module")
def classes():
    """Probabilities and labels in which class g has no example, and class f is never predicted."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 200)
    logits = rng.normal(size=(200, 7)) + 2 * np.eye(7)[labels]
    logits[:, 5] = -9
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels


def test_of_classes(classes):
    probabilities, labels = classes
    predicted = probabilities.argmax(axis=1)
    found = classification_metrics(probabilities, labels, NAMES)
    assert set(predicted) == {0, 1, 2, 3, 4, 6}
    report = sk.classification_report(labels, predicted, labels=range(7), output_dict=True, zero_division=0)
    for i, row in enumerate(found["per_class"]):
        assert (row["name"], row["predicted"]) == (NAMES[i], (predicted == i).sum())
        theirs = report[str(i)]
        assert row["f1"] == pytest.approx(theirs["f1-score"])
        assert all(row[name] == pytest.approx(theirs[name]) for name in ("precision", "recall", "support"))
    assert found["examples"] == 200
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    in_top = [label in np.argsort(row)[-5:] for label, row in zip(labels, probabilities, strict=True)]
    assert found["top5_accuracy"] == pytest.approx(np.mean(in_top))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    recall = sk.recall_score(labels, predicted, average=None, zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recall[:6].mean())
    exact = probabilities.astype(np.float64)
    expected = sk.log_loss(labels, exact / exact.sum(axis=1, keepdims=True), labels=range(7))
    assert found["log_loss"] == pytest.approx(expected, rel=1e-6)
    assert found["confusion"] == sk.confusion_matrix(labels, predicted, labels=range(7)).tolist()
    assert "top5_accuracy" not in classification_metrics(probabilities[:, :5], labels % 5, NAMES[:5])
    json.dumps(found, allow_nan=False)


def test_calibration_of_a_worked_example():
    """Bins of width 1/15: 0.61 and 0.65 are in bin 9, 0.95 in bin 14."""
    probabilities = np.array([[0.61, 0.39], [0.65, 0.35], [0.05, 0.95], [0.05, 0.95]])
    found = classification_metrics(probabilities, np.array([0, 1, 1, 1]), ("a", "b"))
    filled = {i: row for i, row in enumerate(found["reliability"]) if row["count"]}
    assert filled.keys() == {9, 14}
    row = filled[9]
    assert (row["from"], row["to"]) == pytest.approx((9 / 15, 10 / 15))
    assert (row["count"], row["confidence"], row["accuracy"]) == pytest.approx((2, 0.63, 0.5))
    assert found["ece"] == pytest.approx((2 * 0.13 + 2 * 0.05) / 4)


def test_reliability_is_the_calibration_curve(classes):
    probabilities, labels = classes
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    filled = [row for row in reliability(confidence, correct) if row["count"]]
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    np.testing.assert_allclose([row["accuracy"] for row in filled], accuracy)
    np.testing.assert_allclose([row["confidence"] for row in filled], mean, rtol=1e-6)


@pytest.mark.parametrize(("confidence", "of_bin"), [(0.0, 0), (0.2, 2), (0.8, 11), (1.0, 14), (1.0000001, 14)])
def test_a_bin_includes_its_upper_limit(confidence, of_bin):
    """0.2 = 3/15 is the limit of bins 2 and 3, and 0.8 that of bins 11 and 12."""
    counts = [row["count"] for row in reliability(np.array([confidence]), np.array([True]))]
    assert counts == [int(i == of_bin) for i in range(15)]


def test_of_labels():
    rng = np.random.default_rng(1)
    targets = (rng.uniform(size=(150, 4)) < 0.3).astype(np.float32)
    targets[:, 3] = 0  # a label without examples
    probabilities = np.clip(targets * 0.3 + rng.uniform(size=targets.shape), 0, 1).astype(np.float32)
    probabilities[:5] = 0.5  # counts as predicted
    found = multilabel_metrics(probabilities, targets, "wxyz")
    predicted = probabilities >= 0.5
    expected = sk.average_precision_score(targets[:, :3], probabilities[:, :3], average=None)
    assert [row["average_precision"] for row in found["per_class"]] == [*map(pytest.approx, expected), None]
    assert found["mean_average_precision"] == pytest.approx(expected.mean())
    for average in ("micro", "macro"):
        f1 = sk.f1_score(targets, predicted, average=average, zero_division=0)
        assert found[f"f1_{average}"] == pytest.approx(f1)
    recall = sk.recall_score(targets, predicted, average=None, zero_division=0)
    assert [row["recall"] for row in found["per_class"]] == [*map(pytest.approx, recall)]
    assert [row["support"] for row in found["per_class"]] == targets.sum(axis=0).tolist()
    assert [row["predicted"] for row in found["per_class"]] == predicted.sum(axis=0).tolist()
    json.dumps(found, allow_nan=False)


def test_of_numbers():
    """Errors of 1, 1 and 2 in a column whose squared deviations sum to 2, and one of 3 in a constant column."""
    targets = np.array([[1.0, 5], [2, 5], [3, 5]])
    predictions = np.array([[2.0, 5], [1, 5], [5, 8]])
    found = regression_metrics(predictions, targets, ("age", "size"))
    age, size = found["per_column"]
    assert (age["mae"], age["rmse"], age["r2"]) == pytest.approx((4 / 3, np.sqrt(2), 1 - 6 / 2))
    assert (size["mae"], size["rmse"]) == pytest.approx((1, np.sqrt(3)))
    assert size["r2"] is None
    assert (found["mae"], found["r2"]) == pytest.approx((7 / 6, -2))
    assert age["r2"] == pytest.approx(sk.r2_score(targets[:, 0], predictions[:, 0]))


@pytest.mark.parametrize(
    ("function", "predictions", "targets", "message"),
    [
        (classification_metrics, np.ones((3, 2)), np.zeros(2, int), r"\(3, 2\) and targets \(2,\)"),
        (classification_metrics, np.ones((0, 2)), np.zeros(0, int), "at least one row"),
        (multilabel_metrics, np.ones((3, 3)), np.ones((3, 3)), r"expected \(3, 2\)"),
        (regression_metrics, np.full((3, 2), np.nan), np.ones((3, 2)), "not finite"),
    ],
)
def test_other_arrays_are_refused(function, predictions, targets, message):
    with pytest.raises(ValueError, match=message):
        function(predictions, targets, ("a", "b"))
