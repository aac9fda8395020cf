"""Find the image files that a command line names: files, folders, patterns, and lines of standard input."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from train.errors import UserError, shortened


def list_images(names: Iterable[str], lines: Iterable[str]) -> list[Path]:
    """Paths of image files, in the order of `names`.

    Args:
        names: Files; folders, for all images below them; patterns such as `photos/**/*.jpg`; "-" for the
            paths in `lines`.
        lines: Lines of standard input, read only for "-".

    Raises:
        UserError: If a folder holds no images. Files need not exist; a pattern that matches none is taken as a name.
    """
    return [path for name in names for path in _files(name, lines)]


def _files(name: str, lines: Iterable[str]) -> list[Path]:
    if name == "-":
        found = [Path(line.rstrip("\r\n")) for line in lines if line.strip()]
        if not found:
            raise UserError("- : standard input names no images")
        return found
    if os.path.isdir(name):
        from train.data.folder import images_below  # not at the top: it imports JAX

        found = [Path(path) for path in images_below(name)]
        if not found:
            raise UserError(f"{shortened(name)} contains no images")
        return found
    if glob.has_magic(name) and not os.path.lexists(name):
        found = [Path(path) for path in sorted(glob.glob(name, recursive=True)) if os.path.isfile(path)]
        return found or [Path(name)]
    return [Path(name)]
