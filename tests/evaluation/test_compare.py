"""`compare` groups runs that differ only in their seed, and shows what differs."""

import json
import shutil

import pytest

import train.cli
from tests.evaluation.pages import browser, check, opened
from tests.runs import untrained
from train.evaluation.comparison import Compared, Group, comparison_table, grouped, load_runs
from train.scores import NAMES

ACCURACIES = {"a": 0.5, "b": 0.7, "c": 0.9}
OPTIONS = {"a": ("--seed=0",), "b": ("--seed=1",), "c": ("--optim.lr=0.5",)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that differ in seed or learning rate, with records of their only checkpoint and of a later, worse step."""
    root = tmp_path_factory.mktemp("runs")
    for name, accuracy in ACCURACIES.items():
        untrained(root / name, *OPTIONS[name])
        record = {"step": 0, "split": "eval", "loss": 2 * accuracy, "accuracy": accuracy, "examples": 360}
        worse = record | {"step": 9, "loss": 3.0, "accuracy": 0.1}
        (root / name / "metrics.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(worse)}\n")
    return root


def test_seeds_are_grouped_with_mean_and_deviation(runs):
    first, other = grouped(load_runs([str(runs / name) for name in "abc"]))
    assert [run.name for run in first.runs] == ["a", "b"]
    assert first.spread["accuracy"] == pytest.approx((0.6, 0.02**0.5))  # of 0.5 and 0.7: (0.1² + 0.1²) / (2 - 1)
    assert first.name == "optim.lr 0.002"
    assert (other.name, other.spread["accuracy"]) == ("optim.lr 0.5", (0.9, None))


def test_a_narrow_terminal_shows_a_column_for_each_run(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    assert train.cli.main(["compare", str(runs / "a"), str(runs / "c"), f"--out={tmp_path / 'page.html'}"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[:3] == [["Run", "a", "c"], ["optim.lr", "0.002", "0.5"], ["step", "0", "0"]]


def test_the_table_and_the_page(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert train.cli.main(["compare", *(str(runs / name) for name in "abc"), f"--out={out}"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[0] == ["Run", "seed", "optim.lr", "step", "loss", "accuracy"]
    assert printed[1] == ["a", "0", "0.002", "0", "1", "50.00%"]
    assert printed[3] == ["mean", "of", "2", "seeds", "0.002", "1.2", "±", "0.28", "60.00%", "±", "14.14%"]
    assert printed[4] == ["c", "0", "0.5", "0", "1.8", "90.00%"]
    assert printed[5] == ["a", "has", "not", "finished:", "step", "9", "of", "2,694"]  # 60 epochs of 1,437 images
    page = out.read_text()
    assert "| a | 0 | 0.002 | 0 | 1 | 50.00% |" in page
    assert "| --- | --- | --- | ---: | ---: | ---: |" in page
    with browser() as started, opened(started, out, "dark", 390) as shown:
        check(shown, 390)


def test_an_extended_run_has_its_present_length(runs, tmp_path):
    extended = shutil.copytree(runs / "a", tmp_path / "extended")
    stored = json.loads((extended / "config.json").read_text())
    stored["extensions"] = [{"after": 3, "total": 99, "schedule": "stretch", "lr": None}]
    (extended / "config.json").write_text(json.dumps(stored))
    _, run = load_runs([str(runs / "a"), str(extended)])
    length = [run.settings[name] for name in ("steps", "epochs", "min_steps", "extended")]
    assert length == [99, None, None, "stretch after 3"]


@pytest.mark.parametrize(
    ("metric", "spread", "shown"),
    [
        ("accuracy_distill", None, "51.20%"),
        ("mean_average_precision", 0.01, "51.20% ± 1.00%"),
        ("rmse", 0.01, "0.512 ± 0.01"),
    ],
)
def test_shares_are_percentages(metric, spread, shown):
    run = Compared("a", {}, 0, {metric: 0.512}, [{"split": "eval", "step": 0, metric: 0.512}])
    table = comparison_table([run, run], [Group("all", [run, run], {metric: (0.512, spread)})])
    assert table.columns[-1].title == NAMES.get(metric, metric)
    assert table.rows[-1][-1].text == shown
    assert table.rows[0][-1].text == shown.partition(" ")[0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a", "expected two or more folders of runs"),
        ("a a", "RUNS names the folder a twice"),
        ("a nothing", "nothing holds no run of this version"),
        ("a b --out=nowhere/x.html", "--out nowhere/x.html cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(runs, names, message, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert train.cli.main(["compare", *names.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
