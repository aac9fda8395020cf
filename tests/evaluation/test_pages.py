"""Pages of predictions that no trained network need make: hostile names, a thousand classes, labels and numbers."""

import re

import numpy as np
import pytest

from tests.evaluation.pages import browser, check, opened
from train.build import DataInfo
from train.evaluation.charts import Line, line_chart
from train.evaluation.gallery import choose
from train.evaluation.page import write_page
from train.evaluation.results import confusion_table, measure, results, tiles

SCRIPT = "<script>alert('a class')</script>"
LONG = "a class with a very long name that nobody would abbreviate, with commas, and with more words"


def write(path, info, values, targets, **more):
    """Write the page of predictions for grey images."""
    metrics = measure(info, values, targets)
    image = lambda row: np.full((32, 48, 3), row % 256, np.uint8)
    shown = results(info, metrics, values, targets, image, lambda row: f"photos/{SCRIPT}/{row}.jpg")
    nothing = dict(charts=[], attention=None, samples=[], costs=[], code="", subtitle="")
    head = tiles(info.target, metrics)
    write_page(
        path, "report.html", title=SCRIPT, question=[("Data", SCRIPT)], tiles=head, results=shown, **nothing | more
    )
    return metrics


def info_of(names, target="class"):
    return DataInfo(tuple(names), (32, 48, 3), (0.5,) * 3, (0.25,) * 3)._replace(target=target)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by name, and their metrics."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pages")
    found = {}
    few, many = [SCRIPT, LONG, "\x1b[31mred", "d"], [SCRIPT, LONG, *(f"class {i}" for i in range(998))]
    for name, names in (("few", few), ("many", many)):
        values = rng.dirichlet(np.full(len(names), 0.2), 400).astype(np.float32)
        targets = np.where(rng.uniform(size=400) < 0.7, values.argmax(axis=1), rng.integers(0, len(names), 400))
        found[name] = folder / f"{name}.html", write(folder / f"{name}.html", info_of(names), values, targets)
    targets = (rng.uniform(size=(200, 4)) < 0.4).astype(np.float32)
    values = np.clip(targets * 0.4 + rng.uniform(0, 0.6, targets.shape), 0, 1).astype(np.float32)
    found["labels"] = folder / "labels.html", write(folder / "labels.html", info_of(few, "multilabel"), values, targets)
    targets = rng.normal(50, 20, (200, 2)).astype(np.float32)
    values = targets + rng.normal(0, 5, targets.shape).astype(np.float32)
    path = folder / "numbers.html"
    found["numbers"] = path, write(path, info_of([SCRIPT, LONG], "regression"), values, targets)
    return found


def test_names_are_escaped(pages):
    for path, _ in pages.values():
        page = path.read_text()
        assert len(re.findall("<script>", page)) == 1
        assert "&lt;script&gt;alert(" in page
        assert "\x1b" not in page


def test_many_classes_have_a_list_in_place_of_a_matrix(pages):
    page, metrics = pages["many"][0].read_text(), pages["many"][1]
    assert "Confusion matrix" not in page
    assert "Confusion matrix" in pages["few"][0].read_text()
    listed = page.partition("Most frequent confusions")[2].partition("</table>")[0]
    assert listed.count('<th scope="row"') == 50
    classes = page.partition("Every class")[2].partition("</table>")[0]
    assert classes.count('<th scope="row"') == 1000
    assert metrics["top5_accuracy"] > metrics["accuracy"]


def test_labels_and_numbers_have_their_tables(pages):
    labels, numbers = (pages[name][0].read_text() for name in ("labels", "numbers"))
    for heading in ("Label", "Average precision", "Recall"):
        assert f'<button type="button">{heading}</button>' in labels
    assert "Mean average precision" in labels
    for heading in ("Column", "RMSE", "R²"):
        assert f'<button type="button">{heading}</button>' in numbers
    assert numbers.count("<circle") == 400
    assert "Confusions" not in labels + numbers


def test_all_pages_fit_into_a_browser(pages):
    with browser() as started:
        for path, _ in pages.values():
            with opened(started, path, "light", 390) as page:
                check(page, 390)


def test_the_worst_mistakes_and_typical_successes_are_chosen():
    values = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.01, 0.99], [0.45, 0.55]])
    targets = np.array([1, 1, 1, 1, 1, 0])
    mistakes, successes = choose("class", values, targets, ("a", "b"))
    assert [(each.row, each.true, each.predicted, each.detail) for each in mistakes] == [
        (0, "b", "a", "90.0%"),
        (1, "b", "a", "60.0%"),
        (5, "a", "b", "55.0%"),
    ]
    assert [each.row for each in successes] == [3]  # the one of class b whose confidence is the median
    mistakes, _ = choose("regression", np.array([[1.0], [5.0]]), np.array([[2.0], [4.5]]), ("age",))
    assert [(each.row, each.true, each.predicted) for each in mistakes] == [
        (0, "age 2", "age 1"),
        (1, "age 4.5", "age 5"),
    ]
    mistakes, successes = choose(
        "multilabel", np.array([[0.9, 0.2], [0.4, 0.6]]), np.array([[1, 0], [1, 1]]), ("a", "b")
    )
    assert [(each.row, each.true, each.predicted, each.detail) for each in mistakes] == [(1, "a, b", "b", "a 40.0%")]
    assert [each.row for each in successes] == [0]


def test_a_chart_has_its_points_where_they_are():
    svg = str(line_chart("x", [Line("<b>", 1, [(0, 0.0), (10, 1.0)], marked=True)], "step"))
    (left, bottom), (right, top) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert (float(left), float(right)) == (48, 342)
    assert (float(bottom), float(top)) == (188, 12)
    assert "<title>&lt;b&gt;, step 10: 1</title>" in svg
    assert line_chart("x", [Line("a", 1, [])], "step") == ""
    assert str(line_chart("x", [Line("a", 1, [(i, float(i)) for i in range(9999)])], "step")).count(",") < 400


def test_confusions_are_shares_of_the_true_class():
    table = confusion_table([[3, 1, 0], [0, 2, 2], [0, 0, 0]], ("a", "b", "c"))
    assert [[cell.text for cell in row] for row in table.rows] == [["b", "c", "2", "50.0%"], ["a", "b", "1", "25.0%"]]
