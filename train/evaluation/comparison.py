"""Compare runs by their settings and the metrics that they have recorded."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
import rich.markup
import rich.table
from etils import epath

from train.config import MAY_CHANGE
from train.data.fingerprint import FILE as FINGERPRINTS
from train.data.fingerprint import read_fingerprints
from train.errors import UserError
from train.evaluation.charts import COLOURS, Chart, Line, metric_chart
from train.evaluation.page import Cell, Column, Table, number, number_cell, text_cell, write_page
from train.extension import length
from train.run.command import flat
from train.run.inventory import best_step
from train.run.records import read_records
from train.run.stored import StoredRun, read_stored
from train.scores import NAMES, is_share
from vit_jax.printable import printable

CHARTS = ("accuracy", "mean_average_precision", "mae", "r2", "loss")
MOST_WIDTH = 10_000  # of a table before it is fitted to the terminal
TIMES = ("images_per_second", "step_images_per_second", "input_wait")
HIDDEN = (*TIMES, "examples", "lr", "grad_norm")  # values of records that are not results


class Compared(NamedTuple):
    """A run that is compared.

    Attributes:
        name: Its folder, as short as the runs differ.
        settings: Its settings by name, without those that do not affect the result.
        step: The step of its best checkpoint.
        metrics: The evaluation of that step.
        records: All its records.
        unfinished: How far it is, if it has not finished.
    """

    name: str
    settings: dict[str, Any]
    step: int
    metrics: dict[str, float | int]
    records: list[dict[str, Any]]
    unfinished: str = ""


class Group(NamedTuple):
    """Runs that differ only in their seed, and mean and standard deviation of each metric (None for a single run)."""

    name: str
    runs: list[Compared]
    spread: dict[str, tuple[float | int, float | None]]


def show_comparison(workdirs: Sequence[str], out: Path | None) -> None:
    """Print a comparison of runs, and write a page.

    Args:
        workdirs: Folders of two or more runs.
        out: The page; None: none is written.

    Raises:
        UserError: If there are fewer than two runs, one cannot be read, or the page cannot be written.
    """
    runs = load_runs(workdirs)
    groups = grouped(runs)
    table = comparison_table(runs, groups)
    console = rich.console.Console(highlight=False)
    console.print(_for_terminal(table, console))
    unfinished = [f"{run.name} has not finished: {run.unfinished}" for run in runs if run.unfinished]
    for line in unfinished:
        console.print(line, markup=False, soft_wrap=True)
    if out is None:
        return
    try:
        write_page(
            out,
            "compare.html",
            title=f"{len(runs)} runs",
            subtitle="; ".join(unfinished),
            table=table,
            charts=overlaid(runs),
            groups=[group for group in groups if len(group.runs) > 1],
            markdown=markdown(table),
        )
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    console.print(printable(f"see {out}", None), markup=False, soft_wrap=True)


def _for_terminal(table: Table, console: rich.console.Console) -> rich.table.Table:
    """The table for a terminal: with a line for each run or, if lines are too long, with a column for each run."""
    lines = [[column.title for column in table.columns], *([cell.text for cell in row] for row in table.rows)]
    shown = _grid(lines, [column.numeric for column in table.columns])
    if console.measure(shown, options=console.options.update(max_width=MOST_WIDTH)).maximum <= console.width:
        return shown
    return _grid(list(zip(*lines, strict=True)), [False] * len(lines))


def _grid(lines: Sequence[Sequence[str]], numeric: Sequence[bool]) -> rich.table.Table:
    """A table of a title line and others; columns of numbers are aligned to the right."""
    shown = rich.table.Table(box=None, pad_edge=False)
    for title, right in zip(lines[0], numeric, strict=True):
        shown.add_column(rich.markup.escape(title), justify="right" if right else "left", overflow="fold")
    for line in lines[1:]:
        shown.add_row(*map(rich.markup.escape, line))
    return shown


def load_runs(workdirs: Sequence[str]) -> list[Compared]:
    """Read the settings and the records of runs. Raises UserError for one without evaluation, or named twice."""
    if len(workdirs) < 2:
        raise UserError(f"RUNS is {' '.join(workdirs)}; expected two or more folders of runs")
    paths = [epath.Path(workdir).resolve() for workdir in workdirs]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"RUNS names the folder {workdirs[i]} twice")
    return [_load(workdir, name) for workdir, name in zip(workdirs, _names(paths), strict=True)]


def _load(workdir: str, name: str) -> Compared:
    stored = read_stored(workdir)
    settings = {key: value for key, value in flat(stored.config).items() if key not in MAY_CHANGE}
    if stored.extensions:  # the config has the length of the beginning
        settings |= {"steps": stored.extensions[-1].total, "epochs": None, "min_steps": None}
        settings["extended"] = ", ".join(f"{each.schedule} after {each.after:,}" for each in stored.extensions)
    records = read_records(workdir)
    evaluations = {record["step"]: record for record in records if record["split"] == "eval"}
    if not evaluations:
        raise UserError(f"{workdir} has no evaluation in metrics.jsonl")
    try:
        step = best_step(workdir)
    except OSError as error:
        raise UserError(f"{workdir} cannot be read: {error.strerror or error}") from error
    step = step if step in evaluations else max(evaluations)
    numbers = {key: value for key, value in evaluations[step].items() if key not in ("step", "split", *HIDDEN)}
    return Compared(name, settings, step, numbers, records, _unfinished(workdir, stored, records[-1]["step"]))


def _unfinished(workdir: str, stored: StoredRun, step: int) -> str:
    """How far a run is that has recorded `step` last; "" if it has finished, or the number of its images is unknown."""
    path = epath.Path(workdir) / FINGERPRINTS
    if stored.extensions:
        total = stored.extensions[-1].total
    elif path.exists() and (images := read_fingerprints(path).get("train")):
        total, _ = length(stored.config, images.count)
    else:
        return ""
    return f"step {step:,} of {total:,}" if step < total else ""


def _names(paths: Sequence[epath.Path]) -> list[str]:
    """The last parts of paths, as many as are needed to tell the paths from each other."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [printable("/".join(path.parts[-depth:])) for path in paths]


