"""The length of a run, and how a run that is already in its workdir becomes longer."""

import dataclasses

from etils import epath

from train.cluster.processes import on_lead
from train.config import Config
from train.errors import UserError
from train.optim import Extension, make_schedule
from train.run.inventory import last_step
from train.run.stored import read_stored


def length(config: Config, images: int) -> tuple[int, float]:
    """Steps of a run, and of an epoch, for a number of training images."""
    steps_per_epoch = max(images / config.batch_size, (config.min_steps or 0) / config.epochs)
    return config.steps or max(1, round(config.epochs * steps_per_epoch)), steps_per_epoch


def with_former_length(config: Config) -> Config:
    """`config` with the length that the run in the workdir began with. Raises UserError if it cannot be read."""
    if not (epath.Path(config.workdir) / "config.json").exists():
        return config
    there = read_stored(config.workdir).config
    known = {name: value for name in ("epochs", "min_steps") if (value := getattr(there, name)) is not None}
    return dataclasses.replace(config, steps=there.steps, **known)


def extensions_of(config: Config, former: Config, images: int) -> tuple[Extension, ...]:
    """The extensions of the run in the workdir, and the new one that `config` describes, if any.

    All processes must call it. An epoch has as many steps as in the beginning.

    Args:
        config: The settings.
        former: The same settings with the length that the run began with (`with_former_length`).
        images: Number of training images.

    Raises:
        UserError: If `config` makes the run shorter, or longer without saying how, or differs from the last extension.
    """
    if not (epath.Path(config.workdir) / "config.json").exists():
        if config.extend:
            raise UserError(f"--extend {config.extend}: there is no run in --workdir {config.workdir} to make longer")
        return ()
    extensions = read_stored(config.workdir).extensions
    begun, steps_per_epoch = length(former, images)
    total = extensions[-1].total if extensions else begun
    wanted = config.steps or max(1, round(config.epochs * steps_per_epoch), config.min_steps or 0)
    there = f"the run in --workdir {config.workdir} has {_steps(total, steps_per_epoch)}"
    if wanted < total:
        raise UserError(
            f"{there}, and --steps, --epochs and --min-steps give {_steps(wanted, steps_per_epoch)}: a run can become "
            "longer, not shorter"
        )
    if wanted == total:
        _check_repeated(config, extensions, there)
        return extensions
    optim = config.optim.for_batches_of(config.batch_size)
    schedule = make_schedule(optim, begun, steps_per_epoch, extensions)
    at_end = float(schedule(total))
    kind = config.extend or ("stretch" if optim.shape in ("constant", "rsqrt") else None)
    if kind is None:
        rate = at_end or optim.lr / 10
        raise UserError(
            f"{there}, and would have {_steps(wanted, steps_per_epoch)}: pass --extend=stretch for the learning rates "
            f"of a run of this length, or --extend=constant --extend-lr={rate:g}"
        )
    if kind == "stretch":
        new = Extension(on_lead(lambda: last_step(config.workdir)) or 0, wanted, kind)
    elif config.extend_lr or at_end:
        new = Extension(total, wanted, kind, config.extend_lr or at_end)
    else:
        raise UserError(
            f"--extend constant: the {optim.shape} schedule has ended with a learning rate of 0, with which "
            f"nothing is learned: pass --extend-lr, such as {optim.lr / 10:g}, or --extend=stretch"
        )
    return (*extensions, new)


def described(former: Config, images: int, extensions: tuple[Extension, ...]) -> str:
    """The last of `extensions`, for the user. `former` has the length that the run began with."""
    last = extensions[-1]
    begun, steps_per_epoch = length(former, images)
    total = extensions[-2].total if len(extensions) > 1 else begun
    schedule = make_schedule(former.optim.for_batches_of(former.batch_size), begun, steps_per_epoch, extensions)
    before, now = (float(schedule(step)) for step in (max(last.after - 1, 0), last.after))
    how = "is constant" if last.schedule == "constant" else f"is that of a run of {last.total:,} steps"
    return (
        f"from {_steps(total, steps_per_epoch)} to {_steps(last.total, steps_per_epoch)}; after step {last.after:,} "
        f"the learning rate {how}: first {now:.3g}, just before {before:.3g}"
    )


def _check_repeated(config: Config, extensions: tuple[Extension, ...], there: str) -> None:
    """Raises UserError if the options describe another extension than the one to the run's present length."""
    if config.extend is None:
        return
    if not extensions:
        raise UserError(f"--extend {config.extend}: {there} already; pass a larger --epochs or --steps")
    last = extensions[-1]
    if config.extend != last.schedule or config.extend_lr not in (None, last.lr):
        rate = "" if last.lr is None else f" --extend-lr={last.lr:g}"
        raise UserError(f"{there}, to which it was extended by --extend={last.schedule}{rate}; that cannot change")


def _steps(steps: int, steps_per_epoch: float) -> str:
    return f"{steps:,} steps ({steps / steps_per_epoch:.4g} epochs)"
