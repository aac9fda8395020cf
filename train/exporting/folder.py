"""Write the folder of an exported run."""

import json
import os
import secrets
import shutil
from pathlib import Path

from train.errors import UserError
from train.export import Options
from train.exporting.card import Card, card, describe
from train.exporting.formats import WRITERS
from train.exporting.program import check_same, program_of
from train.run.files import is_remote
from train.run.stored import load_run
from vit_jax.printable import printable


def export(options: Options, known: Card | None = None) -> None:
    """Write the best checkpoint of a run to `options.out`, which appears only once it is complete and checked.

    Args:
        options: The run, the folder and the formats.
        known: What the publisher adds to the model card.

    Raises:
        UserError: If the run or the folder is unsuitable, a format cannot be written, or what was written is wrong.
    """
    if is_remote(options.out):
        raise UserError(f"--out {options.out}: expected a local path")
    out = Path(options.out)
    if os.path.lexists(out):
        raise UserError(f"--out {out} already exists: expected a new path")
    program = program_of(load_run(options.workdir))
    staged = out.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        staged.mkdir(parents=True)
        for name in dict.fromkeys(options.formats):
            print(f"{name}: writing, reading back and comparing", flush=True)
            check_same(program, WRITERS[name](staged, program), name)
        text = json.dumps(describe(program), indent=2, ensure_ascii=False) + "\n"
        (staged / "preprocessing.json").write_text(text, encoding="utf-8")
        (staged / "README.md").write_text(card(options, program, known or Card()), encoding="utf-8")
        staged.rename(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    sizes = {path.name: path.stat().st_size for path in sorted(Path(out).iterdir())}
    print(f"{printable(out, None)}: {', '.join(f'{name} ({size / 1e6:,.1f} MB)' for name, size in sizes.items())}")
