"""Settings of the optimizer. The docstring under a field is its `--help` text."""

import dataclasses
from typing import Annotated, Literal

from train.commandline.ranges import Range
from train.config.limits import MOST_IMAGES, Decay


@dataclasses.dataclass(frozen=True)
class Optim:
    """Optimizer, learning-rate schedule, gradient clipping and parameter averaging."""

    name: Literal["adamw", "sgd", "lamb", "lion", "muon"] = "adamw"
    """Optimizer; `sgd` uses Nesterov momentum with coefficient `--optim.beta1`; `muon` orthogonalises the updates of
    matrices in blocks, at learning rates for AdamW, which updates all other parameters."""
    lr: Annotated[float, Range(1e-35, 1e35)] = 1e-3
    """Peak learning rate; it is not scaled with the batch size."""
    schedule: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    """Learning-rate schedule after warm-up; `rsqrt` decays with the inverse square root of the step."""
    warmup_epochs: Annotated[float, Range(0, 1_000_000_000)] = 1.0
    """Epochs in which the learning rate rises linearly from zero to its peak."""
    final_lr: Annotated[float, Range(0, 1000)] = 0.0
    """Learning rate at the end of the `cosine` and `linear` schedules."""
    beta1: Decay = 0.9
    """Decay rate of the first moment; for `sgd`, the momentum."""
    beta2: Decay = 0.999
    """Decay rate of the second moment; for `lion`, of its momentum."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.05
    """Decoupled weight decay of weight matrices and filters; norms, biases, tokens and positions have none."""
    layer_decay: Annotated[float, Range(1e-6, 1)] = 1.0
    """Layer-wise learning-rate decay: the factor from each layer to the layer before it; 1: off."""
    clip_norm: Annotated[float, Range(1e-12, 1e12, or_zero=True)] = 1.0
    """Gradient clipping: the largest global norm of the gradients; 0: off."""
    accumulate: Annotated[int, Range(1, MOST_IMAGES)] = 1
    """Gradient accumulation: number of slices in which a batch is processed one after the other, to save memory."""
    ema: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Decay rate of the moving average of the parameters, which evaluation uses if it is on; 0: off."""
