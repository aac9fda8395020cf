"""Output of `--version`, `--list-models`, `--list-recipes`, `--list-data` and `--completion SHELL`."""

import os
from collections.abc import Callable
from pathlib import Path

from train.data_kinds import KINDS
from train.errors import UserError

SHELLS = ("bash", "zsh")


def answer(argv: list[str]) -> str | None:
    """The text that a command line such as `--list-models` prints; None if its first argument is not such an option.

    Raises UserError for further arguments, and for a shell that is not in SHELLS.
    """
    option, *others = argv or [""]
    if option.partition("=")[0] == "--completion":
        shell = [*option.split("=")[1:], *others]
        if len(shell) != 1 or shell[0] not in SHELLS:
            raise UserError(f"--completion needs one of {', '.join(SHELLS)}")
        return completion(shell[0])
    if option not in LISTINGS:
        return None
    if others:
        raise UserError(f"{option} takes no further arguments; it was given {' '.join(others)}")
    return LISTINGS[option]()


def version() -> str:
    """The version of vit-jax."""
    import vit_jax

    return f"vit-jax {vit_jax.__version__}"


def models() -> str:
    """Every model and torchvision network, one per line, with its presets."""
    from vit_jax import list_models, list_presets
    from vit_jax.registry import TORCHVISION

    lines = [f"{name:44} {' '.join(list_presets(name))}".rstrip() for name in list_models()]
    return "\n".join([*lines, "", "torchvision's networks:", *sorted(TORCHVISION)])


def recipes() -> str:
    """Every recipe, with its command, expected accuracy, source, and what differs from it."""
    from train.recipes import RECIPES

    def lines(recipe):
        yield from (recipe.command, f"expected: {recipe.expected}", f"source: {recipe.source}")
        if recipe.differs:
            yield f"differs: {recipe.differs}"

    return "\n".join("\n    ".join((name, *lines(recipe))) for name, recipe in RECIPES.items())


def data() -> str:
    """The kinds of data, and the datasets that TFDS has prepared in its default folder."""
    folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    prepared = sorted({path.relative_to(folder).parts[0] for path in folder.glob("**/dataset_info.json")})
    found = {"tfds": f"; in {folder}: {', '.join(prepared) or 'none'}"}
    return "\n".join(f"{kind.written:12} {kind.about}{found.get(name, '')}" for name, kind in KINDS.items())


LISTINGS: dict[str, Callable[[], str]] = {
    "--version": version,
    "--list-models": models,
    "--list-recipes": recipes,
    "--list-data": data,
}


def completion(shell: str) -> str:
    """A script that completes the commands of vit-jax and their options in `shell`."""
    import contextlib
    import io
    from importlib import import_module

    import tyro

    from train.commandline.options import MODULES
    from train.config import Config

    others = [name for name in MODULES if name != "train"]
    commands = {"train": Config, **{name: import_module(f"train.{MODULES[name]}").Options for name in others}}
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(commands, args=["--tyro-print-completion", shell], prog="vit-jax")
    return script.getvalue()
