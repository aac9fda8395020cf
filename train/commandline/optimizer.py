"""Check that the options of the optimizer fit together."""

from train.config import Optim
from train.errors import UserError


def check_optim_options(optim: Optim) -> None:
    """Raises UserError for options that conflict, or that have no effect."""
    if optim.shape != "wsd" and optim.decay_share != Optim.decay_share:
        raise UserError(f"--optim.decay-share {optim.decay_share:g} needs --optim.schedule=wsd; it is {optim.shape}")
    if optim.name != "schedule_free_adamw":
        return
    name = "--optim.name schedule_free_adamw"
    if optim.shape != "constant":
        raise UserError(f"{name} has a constant learning rate: leave out --optim.schedule={optim.schedule}")
    if optim.ema:
        raise UserError(f"{name} evaluates an average of its own: leave out --optim.ema={optim.ema:g}")
    if optim.cautious:
        raise UserError(f"{name} has no momentum, so all its updates agree with gradients: leave out --optim.cautious")
    if not optim.beta1:
        raise UserError(f"--optim.beta1 is 0; with {name} it must be above 0")
