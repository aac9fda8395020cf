"""Evaluate a network, show the result, and write it into files."""

import os
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from train.errors import UserError
from train.evaluate import Options
from train.evaluation.files import write_files
from train.evaluation.page import number, write_page
from train.evaluation.predictions import Predictions, out_of_memory_is_said, predict_split
from train.evaluation.results import measure, results, tiles
from train.evaluation.subject import Subject, load_subject
from train.evaluation.thumbnails import evaluation_image
from train.sharding import make_mesh
from vit_jax.printable import printable

WORST = 5  # classes that are printed


def evaluate(options: Options) -> dict[str, Any]:
    """Evaluate what `options` name, print the result, and write files if they say so.

    Returns:
        The metrics; see `train.evaluation.metrics`.

    Raises:
        UserError: If the network or the images are unsuitable, or a file cannot be written.
        Stopped: If the memory of a device runs out.
    """
    check_folder(options.out)
    console = rich.console.Console(highlight=False, soft_wrap=True)
    say = lambda line: console.print(printable(line, None), markup=False)
    subject = load_subject(options)
    run, dataset = subject.run, subject.dataset
    name = options.workdir or options.model
    say(f"{name} on {len(dataset.eval):,} images of {subject.data.name}{f', {options.split}' if options.split else ''}")
    with out_of_memory_is_said(f"use a --batch-size below {options.batch_size}"):
        predicted = predict_split(
            run,
            dataset,
            subject.data,
            make_mesh(),
            options.batch_size,
            flip=options.flip,
            crops=options.crops,
            measure=True,
            say=say,
        )
    targets = subject.targets(predicted.targets)
    metrics = measure(run.info, predicted.values, targets) | {
        "images_per_second": predicted.rate,
        "forward_images_per_second": predicted.forward_rate,
    }
    show(console, run.info.target, metrics)
    if options.out:
        try:
            write(options, subject, predicted, metrics)
        except OSError as error:
            raise UserError(f"--out {options.out} cannot be written: {error.strerror or error}") from error
        say(f"see {options.out / 'evaluation.html'}, and the tables beside it")
    return metrics


def check_folder(out: Path | None) -> None:
    """Raises UserError unless `out` is a folder that can be written to, or can be made."""
    if out is None:
        return
    place = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise UserError(f"--out {out}: {place} is not a folder that can be written to")


def show(console: rich.console.Console, target: str, metrics: dict[str, Any]) -> None:
    """Print the metrics, the classes with the lowest F1, and the speed."""
    table = rich.table.Table(show_header=False, box=None, pad_edge=False)
    for name, value in [*tiles(target, metrics), *speed(metrics)]:
        table.add_row(name, value)
    console.print(table)
    if target == "regression" or len(metrics["per_class"]) < 2:
        return
    worst = rich.table.Table(title="Classes with the lowest F1", title_justify="left", box=None, pad_edge=False)
    for title in ("Class", "Precision", "Recall", "F1", "Images"):
        worst.add_column(title, justify="left" if title == "Class" else "right")
    occurring = [row for row in metrics["per_class"] if row["support"]]
    for row in sorted(occurring, key=lambda row: row["f1"])[:WORST]:
        shares = (f"{row[name]:.1%}" for name in ("precision", "recall", "f1"))
        worst.add_row(rich.markup.escape(printable(row["name"])), *shares, f"{row['support']:,}")
    console.print(worst)


def speed(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows about the speed."""
    whole, forward = metrics["images_per_second"], metrics["forward_images_per_second"]
    # Within a second, starting to read takes most of the time.
    share = f"; the whole reaches {whole / forward:.0%}" if metrics["examples"] / whole > 1 else ""
    return [
        ("Images per second", f"{number(round(whole))} from files to predictions"),
        ("Forward pass alone", f"{number(round(forward))} images per second{share}"),
    ]


def write(options: Options, subject: Subject, predicted: Predictions, metrics: dict[str, Any]) -> None:
    """Write the files of an evaluation."""
    run, dataset, out = subject.run, subject.dataset, options.out
    targets = subject.targets(predicted.targets)
    images = [(index, dataset.eval.name_of(index)) for index in predicted.indices.tolist()]
    write_files(out, metrics, predicted.values, targets, run.info.class_names, images)
    views = options.crops * (1 + options.flip)
    question = [
        ("Network", printable(options.workdir or options.model, None)),
        ("Data", f"{subject.data.name}{f', split {options.split}' if options.split else ''}"),
        ("Views of each image", f"{views}" + (", predictions averaged" if views > 1 else "")),
        *speed(metrics),
    ]
    shown = results(
        run.info,
        metrics,
        predicted.values,
        targets,
        lambda row: evaluation_image(dataset, subject.data, images[row][0]),
        lambda row: images[row][1],
    )
    write_page(
        out / "evaluation.html",
        "report.html",
        title=f"Evaluation of {printable(options.workdir or options.model)}",
        subtitle="",
        tiles=tiles(run.info.target, metrics),
        question=question,
        charts=[],
        results=shown,
        attention=None,
        samples=[],
        costs=[],
        code="",
    )
