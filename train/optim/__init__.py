"""Learning-rate schedules, optimizers and averages of the parameters, in optax."""

from train.optim.averages import Average, make_average, moving_average, restarted
from train.optim.optimizers import decay_mask, layer_scales, make_optimizer
from train.optim.schedules import Extension, make_schedule

__all__ = ["Average", "Extension", "decay_mask", "layer_scales", "make_average", "make_optimizer", "make_schedule"]
__all__ += ["moving_average", "restarted"]
