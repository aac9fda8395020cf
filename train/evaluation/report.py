"""The report of a run: one page with its question, its curves, its results, and how to use it."""

import os
import shlex
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from markupsafe import Markup

from train.attention_picture import attention_panels
from train.build import DataInfo
from train.config import Config
from train.data import Dataset, load_dataset, train_batches
from train.errors import UserError
from train.evaluation.charts import Chart, Line, metric_chart
from train.evaluation.page import number, write_page
from train.evaluation.predictions import out_of_memory_is_said, predict_split
from train.evaluation.results import measure, results, tiles
from train.evaluation.thumbnails import denormalized, evaluation_image, thumbnail, visible
from train.memory import in_words
from train.probing import data_of
from train.program import prepare_training
from train.run.command import commands_of
from train.run.environment import read_environment
from train.run.inventory import best_step
from train.run.records import read_records
from train.run.stored import Run, load_run, read_stored
from train.scores import in_units
from train.sharding import make_mesh
from vit_jax.objectives.protocol import Classifier
from vit_jax.printable import printable

FILE = "report.html"
SAMPLES = 12  # training images that are shown
ORANGE = (255, 140, 0)
LOOKED_AT = 4  # images whose attention is shown
METRICS = ("loss", "accuracy", "mean_average_precision", "mae", "r2", "lr")  # that have a chart, if a run has them


def write_report(workdir: os.PathLike | str, dataset: Dataset | None = None) -> epath.Path:
    """Write report.html of a run, from its files and its best checkpoint.

    Args:
        workdir: The run's folder.
        dataset: The run's dataset, if it is open already.

    Returns:
        The file.

    Raises:
        UserError: If the run or its data cannot be read.
        Stopped: If the memory of a device runs out.
        OSError: If the file cannot be written.
    """
    run = load_run(workdir)
    data = data_of(run.config.data, None, run.info)
    classifies = isinstance(run.objective, Classifier)
    dataset = dataset or load_dataset(data, labels=classifies, trains=False)
    step, records = best_step(workdir), read_records(workdir)
    head, shown, attention = [], None, None
    if classifies:
        size = run.config.eval_batch_size
        advice = f"the run has --eval-batch-size={size}; vit-jax evaluate takes a smaller --batch-size"
        with out_of_memory_is_said(advice):
            predicted = predict_split(run, dataset, data, make_mesh(), size)
        metrics = measure(run.info, predicted.values, predicted.targets)
        head = tiles(run.info.target, metrics)
        image = lambda row: evaluation_image(dataset, data, int(predicted.indices[row]))
        name = lambda row: dataset.eval.name_of(int(predicted.indices[row]))
        shown = results(run.info, metrics, predicted.values, predicted.targets, image, name)
        rows = np.unique(np.linspace(0, len(predicted.values) - 1, LOOKED_AT).astype(int)).tolist()
        attention = _attention(run, [image(row) for row in rows])
    else:
        last = [record for record in records if record["split"] == "eval"][-1:]
        head = [("Loss", f"{record['loss']:.4f}") for record in last]
    path = epath.Path(workdir) / FILE
    write_page(
        path,
        "report.html",
        title=f"{run.config.model} on {_short(run.config.data.name)}",
        subtitle=f"Run {printable(epath.Path(workdir).name)}: its best checkpoint, of step {step:,}.",
        tiles=head,
        question=_question(run, dataset, workdir),
        charts=charts(records),
        results=shown,
        attention=attention,
        samples=_samples(run, dataset),
        costs=_costs(run.config, records, workdir),
        code=_code(workdir, classifies),
    )
    return path


def _short(data: str) -> str:
    """The name of a dataset; of a path only its end."""
    kind, colon, place = data.partition(":")
    return printable(f"{kind}{colon}{place.rstrip('/').rpartition('/')[2]}")


def charts(records: Sequence[dict[str, Any]]) -> list[Chart]:
    """A chart for each of `METRICS` that a run has recorded."""
    found = []
    for name in METRICS:
        lines = []
        for colour, (split, title) in enumerate((("train", "training"), ("eval", "evaluation")), 1):
            points = [(r["step"], r[name]) for r in records if r["split"] == split and name in r]
            lines.append(Line(title, colour, points, marked=split == "eval"))
        found.append(metric_chart(name, lines))
    return [chart for chart in found if chart]


def _question(run: Run, dataset: Dataset, workdir: os.PathLike | str) -> list[tuple[str, str]]:
    config, where = run.config, read_environment(workdir)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    height, width, channels = run.info.image_shape
    names = run.info.class_names
    began, *extended = commands_of(read_stored(workdir))
    rows = [
        ("Model", f"{' '.join((config.model, *config.model_args))}, {parameters:,} parameters"),
        ("Starts from", config.init or config.init_from or "random weights"),
        (
            "Data",
            f"{config.data.name}: {len(dataset.train):,} training and {len(dataset.eval):,} evaluation images, "
            f"{height}x{width}x{channels}{f', {len(names):,} classes' if names else ''}",
        ),
        ("Command", _command(began)),
        *(("Extended by", _command(command)) for command in extended),
        ("Commit", where.commit),
        ("Versions", where.versions),
        ("Devices", where.device),
    ]
    return [(name, value if isinstance(value, Markup) else printable(value, None)) for name, value in rows if value]


