"""Settings of the optimizer. The docstring under a field is its `--help` text."""

import dataclasses
from typing import Annotated, Literal

from train.commandline.ranges import Range
from train.config.limits import MOST_IMAGES, Decay


@dataclasses.dataclass(frozen=True)
class Optim:
    """Optimizer, learning-rate schedule, gradient clipping and parameter averaging."""

    name: Literal["adamw", "sgd", "lamb", "lion", "muon", "schedule_free_adamw"] = "adamw"
    """Optimizer; `sgd` uses Nesterov momentum with coefficient `--optim.beta1`; `muon` orthogonalises the updates of
    matrices in blocks, at learning rates for AdamW, which updates all other parameters; `schedule_free_adamw` has a
    constant learning rate, and evaluates an average of the parameters."""
    lr: Annotated[float, Range(1e-35, 1e35)] = 1e-3
    """Peak learning rate; it is not scaled with the batch size unless `--optim.lr-batch-size` is given."""
    lr_batch_size: Annotated[int, Range(1, MOST_IMAGES)] | None = None
    """Batch size that `--optim.lr` is meant for, often 256: the peak learning rate is `--optim.lr` x `--batch-size` /
    this; default: it is `--optim.lr`."""
    schedule: Literal["cosine", "linear", "constant", "rsqrt", "wsd"] | None = None
    """Learning-rate schedule after warm-up; `rsqrt` decays with the inverse square root of the step, `wsd` is constant
    and at the end decays linearly; default: cosine, for `schedule_free_adamw` constant."""
    decay_share: Annotated[float, Range(0, 1, open_low=True)] = 0.2
    """Share of the run's steps, at its end, in which the `wsd` schedule decays."""
    warmup_epochs: Annotated[float, Range(0, 1_000_000_000)] = 1.0
    """Epochs in which the learning rate rises linearly from zero to its peak."""
    final_lr: Annotated[float, Range(0, 1000)] = 0.0
    """Learning rate at the end of the `cosine`, `linear` and `wsd` schedules."""
    beta1: Decay = 0.9
    """Decay rate of the first moment; for `sgd`, the momentum; for `schedule_free_adamw`, the weight of the average in
    the point at which gradients are taken."""
    beta2: Decay = 0.999
    """Decay rate of the second moment; for `lion`, of its momentum."""
    cautious: bool = False
    """Leave out the part of an update whose sign differs from the gradient's, and enlarge the rest in proportion."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.05
    """Decoupled weight decay of weight matrices and filters; norms, biases, tokens and positions have none."""
    layer_decay: Annotated[float, Range(1e-6, 1)] = 1.0
    """Layer-wise learning-rate decay: the factor from each layer to the layer before it; 1: off."""
    clip_norm: Annotated[float, Range(1e-12, 1e12, or_zero=True)] = 1.0
    """Gradient clipping: the largest global norm of the gradients; 0: off."""
    accumulate: Annotated[int, Range(1, MOST_IMAGES)] = 1
    """Gradient accumulation: number of slices in which a batch is processed one after the other, to save memory."""
    ema: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Decay rate of the moving average of the parameters, which evaluation uses if it is on; at step t it is at most
    (1 + t) / (10 + t); 0: off."""

    @property
    def shape(self) -> str:
        """The learning-rate schedule: `schedule`, or its default."""
        return self.schedule or ("constant" if self.name == "schedule_free_adamw" else "cosine")

    def for_batches_of(self, batch_size: int) -> "Optim":
        """The same settings with the peak learning rate scaled to a batch size, if `lr_batch_size` asks for it.

        Linear scaling is for SGD (Goyal et al. 2017, arXiv:1706.02677), and usual for AdamW (DeiT, MAE).
        """
        if self.lr_batch_size is None:
            return self
        return dataclasses.replace(self, lr=self.lr * batch_size / self.lr_batch_size, lr_batch_size=None)
