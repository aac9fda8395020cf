"""The targets of all examples of a source."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import rich.progress

from train.data.sources import Source, as_array, read


def labels_of(source: Source) -> np.ndarray:
    """The targets of all examples, int32 (n,) or float32 (n, k). A source without `labels` is read, images included."""
    if (labels := getattr(source, "labels", None)) is not None:
        return as_array(labels)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda index: read(source, index)[1], range(len(source)))
        return as_array(list(rich.progress.track(found, "Reading labels", total=len(source))))