def differing(runs: Sequence[Compared]) -> list[str]:
    """Names of the settings in which runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]


def grouped(runs: Sequence[Compared]) -> list[Group]:
    """Runs with the same settings except for the seed, in the order of the first ones."""
    found: dict[str, list[Compared]] = {}
    for run in runs:
        found.setdefault(repr({**run.settings, "seed": None}), []).append(run)
    names = [name for name in differing(runs) if name != "seed"]
    groups = []
    for members in found.values():
        settings = [f"{name} {_shown(members[0].settings.get(name))}" for name in names]
        spread = {}
        for metric in _metrics(members):
            values = [member.metrics[metric] for member in members if metric in member.metrics]
            spread[metric] = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
        groups.append(Group(", ".join(settings) or "all runs", members, spread))
    return groups


def comparison_table(runs: Sequence[Compared], groups: Sequence[Group]) -> Table:
    """A row for each run, and for each group of several: settings that differ, and metrics of the best step."""
    settings, metrics = differing(runs), _metrics(runs)
    columns = [Column("Run", False), *(Column(name, False) for name in settings), Column("step")]
    columns += [Column(NAMES.get(name, name)) for name in metrics]
    rows = []
    for group in groups:
        for run in group.runs:
            known = [text_cell(_shown(run.settings.get(name))) for name in settings]
            cells = [_metric(name, run.metrics.get(name)) for name in metrics]
            rows.append([Cell(run.name), *known, Cell(f"{run.step:,}", run.step), *cells])
        if len(group.runs) > 1:
            known = [text_cell("" if name == "seed" else _shown(group.runs[0].settings.get(name))) for name in settings]
            cells = [_metric(name, *group.spread.get(name, (None,))) for name in metrics]
            rows.append([Cell(f"mean of {len(group.runs)} seeds"), *known, Cell(""), *cells])
    return Table(columns, rows)


def markdown(table: Table) -> str:
    """A table in Markdown."""
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    rule = line(["---:" if column.numeric else "---" for column in table.columns])
    return "\n".join([line([c.title for c in table.columns]), rule, *(line([c.text for c in r]) for r in table.rows)])


def overlaid(runs: Sequence[Compared]) -> list[Chart]:
    """A chart for each metric, with the evaluations of every run."""
    found = []
    for metric in CHARTS:
        lines = []
        for i, run in enumerate(runs):
            points = [(r["step"], r[metric]) for r in run.records if r["split"] == "eval" and metric in r]
            lines.append(Line(run.name, i % COLOURS + 1, points, marked=True))
        found.append(metric_chart(metric, lines, "{}, evaluation"))
    return [chart for chart in found if chart]


def _metrics(runs: Sequence[Compared]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def _metric(name: str, value: float | int | None, spread: float | None = None) -> Cell:
    """A cell with a metric, and its standard deviation over seeds."""
    if value is None:
        return number_cell(None)
    shown, digits = (f"{value:.2%}", ".2%") if is_share(name) else (number(value), ".2g")
    return Cell(shown if spread is None else f"{shown} ± {spread:{digits}}", value)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "-" if value is None else str(value)
