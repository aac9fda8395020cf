"""Draw the curves of a finished run's metrics."""

import io
import os

from etils import epath

from train.run.files import write_atomically
from train.run.records import read_records
from train.scores import BEST_BY


def draw_curves(workdir: os.PathLike | str) -> epath.Path:
    """Draw the loss, and the metrics in BEST_BY, of both splits over steps, and write curves.png into the workdir."""
    import matplotlib.figure  # slow to import, and not needed before the run has finished

    records = read_records(workdir)
    names = ["loss", *(name for name in BEST_BY if name != "loss" and any(name in record for record in records))]
    figure = matplotlib.figure.Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, style in (("train", dict(alpha=0.6)), ("eval", dict(marker="o", markersize=3))):
            points = [(r["step"], r[name]) for r in records if r["split"] == split and name in r]
            if points:
                axes.plot(*zip(*points, strict=True), label=split, **style)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:  # metrics.jsonl may have lost all records
            axes.legend()
    path = epath.Path(workdir) / "curves.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_atomically(path, drawn.getvalue())
    return path
