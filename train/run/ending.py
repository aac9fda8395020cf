"""Files that a run writes once it is finished: environment.json, curves.png and report.html."""

from collections.abc import Callable

import jax
from etils import epath

from train.config import Config
from train.data import Dataset
from train.errors import one_line
from train.run.curves import draw_curves
from train.run.environment import write_environment


def write_ending(
    workdir: epath.Path, config: Config, dataset: Dataset, *, trained: bool, message: Callable[[str], None]
) -> None:
    """Write the files of a finished run. Only process 0 calls it.

    Args:
        workdir: The run's folder.
        config: Its settings.
        dataset: Its data.
        trained: Whether this process has trained; otherwise the run was finished before.
        message: Shows a line to the user.
    """
    if trained:
        write_environment(workdir)
    message(f"see {draw_curves(workdir)} and {workdir / 'metrics.jsonl'}")
    if not config.report:
        return
    if jax.process_count() > 1:  # loading the checkpoint would need all processes
        message(f"vit-jax report --workdir {workdir} writes a report, in a single process")
        return
    message("report       evaluating the best checkpoint ...")
    try:
        from train.evaluation.report import write_report  # not at the top: it imports much that a run does not need

        message(f"see {write_report(workdir, dataset)}")
    except Exception as error:  # the run is complete: a report that fails must not fail it
        message(f"warning: the report was not written: {one_line(error)}")
