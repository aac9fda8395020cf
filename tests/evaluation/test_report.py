"""A run of the trainer ends with a report; `evaluate` and `report` write the like for runs that there are."""

import csv
import json
import re
from unittest import mock

import jax
import numpy as np
import pytest
from etils import epath
from sklearn import metrics as sk

import train.cli
from tests.evaluation.pages import browser, check, opened
from tests.runs import train as train_run
from tests.runs import write_digits
from train.config import Config, Data
from train.data import load_dataset
from train.run.ending import write_ending
from train.sharding import make_mesh


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Evaluation on two devices, which takes less time than on eight."""
    mesh = lambda: make_mesh(None, jax.devices()[:2])
    with (
        mock.patch("train.evaluation.report.make_mesh", mesh),
        mock.patch("train.evaluation.evaluation.make_mesh", mesh),
    ):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits of one epoch, which makes many mistakes, with its report."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    assert train_run(workdir, "depth=2", "--report", "--steps=60", "--optim.lr=0.01") == 0
    return workdir


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """The files of an evaluation of the run."""
    out = tmp_path_factory.mktemp("evaluations") / "new"
    assert train.cli.main(["evaluate", f"--workdir={run}", f"--out={out}", "--batch-size=100"]) == 0
    return out


def test_the_report_says_what_the_run_recorded(run):
    page = (run / "report.html").read_text()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((r for r in records if r["split"] == "eval"), key=lambda r: r["accuracy"])
    assert f"<dt>Accuracy</dt><dd>{best['accuracy']:.2%}</dd>" in page
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        *("What was trained", "Curves", "Classes", "Confusions", "Calibration", "Most confident mistakes"),
        *("Typical successes", "Attention", "Training images as the network saw them", "Time and memory"),
        "Use it from Python",
    ]
    assert "<code>--optim.lr=0.01</code>" in page
    assert "1,437 training and 360 evaluation images, 8x8x1, 10 classes" in page
    assert set(json.loads((run / "environment.json").read_text())) == {
        *("versions", "device", "commit", "memory", "of_device")
    }


def test_the_code_of_the_report_runs(run, tmp_path):
    code = re.search("<pre><code>(.*?)</code></pre>", (run / "report.html").read_text(), re.DOTALL)[1]
    (photo,), _ = write_digits(tmp_path, [0])
    namespace = {}
    source = code.replace("&#34;", '"').replace("&#39;", "'").replace('"photo.jpg"', repr(str(photo)))
    assert len(source.splitlines()) == 5
    exec(source, namespace)
    assert namespace["logits"].shape == (1, 10)


def test_saved_predictions_have_the_metrics(evaluated):
    with (evaluated / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = json.loads((evaluated / "metrics.json").read_text())
    true, predicted = ([row[name] for row in rows] for name in ("true", "predicted"))
    probabilities = np.array([[row[f"p({i})"] for i in range(10)] for row in rows], float)
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert found["top5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(np.array(true, int), probabilities, k=5))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert found["log_loss"] == pytest.approx(sk.log_loss(true, probabilities), rel=1e-5)
    report = sk.classification_report(true, predicted, output_dict=True, zero_division=0)
    with (evaluated / "per_class.csv").open() as file:
        for row in csv.DictReader(file):
            assert float(row["f1"]) == pytest.approx(report[row["name"]]["f1-score"])
    with (evaluated / "confusion.csv").open() as file:
        counts = [list(map(int, row[1:])) for row in list(csv.reader(file))[1:]]
    assert counts == sk.confusion_matrix(true, predicted).tolist()


def test_the_evaluation_is_that_of_the_run(run, evaluated):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((r for r in records if r["split"] == "eval"), key=lambda r: r["accuracy"])
    found = json.loads((evaluated / "metrics.json").read_text())
    assert found["accuracy"] == pytest.approx(best["accuracy"])
    assert found["log_loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_the_training_split_is_evaluated_with_mirror_images(run, capsys):
    assert train.cli.main(["evaluate", f"--workdir={run}", "--split=train", "--flip"]) == 0
    printed = capsys.readouterr().out
    assert "1,437 images of digits, train" in printed
    assert "Forward pass alone" in printed
    assert "Classes with the lowest F1" in printed


def test_the_report_is_written_again(run, capsys):
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    (run / "environment.json").unlink()  # as in a run of an older version
    assert train.cli.main(["report", f"--workdir={run}"]) == 0
    assert capsys.readouterr().out == f"see {run / 'report.html'}\n"
    after = (run / "report.html").read_text()
    tiles = lambda page: re.search('<dl class="tiles">.*', page)[0]
    assert tiles(after) == tiles(before)
    assert "<dt>Versions</dt>" in before
    assert "<dt>Versions</dt>" not in after


def test_a_failing_report_does_not_fail_the_run(run):
    said, error = [], OSError(28, "No space left on device")
    with mock.patch("train.evaluation.report.write_report", side_effect=error):
        write_ending(epath.Path(run), Config(), load_dataset(Data()), trained=False, message=said.append)
    assert said[-1] == "warning: the report was not written: No space left on device"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "error: expected either --workdir or --model"),
        (["--workdir={run}", "--model=timm/x.y"], "error: expected either --workdir or --model"),
        (["--model=timm/vit_tiny_patch16_224.augreg_in21k"], "needs --data, the images to evaluate it on"),
        (["--model=vit", "--data=digits"], "--model vit: expected timm/NAME.TAG, hf:ORG/REPO or a folder"),
        (["--workdir={run}", "--split=val"], "digits has no split val to evaluate on; it has: test"),
        (["--workdir={run}", "--crops=3"], "--crops is 3; it must be"),
        (["--workdir={run}", "--out={run}/config.json/x"], "config.json is not a folder that can be written to"),
        (["--workdir={run}/nothing"], "holds no run of this version"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(run, capsys, options, message):
    assert train.cli.main(["evaluate", *(option.format(run=run) for option in options)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "module", "advice"),
    [
        ("evaluate", "evaluation", "use a --batch-size below 256"),
        ("report", "report", "the run has --eval-batch-size=256; vit-jax evaluate takes a smaller --batch-size"),
    ],
)
def test_memory_that_runs_out_is_one_line(run, capsys, command, module, advice):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 5 bytes.")
    with mock.patch(f"train.evaluation.{module}.predict_split", side_effect=error):
        assert train.cli.main([command, f"--workdir={run}"]) == 1
    assert capsys.readouterr().err == f"stopped: memory ran out: {advice}\n"


def test_pages_in_a_browser(run, evaluated):
    with browser() as started:
        for scheme, width in (("light", 390), ("dark", 1280)):
            with opened(started, run / "report.html", scheme, width) as page:
                check(page, width)
                colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (np.mean([int(c) for c in re.findall(r"\d+", colour)]) < 100) == (scheme == "dark")
        with opened(started, evaluated / "evaluation.html", "light", 1280) as page:
            check(page, 1280)
            check_sorting(page.locator("table.sortable").first)


def check_sorting(table) -> None:
    """Assert that pressing the headings of the table of classes sorts it, with the pointer and the keyboard."""
    column = lambda i: table.locator(f"tbody tr > :nth-child({i})").all_inner_texts()
    recall = table.locator("thead th").nth(2)
    as_numbers = lambda texts: [float(text.rstrip("%")) for text in texts]
    before = as_numbers(column(3))
    assert before != sorted(before, reverse=True)
    recall.locator("button").click()
    assert as_numbers(column(3)) == sorted(before, reverse=True)
    assert recall.get_attribute("aria-sort") == "descending"
    recall.locator("button").press("Enter")
    assert as_numbers(column(3)) == sorted(before)
    assert recall.get_attribute("aria-sort") == "ascending"
    table.locator("thead th button").first.press("Space")
    assert column(1) == [str(i) for i in range(10)]
    assert recall.get_attribute("aria-sort") == "none"
