"""Progress of a run: a bar on a terminal, lines in a log file."""

import sys
from collections.abc import Mapping

import rich.console
import rich.progress

from train.cluster.processes import is_lead
from vit_jax.printable import printable


class Progress:
    """A progress bar on a terminal; without one, lines. Only process 0 prints.

    Args:
        start: The step that the run starts from.
        total: Number of steps of the run.
    """

    def __init__(self, start: int, total: int):
        self._console = rich.console.Console(file=sys.stdout, highlight=False, soft_wrap=True, quiet=not is_lead())
        self._total = total
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[values]}"),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=start, values="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def begin(self, step: int) -> None:
        """Restart the clock at `step`; only later steps are used to estimate the remaining time."""
        self._bar.reset(self._task, completed=step)

    def message(self, text: str) -> None:
        self._console.print(printable(text, None), markup=False)

    def warn(self, text: str) -> None:
        """Print a message, from any process."""
        if is_lead():
            self.message(text)
        else:
            print(printable(text, None), file=sys.stderr)

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Show training metrics, next to the bar or as a line."""
        accuracy = f"  accuracy {values['accuracy']:.1%}" if "accuracy" in values else ""
        text = f"loss {values['loss']:.4f}{accuracy}  {values['images_per_second']:,.0f} images/s"
        self._bar.update(self._task, values=text)
        if self._bar.disable:
            self.message(f"step {step}/{self._total}  {text}")
