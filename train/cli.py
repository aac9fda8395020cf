"""The installed command: `vit-jax train --model=t2t` runs `train.main`, and so on for the other commands.

It also works in a folder that contains another `train.py` or `train/`, which `python -m train.main` would run instead.
"""

import importlib
import sys

from train.commandline.options import COMMANDS, MODULES
from train.commandline.terminal import run_command, tell
from train.errors import UserError
from train.listing import LISTINGS, SHELLS, answer

USAGE = f"usage: vit-jax {{{','.join(MODULES)}}} ...; vit-jax COMMAND --help lists the options of a command"
OTHERS = f"""
{chr(10).join(f"  {name:<10} {does}" for name, does in COMMANDS.items())}

{", ".join(LISTINGS)}: print it and exit
--completion {{{",".join(SHELLS)}}}: print a script that completes commands and options, for eval
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` begins with, and return its exit status; 2 for an unknown command."""
    if argv is None:  # called as the installed command
        return run_command(lambda: main(sys.argv[1:]))
    command, *others = argv or [""]
    if command in ("--help", "-h"):
        print(USAGE + OTHERS.rstrip())
        return 0
    try:
        if (text := answer([command, *others])) is not None:
            print(text)
            return 0
    except UserError as error:
        return tell(2, f"error: {error}")
    if command not in MODULES:
        return tell(2, f"error: unknown command {command!r}; {USAGE}" if command else USAGE)
    return importlib.import_module(f"train.{MODULES[command]}").main(others)


if __name__ == "__main__":
    sys.exit(main())
