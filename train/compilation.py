"""Keep compiled programs in a folder, so that later processes need not compile them again."""

import contextlib
import os
from pathlib import Path

from train.commandline.terminal import tell
from train.config import NO_CACHE

MOST_BYTES = 2**30  # of the default folder; a program takes up to a few MiB


def keep_programs(folder: str | None = None) -> None:
    """Let JAX keep compiled programs. Only the `main` of a command calls it, before anything is compiled.

    JAX names a program by a hash of its operations, the versions and flags of the compiler, and the features of the
    processor. A folder that cannot be used costs a warning.

    Args:
        folder: The folder, which may be remote; "none": keep no programs; None: what the environment variable
            JAX_COMPILATION_CACHE_DIR says, otherwise `default_folder()`.
    """
    import jax  # not at the top: it takes seconds, and --help and wrong options do not need it

    if folder is None and jax.config.jax_compilation_cache_dir:
        return
    path = Path(folder or default_folder())
    is_kept = folder != NO_CACHE and ("://" in str(folder) or is_usable(path, private=folder is None))
    if is_kept and folder is None:
        remove_oldest(path)
    jax.config.update("jax_compilation_cache_dir", (folder or str(path)) if is_kept else None)


def default_folder() -> Path:
    """vit-jax/programs in the user's folder of caches, as in the XDG Base Directory Specification.

    It is not beside the workdir, which others may be able to write: a program in it runs as this user.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vit-jax", "programs")


def is_usable(folder: Path, *, private: bool) -> bool:
    """Make `folder`, and return whether this user, and if `private` no other, can write there. Warns if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "it is not writable"
        there = folder.stat()
        if private and (there.st_uid != os.getuid() or there.st_mode & 0o022):
            reason = "other users can write there"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        tell(0, f"warning: compiled programs are not kept in {folder}: {reason} (--compilation-cache)")
    return reason is None


def remove_oldest(folder: Path, most: int = MOST_BYTES) -> None:
    """Remove the programs that were not used for longest, until the rest take at most `most` bytes."""
    found, total = [], 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may do the same
            found.append((path.stat(), path))
    for there, path in sorted(found, key=lambda pair: pair[0].st_atime, reverse=True):
        total += there.st_size
        if total > most:
            path.unlink(missing_ok=True)
