"""Charts as inline SVG, which takes its colours from the page, so that it suits light and dark themes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from train.scores import NAMES, is_share

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 18, 12, 42  # margins for labels
COLOURS = 8  # of lines, in page.css
MOST_POINTS = 300  # of a line; of more, neighbours are averaged


class Chart(NamedTuple):
    """A chart, and the names and colours of its lines."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, int]]


class Line(NamedTuple):
    """A line of a chart: its `name`, the number of its colour from 1, its (x, y) points, and whether to mark them."""

    name: str
    colour: int
    points: Sequence[tuple[float | int, float]]
    marked: bool = False


def metric_chart(metric: str, lines: Sequence[Line], title: str = "{}") -> Chart | None:
    """A chart of a metric over steps; None if no line has points. `title` is formatted with the metric's name."""
    name = NAMES.get(metric, metric)
    svg = line_chart(f"{name} over steps", lines, "step", percent=is_share(metric))
    legend = [(line.name, line.colour) for line in lines if line.points]
    return Chart(title.format(name[:1].upper() + name[1:]), svg, legend) if legend else None


def line_chart(title: str, lines: Sequence[Line], x_label: str, *, percent: bool = False) -> Markup:
    """A chart of lines. Marked points show their values when the pointer is over them."""
    lines = [line._replace(points=_thinned(line.points)) for line in lines if line.points]
    every = np.array([point for line in lines for point in line.points], float).reshape(-1, 2)
    if not len(every):
        return Markup("")
    axes = _Axes(every[:, 0], every[:, 1], percent)
    parts = [axes.grid(x_label)]
    for line in lines:
        places = [axes.place(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(Markup('<polyline class="line colour-{}" points="{}"/>').format(line.colour, path))
        if line.marked:
            for (x, y), (left, top) in zip(line.points, places, strict=True):
                text = f"{line.name}, {x_label} {x:g}: {_number(y, percent)}"
                parts.append(_dot(left, top, line.colour, text))
    return _svg(title, parts)


def reliability_chart(bins: Sequence[dict[str, Any]]) -> Markup:
    """Accuracy over confidence: a bar for each bin, and the diagonal of perfect calibration."""
    axes = _Axes(np.array([0.0, 1.0]), np.array([0.0, 1.0]), percent=True, x_percent=True)
    parts = [axes.grid("confidence")]
    for row in bins:
        if row["count"]:
            left, top = axes.place(row["from"], row["accuracy"])
            right, bottom = axes.place(row["to"], 0)
            text = f"confidence {row['confidence']:.1%}, accuracy {row['accuracy']:.1%}, {row['count']:,} images"
            parts.append(
                Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>').format(
                    left + 1, top, right - left - 2, bottom - top, Markup("<title>{}</title>").format(text)
                )
            )
    parts.append(axes.diagonal(0, 1))
    return _svg("Accuracy over confidence", parts)


def scatter_chart(name: str, true: np.ndarray, predicted: np.ndarray, most: int = 500) -> Markup:
    """Predicted over true numbers, of at most `most` examples, and the diagonal."""
    rows = np.linspace(0, len(true) - 1, min(len(true), most)).astype(int)
    true, predicted = true[rows].astype(float), predicted[rows].astype(float)
    both = np.concatenate([true, predicted])
    axes = _Axes(both, both)
    dots = [
        _dot(*axes.place(t, p), 1, f"true {t:.4g}, predicted {p:.4g}")
        for t, p in zip(true.tolist(), predicted.tolist(), strict=True)
    ]
    return _svg(
        f"Predicted over true {name}", [axes.grid("true"), axes.diagonal(float(both.min()), float(both.max())), *dots]
    )


class _Axes:
    """Scales and ticks for the ranges of x and y."""

    def __init__(self, x: np.ndarray, y: np.ndarray, percent: bool = False, x_percent: bool = False):
        from matplotlib.ticker import MaxNLocator  # slow to import

        self._x, self._y = (MaxNLocator(count).tick_values(v.min(), v.max()) for count, v in ((5, x), (5, y)))
        self._limits = (x.min(), max(x.max(), x.min() + 1e-9)), (self._y[0], max(self._y[-1], self._y[0] + 1e-9))
        self._percent, self._x_percent = percent, x_percent

    def place(self, x: float | int, y: float | int) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self._limits
        left = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return left, HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str) -> Markup:
        text = Markup('<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>').format
        rule = Markup('<line class="rule" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format
        parts = []
        (x0, x1), _ = self._limits
        for y in self._y:
            _, top = self.place(x0, y)
            parts += [rule(LEFT, top, WIDTH - RIGHT, top), text(LEFT - 6, top + 4, "end", _number(y, self._percent))]
        for x in self._x:
            if x0 - 1e-9 <= x <= x1 + 1e-9:
                left, _ = self.place(x, 0)
                parts.append(text(left, HEIGHT - BOTTOM + 17, "middle", _number(x, self._x_percent)))
        parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle label", x_label))
        return Markup("").join(parts)

    def diagonal(self, low: float | int, high: float | int) -> Markup:
        (left, bottom), (right, top) = self.place(low, low), self.place(high, high)
        return Markup('<line class="diagonal" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
            left, bottom, right, top
        )


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    start = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
    return start + Markup("").join(parts) + Markup("</svg>")


def _dot(left: float, top: float, colour: int, text: str) -> Markup:
    dot = Markup('<circle class="dot colour-{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>')
    return dot.format(colour, left, top, text)


def _number(value: float | int, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:,.10g}" if value >= 1e4 else f"{value:.4g}"


def _thinned(points: Sequence[tuple[float | int, float]]) -> Sequence[tuple[float | int, float]]:
    if len(points) <= MOST_POINTS:
        return points
    return [tuple(part.mean(axis=0)) for part in np.array_split(np.array(points, float), MOST_POINTS)]