def _command(command: str) -> Markup:
    """A command line, which breaks between its words."""
    words = shlex.split(command)
    return Markup(" ").join(Markup("<code>{}</code>").format(printable(shlex.quote(word), None)) for word in words)


def _attention(run: Run, pixels: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """Attention over images; None if the model has no map over patches."""
    try:
        panels = attention_panels(run, np.stack(pixels))
    except (AttributeError, UserError):
        return None
    rows = []
    for i, (image, maps) in enumerate(zip(pixels, panels.shares, strict=True), 1):
        last, rolled, shown = maps[:-1].mean(axis=0), maps[-1], visible(image)
        pictures = [
            (thumbnail(image), f"Image {i}"),
            (thumbnail(_lit(shown, last)), f"Image {i}, attention of the last layer"),
            (thumbnail(_lit(shown, rolled)), f"Image {i}, attention of all layers"),
        ]
        caption = f"largest share of a patch: {last.max():.1%} in the last layer, {rolled.max():.1%} rolled out"
        rows.append({"pictures": pictures, "caption": caption})
    return {"reader": panels.reader, "rows": rows}


def _lit(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """An image, uint8 (h, w, 1) or (h, w, 3), in grey, with the attention that each patch receives in orange."""
    height, width, _ = image.shape
    rows = np.arange(height) * shares.shape[0] // height
    columns = np.arange(width) * shares.shape[1] // width
    weight = 0.8 * (shares / max(shares.max(), 1e-12))[rows][:, columns, None]
    return (image.mean(axis=2, keepdims=True) * (1 - weight) + np.array(ORANGE) * weight).astype(np.uint8)


def _samples(run: Run, dataset: Dataset) -> list[dict[str, Any]]:
    """The first training images as they enter the network, with their targets."""
    config, info = run.config, run.info
    size = min(SAMPLES, config.batch_size, len(dataset.train))
    views, repeats = config.distill.views, config.augment.repeats
    batches = train_batches(dataset, config.data, size, config.seed, views, repeats=repeats)
    try:
        batch = next(batches)
    finally:
        batches.close()
    images, targets = jax.jit(prepare_training(config, info))(jax.random.key(config.seed), batch)
    pixels = denormalized(np.asarray(images, np.float32), info)
    lines = _target_lines(info, np.asarray(targets)) if info.class_names else [[] for _ in pixels]
    return [
        {"picture": thumbnail(image), "alt": " ".join(["Training image", *text]), "lines": text, "file": ""}
        for image, text in zip(pixels, lines, strict=True)
    ]


def _target_lines(info: DataInfo, targets: np.ndarray) -> list[list[str]]:
    """The target of each image, with shares if labels are mixed."""
    names = [printable(name) for name in info.class_names]
    if info.target == "regression":
        numbers = np.asarray(in_units(targets, info))
        return [[f"{name} {value:.4g}" for name, value in zip(names, row, strict=True)] for row in numbers]
    several = lambda row: sorted(np.flatnonzero(row > 0.005), key=lambda i: -row[i])[:3]
    show = lambda i, row: names[i] if row[i] > 0.995 else f"{names[i]} {row[i]:.0%}"
    return [[show(i, row) for i in several(row)] for row in targets]


def _costs(config: Config, records: Sequence[dict[str, Any]], workdir: os.PathLike | str) -> list[tuple[str, str]]:
    """Rows about time and memory, as far as they are known."""
    seconds, images, before = 0.0, 0, 0
    for record in records:
        if record["split"] == "train" and record.get("images_per_second"):
            count = (record["step"] - before) * config.batch_size
            seconds, images, before = seconds + count / record["images_per_second"], images + count, record["step"]
    where = read_environment(workdir)
    rows = []
    if seconds:
        rows.append(("Training time", f"{duration(seconds)}, without compilation and evaluations"))
        rows.append(("Training speed", f"{number(round(images / seconds))} images per second, {before:,} steps"))
    if where.memory:
        of = "a device" if where.of_device else "the process"
        rows.append(("Peak memory", f"{in_words(where.memory)} of {of}"))
    return rows


def duration(seconds: float) -> str:
    """Format a duration."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _code(workdir: os.PathLike | str, classifies: bool) -> str:
    lines = ["import jax", "from train import load_run", f"run = load_run({os.fspath(workdir)!r})"]
    if classifies:
        lines.append('print(run.predict("photo.jpg"))')
    outputs = "logits" if classifies else "features"
    lines.append(f'{outputs} = jax.jit(run.model.apply)(run.variables, run.preprocess("photo.jpg")[None])')
    return "\n".join(lines)
