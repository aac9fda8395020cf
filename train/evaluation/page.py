"""Pages: HTML files that need no other file and no network."""

import datetime
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from train.run.files import write_atomically
from vit_jax import __version__
from vit_jax.printable import printable


class Column(NamedTuple):
    """A column of a table; numbers are aligned to the right, and sort the largest first."""

    title: str
    numeric: bool = True


class Cell(NamedTuple):
    """A cell of a table: its text, the number to sort by, and the width of a bar behind it, 0 to 1."""

    text: str
    value: float | int | None = None
    share: float | None = None


class Table(NamedTuple):
    """A table that sorts when a heading is pressed. The first cell of a row is its heading."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def text_cell(text: str) -> Cell:
    """A cell with a name."""
    return Cell(printable(text))


def share_cell(value: float | None, *, bar: bool = False) -> Cell:
    """A cell with a number from 0 to 1 as a percentage; - if it is not defined."""
    return Cell("-", -1.0) if value is None else Cell(f"{value:.1%}", value, value if bar else None)


def number_cell(value: float | int | None) -> Cell:
    """A cell with a number; - if it is not defined."""
    return Cell("-", -1e300) if value is None else Cell(number(value), value)


def number(value: float | int) -> str:
    """Format a number: whole ones with separators, others with four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def write_page(path: os.PathLike | str, template: str, **context: Any) -> None:
    """Render a template of this package into a file. Text in `context` is escaped.

    Raises:
        OSError: If the file cannot be written.
    """
    import jinja2  # not at the top: a run needs it at its end

    loader = jinja2.PackageLoader("train.evaluation", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    now = f"{datetime.datetime.now():%d %B %Y, %H:%M}"
    text = environment.get_template(template).render(version=__version__, date=now, **context)
    write_atomically(path, text.encode("utf-8", "replace"))
