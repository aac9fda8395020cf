"""Settings of distillation. The docstring under a field is its `--help` text."""

import dataclasses
from typing import Annotated, Literal

from train.commandline.ranges import Range
from train.config.limits import Side


@dataclasses.dataclass(frozen=True)
class Distill:
    """Distillation from a frozen teacher: of its logits through a distillation token (DeiT), for most models without
    stages, or of its features, for any classifier."""

    teacher: str | None = None
    """Teacher: the workdir of a run; published weights, as timm/NAME.TAG, hf:ORG/REPO or a folder with config.json and
    weights; or the name of a model, timm's or torchvision's network, which needs `--distill.weights`; `--teacher` for
    short; default: no distillation."""
    weights: str | None = None
    """Torch weights of a teacher given by name: a .pth, .pt or .safetensors file, or the name of weights published by
    torchvision (IMAGENET1K_V1); `--teacher-weights` for short."""
    weights_prefix: str | None = None
    """Prefix of the teacher's keys in `--distill.weights`; see `--init-prefix`."""
    args: tuple[str, ...] = ()
    """Arguments of a teacher given by name, as KEY=VALUE."""
    image_size: Literal["own"] | tuple[Side, Side] | None = None
    """Height and width in pixels to which the student's crop is resized for the teacher; one number for both; `own`:
    the size that the teacher was trained with; default: the student's size."""
    views: Annotated[int, Range(0, 1000)] = 0
    """Number of fixed views (crop and augmentation) of each image, which epochs use in turn; 0: a new view in every
    epoch."""
    cache: bool = False
    """Compute the teacher's logits once for each view of each image, and store them in the workdir; needs
    `--distill.views`, or no augmentation; `--cache-teacher` for short."""
    features: Literal["tokens", "pooled"] | None = None
    """Distillation of features: of the patches in the last layer (`tokens`), or of one vector per image (`pooled`);
    default: of logits alone."""
    feature_weight: Annotated[float, Range(0, 1_000_000)] = 1.0
    """Weight of the loss on features."""
    feature_dim: Annotated[int, Range(1, 2**20)] | None = None
    """Width of the teacher's features; default: found from the teacher."""
    alpha: Annotated[float, Range(0, 1)] | None = None
    """Weight of the distillation loss on logits; the loss on labels has the weight 1 - alpha; default: 0.5, or with
    `--distill.features` 0, which is no distillation of logits."""
    hard: bool = False
    """Hard distillation: the target is the teacher's most probable class instead of its distribution."""
    temperature: Annotated[float, Range(1e-3, 1000)] = 1.0
    """Soft distillation: the logits of teacher and student are divided by this temperature."""
    predict: Literal["class", "distill", "mean"] = "mean"
    """Head used in evaluation and prediction: the class head, the distillation head, or the mean of both."""

    @property
    def of_logits(self) -> bool:
        """Whether the student learns from the teacher's logits."""
        return self.features is None or bool(self.alpha)
