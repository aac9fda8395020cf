"""Parse and check the options of partial training, without the model."""

import re

from train.config import Config
from train.errors import UserError, shortened

BLOCKS = re.compile(r"blocks:([0-9]{1,4})(?:-([0-9]{1,4}))?")


def frozen_blocks(value: str) -> tuple[int, int]:
    """The first and last block that a value of `--freeze` names. Raises UserError if it is not one."""
    match = BLOCKS.fullmatch(value)
    if not match:
        wanted = "backbone, embeddings or blocks:FIRST-LAST, as in blocks:0-8"
        raise UserError(f"--freeze {shortened(value)}: expected {wanted}")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise UserError(f"--freeze {value}: expected blocks:{last}-{first}")
    return first, last


def check_partial_options(config: Config) -> None:
    """Raises UserError for a value of `--freeze` that cannot be parsed, and for options that conflict."""
    for value in config.freeze:
        if value not in ("backbone", "embeddings"):
            frozen_blocks(value)
    if config.freeze and config.train_only:
        raise UserError(f"--train-only {config.train_only} freezes all other parameters: leave out --freeze")
    if config.lora.rank and (config.freeze or config.train_only):
        given = "--freeze" if config.freeze else "--train-only"
        raise UserError(f"--lora.rank trains its matrices and the head alone: leave out {given}")
    if config.lora.alpha is not None and not config.lora.rank:
        raise UserError(f"--lora.alpha {config.lora.alpha:g} needs --lora.rank, which is not given")
