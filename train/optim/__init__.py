"""Learning-rate schedules and optimizers, in optax."""

from train.optim.optimizers import decay_mask, layer_scales, make_optimizer
from train.optim.schedules import Extension, make_schedule

__all__ = ["Extension", "decay_mask", "layer_scales", "make_optimizer", "make_schedule"]
