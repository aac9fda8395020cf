"""The configuration of a run: frozen dataclasses that define the command line and config.json.

The docstring under a field is its `--help` text.
"""

import dataclasses
from typing import Annotated, Literal

from train.commandline.ranges import Range

CHECKPOINTS = "checkpoints"  # folder in a workdir

MOST_STEPS = 2**31 - 1  # steps are counted in int32
MOST_IMAGES = 2**20  # in a batch; check_memory compares it with the memory once the image size is known

Side = Annotated[int, Range(1, 16384)]  # pixels
Share = Annotated[float, Range(0.001, 1)]  # of an image; less could leave no pixel
Mix = Annotated[float, Range(1e-6, 1000, or_zero=True)]  # beyond these limits float32 sampling gives NaN or a constant
Decay = Annotated[float, Range(0, 1 - 1e-6)]  # closer to 1, float32 rounds to 1


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, and what the host does to them: decode, crop, resize."""

    name: str = "digits"
    """`digits` (embedded), `tfds:NAME` (prepared as ArrayRecord) or `folder:PATH` (train/CLASS/*.jpg ...);
    `--data` for short."""
    dir: str | None = None
    """Where TFDS keeps its prepared datasets; default: TFDS's own directory."""
    eval_split: str | None = None
    """Split to evaluate on; default: the first of `val`, `validation`, `test` that exists."""
    image_size: tuple[Side, Side] | None = None
    """Height and width in pixels that the model sees, or one number for both; default: those of the data if all are
    equal."""
    min_crop: Share = 1.0
    """Smallest share of its area that a random training crop keeps (0.08 is usual on ImageNet); 1: no such crop."""
    eval_crop: Share = 1.0
    """Share of the shorter side that the centre crop keeps at evaluation (0.875 is usual on ImageNet)."""
    mean: tuple[Annotated[float, Range(0, 1)], ...] | None = None
    """Channel means to subtract, of pixels in 0..1; default: measured on up to 1,000 training images."""
    std: tuple[Annotated[float, Range(1e-6, 10)], ...] | None = None
    """Channel deviations to divide by, of pixels in 0..1; default: measured on the same images."""
    workers: Annotated[int, Range(0, 1024)] = 0
    """Processes that decode images; 0: threads of this process."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training images, inside the jitted step; the defaults do nothing."""

    crop_padding: Annotated[int, Range(0, 1024)] = 0
    """Pixels of black border before a random crop back to the image's own size; 0: off."""
    flip: bool = False
    """Mirror left to right with probability one half."""
    randaugment_layers: Annotated[int, Range(0, 32)] = 0
    """RandAugment operations per image; 0: off."""
    randaugment_magnitude: Annotated[float, Range(0, 10)] = 9.0
    """Strength of each RandAugment operation, 0 to 10."""
    erasing: Annotated[float, Range(0, 1)] = 0.0
    """Probability that a random rectangle of an image is erased."""
    mixup: Mix = 0.0
    """Mixup's Beta parameter; 0: off. With `cutmix` too, each batch draws one of the two."""
    cutmix: Mix = 0.0
    """CutMix's Beta parameter; 0: off."""


@dataclasses.dataclass(frozen=True)
class Optim:
    """Optimizer, learning-rate schedule and what surrounds them."""

    name: Literal["adamw", "sgd", "lamb", "lion"] = "adamw"
    """Optimizer; `sgd` has Nesterov momentum `beta1`."""
    lr: Annotated[float, Range(1e-35, 1e35)] = 1e-3
    """Peak learning rate, as given: never rescaled by the batch size."""
    schedule: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    """Shape after warm-up; `rsqrt` falls with the inverse square root of the step."""
    warmup_epochs: Annotated[float, Range(0, 1_000_000_000)] = 1.0
    """Epochs over which the learning rate rises linearly from zero."""
    final_lr: Annotated[float, Range(0, 1000)] = 0.0
    """Learning rate that `cosine` and `linear` end at."""
    beta1: Decay = 0.9
    """Decay of the first moment, or momentum."""
    beta2: Decay = 0.999
    """Decay of the second moment (Lion: of its momentum)."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.05
    """Decoupled weight decay of matrices and filters; norms, biases, tokens and positions are spared."""
    layer_decay: Annotated[float, Range(1e-6, 1)] = 1.0
    """Factor by which the learning rate shrinks from each layer to the one before it; 1: off."""
    clip_norm: Annotated[float, Range(1e-12, 1e12, or_zero=True)] = 1.0
    """Global gradient norm above which gradients are scaled down; 0: off."""
    accumulate: Annotated[int, Range(1, MOST_IMAGES)] = 1
    """Slices that a batch is processed in, one after the other, to save memory."""
    ema: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Decay of the moving average of the parameters that evaluation then uses; 0: off."""


@dataclasses.dataclass(frozen=True)
class Distill:
    """Learning from a frozen teacher through a distillation token (DeiT), for models that take one: the plain ones."""

    teacher: str | None = None
    """A workdir of this trainer, or the name of a model or torchvision network together with `weights`; `--teacher` for
    short; default: no distillation."""
    weights: str | None = None
    """The teacher's torch weights (.pth, .pt or .safetensors), or the name of those that torchvision has published
    (IMAGENET1K_V1), where `teacher` is a name; `--teacher-weights` for short."""
    weights_prefix: str | None = None
    """Beginning of the names in `weights` that belong to the teacher; see `init-prefix`."""
    args: tuple[str, ...] = ()
    """The teacher's arguments as KEY=VALUE, where `teacher` is a name."""
    image_size: Literal["own"] | tuple[Side, Side] | None = None
    """Height and width in pixels that the teacher sees, of the student's crop; one number for both; or `own` for those
    that it was trained with; default: as the student."""
    views: Annotated[int, Range(0, 1000)] = 0
    """Fixed views of each image (crop and augmentation), which epochs take turns with; 0: new ones in every epoch."""
    cache: bool = False
    """Compute the teacher's logits once for each view of each image, and read them from the workdir afterwards; needs
    `views`, or no augmentation at all; `--cache-teacher` for short."""
    hard: bool = False
    """Learn the teacher's most probable class instead of its distribution."""
    temperature: Annotated[float, Range(1e-3, 1000)] = 1.0
    """Divides both logits before they are compared (soft distillation)."""
    alpha: Annotated[float, Range(0, 1)] = 0.5
    """Weight of the distillation loss; the loss on labels gets the rest."""
    predict: Literal["class", "distill", "mean"] = "mean"
    """Head that evaluation and prediction use: the class head, the distillation head, or their mean."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. Two runs with equal configs on equal hardware end with equal parameters."""

    model: str = "t2t"
    """NAME or NAME/PRESET of `vit_jax.list_models()`; NAME alone is NAME/tiny."""
    model_args: tuple[str, ...] = ()
    """Arguments over the preset's, as KEY=VALUE: `--model-args depth=6 dim=192`."""
    objective: str | None = None
    """NAME of `vit_jax.objectives.list_objectives()`; default: `classify`, or `distill` where there is a teacher."""
    objective_args: tuple[str, ...] = ()
    """Arguments of the objective, as KEY=VALUE: `--objective-args masking_ratio=0.6`."""
    init: str | None = None
    """Torch weights (.pth, .pt or .safetensors) to start from; default: random."""
    init_prefix: str | None = None
    """Beginning of the names in `init` that belong to the model, as in `module.` or, for a dict within a dict,
    `state_dict.model.`; default: the names are the model's own."""
    init_from: str | None = None
    """A workdir of this trainer whose trunk (the encoder that it pretrained, or a classifier without its head) the
    model starts from; the rest is new."""
    recipe: str | None = None
    """Named settings that the other options override; default: `digits` for that data, else none."""
    epochs: Annotated[float, Range(0, 1_000_000_000, open_low=True)] = 10.0
    """Passes over the training images."""
    steps: Annotated[int, Range(1, MOST_STEPS)] | None = None
    """Optimizer steps, instead of `epochs`."""
    batch_size: Annotated[int, Range(1, MOST_IMAGES)] = 128
    """Training images per optimizer step, over all devices."""
    eval_batch_size: Annotated[int, Range(1, MOST_IMAGES)] = 256
    """Evaluation images per step, over all devices; changes the speed only."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy over classes, or over each class by itself."""
    label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Probability mass that targets give to all classes evenly."""
    auxiliary_weight: Annotated[float, Range(0, 1_000_000)] = 1.0
    """Weight of the loss that some models return beside their logits (vit_with_decorr)."""
    seed: Annotated[int, Range(0, 2**32, open_high=True)] = 0
    """Seed of initialisation, data order, augmentation and dropout."""
    workdir: str | None = None
    """Where the run is written, and continued from if it is there; default: runs/MODEL-DATA,
    with the objective in between where it is given."""
    eval_epochs: Annotated[float, Range(0, 1_000_000_000, open_low=True)] = 1.0
    """Epochs between evaluations, each followed by a checkpoint."""
    save_steps: Annotated[int, Range(0, MOST_STEPS)] = 0
    """Steps between further checkpoints, which bound what a killed run does again; 0: those of evaluations alone. One
    more is written on SIGTERM, before the run ends with status 143 (128 + SIGTERM), as if the signal had killed it."""
    log_steps: Annotated[int, Range(1, MOST_STEPS)] = 20
    """Steps between training records in metrics.jsonl."""
    keep: Annotated[int, Range(1, 1_000_000)] = 3
    """Latest checkpoints to keep, besides the best."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and of the parameters' working copy; master parameters are float32."""
    remat: Literal["none", "dots", "full"] = "none"
    """Activations that the backward pass recomputes to save memory: none, all but linear layers' outputs, or all."""
    scan_blocks: bool = False
    """Compile equal blocks as one loop: in the time of one block, with the same parameters and checkpoints."""
    mesh: str | None = None
    """Devices along each axis, as in `data=4,fsdp=2,tensor=1`: `data` and `fsdp` share a batch, `fsdp` and `tensor` the
    state, `tensor` each feed-forward; default: all on `data`."""
    tpu: bool = False
    """Require TPUs, initialise multi-host, use every device and bfloat16."""
    coordinator: str | None = None
    """HOST:PORT where process 0 of several waits for the others, or `auto`: as TPU pods, Slurm and Open MPI tell;
    default: a single process, or with `tpu` what there is."""
    processes: Annotated[int, Range(1, 65536)] | None = None
    """How many processes a run has, where `coordinator` is an address; they share `workdir` and a batch."""
    process: Annotated[int, Range(0, 65535)] | None = None
    """Which of them this is, from 0, where `coordinator` is an address."""
    compilation_cache: str | None = None
    """Folder that keeps compiled steps, so that a run which is started again does not compile; default: none."""
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    optim: Optim = dataclasses.field(default_factory=Optim)
    distill: Distill = dataclasses.field(default_factory=Distill)


# Options that do not affect the computed result: they may change when a run is continued.
MAY_CHANGE = ("workdir", "save_steps", "log_steps", "eval_batch_size", "keep", "mesh", "remat", "tpu", "recipe")
MAY_CHANGE += ("coordinator", "processes", "process", "compilation_cache", "data.workers")
