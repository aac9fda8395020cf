"""The configuration of a run: frozen dataclasses that define the command line and config.json.

The docstring under a field is its `--help` text.
"""

import dataclasses
from typing import Annotated, Literal

from train.commandline.ranges import Range
from train.config.distill import Distill
from train.config.limits import MOST_IMAGES, MOST_STEPS, Mix, Share, Side
from train.config.optim import Optim

# For each `--data.target` its losses, the default first.
LOSSES = {"class": ("softmax", "sigmoid"), "multilabel": ("sigmoid",), "regression": ("mse", "huber")}
CHECKPOINTS = "checkpoints"  # folder in a workdir
NO_CACHE = "none"  # the value of `compilation_cache` that switches it off


@dataclasses.dataclass(frozen=True)
class Data:
    """Dataset, and its preprocessing on the host: decoding, cropping and resizing."""

    name: str = "digits"
    """Dataset: `digits` (included), `folder:PATH` (PATH/train/CLASS/*.jpg ... or PATH/CLASS/*.jpg), `table:FILE` (CSV,
    TSV or Parquet), `array:FILE` (.npz, or a folder of .npy), `hf:NAME` (Hugging Face, also local), `wds:SHARDS` (tars
    of WebDataset) or `tfds:NAME` (prepared as ArrayRecord); `--data` for short."""
    dir: str | None = None
    """Directory of prepared TFDS datasets; default: the one that TFDS itself uses."""
    eval_split: str | None = None
    """Split used for evaluation; default: the first of `val`, `validation`, `test` that exists."""
    split: Annotated[float, Range(0, 1, open_low=True, open_high=True)] | None = None
    """Share of each class for training, the rest for evaluation; not with a split `val` or `validation`; default: 0.8
    (0.9 without labels) if there is no split for evaluation."""
    image_column: str | None = None
    """Column of a table or dataset with the images; for `wds:` their suffix, such as jpg; default: found by name."""
    label_columns: tuple[str, ...] = ()
    """Columns with the labels or numbers; for `wds:` cls, txt, or keys of json; default: found by name."""
    target: Literal["class", "multilabel", "regression"] = "class"
    """What the model predicts for an image: its `class`, any number of labels (`multilabel`), or numbers
    (`regression`)."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Order of the training images: each once in every epoch (`shuffle`), or images of every class equally often
    (`balanced`), which repeats those of rare classes."""
    image_size: tuple[Side, Side] | None = None
    """Height and width of the model's input in pixels, or one number for both; default: the size of the images, which
    must be the same for all."""
    min_crop: Share = 1.0
    """Smallest area of a random training crop, as a fraction of the image (usual on ImageNet: 0.08); 1: the central
    crop."""
    random_crop: Literal["resized", "simple"] = "resized"
    """Random training crop: `resized` has a random area and aspect ratio (see `--data.min-crop`); `simple` (DeiT III)
    is a window on the image, whose smaller side is resized to it, and on 4 reflected pixels at its borders."""
    eval_crop: Share | None = None
    """Evaluation: side of the central crop, as a fraction of the size to which an image is resized first (usual on
    ImageNet: 0.875); default: that of published weights, otherwise 1."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """Evaluation: whether resizing keeps the aspect ratio and covers the crop (`center`), keeps it and fits into the
    crop (`border`), or does not keep it (`squash`); default: that of published weights, otherwise `center`."""
    interpolation: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] | None = None
    """Interpolation of resized images; default: that of published weights, otherwise `bicubic`."""
    scaled_decoding: bool = True
    """Decode a JPEG for training at 1/2, 1/4 or 1/8 of its size if that leaves at least twice the height and width that
    a crop is resized to: photographs of 4000 pixels take a fifth of the time."""
    channels: Annotated[int, Range(1, 1024)] | None = None
    """Channels of images: 1 (greyscale), 3 (RGB), 4 (RGB with alpha, or four bands), or another number of bands, which
    all files must have; default: 3 for published weights or if an image is in colour, otherwise those of the files."""
    pixels: Literal["uint8", "uint16", "float32"] | None = None
    """Type of samples of images; `uint8` reduces 16-bit images to their upper 8 bits; default: that of the files."""
    mean: tuple[Annotated[float, Range(-1e6, 1e6)], ...] | None = None
    """Mean of each channel, subtracted from pixels in 0..1 (floats are not scaled); default: that of published
    weights, otherwise measured on up to 1,000 training images."""
    std: tuple[Annotated[float, Range(1e-6, 1e6)], ...] | None = None
    """Standard deviation of each channel, for the same pixels; default: as for the mean."""
    workers: Annotated[int, Range(0, 1024)] = 0
    """Number of processes that decode images; 0: threads of the main process do it, as many as there are processors."""
    placement: Literal["auto", "devices", "host"] = "auto"
    """Where training images in memory that need no crop and no resizing are kept: on the `devices`, so that they are
    transferred once, or on the `host`; `auto`: on accelerators if they take at most 1/16 of a device's memory."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training images on the device, inside the jitted step; off by default."""

    crop_padding: Annotated[int, Range(0, 1024)] = 0
    """Width in pixels of the black border added before a random crop of the original size; 0: off."""
    flip: bool = False
    """Flip each image horizontally with probability 0.5."""
    randaugment_layers: Annotated[int, Range(0, 32)] = 0
    """Number of RandAugment operations per image; 0: off."""
    randaugment_magnitude: Annotated[float, Range(0, 10)] = 9.0
    """Strength of each RandAugment operation, 0 to 10."""
    randaugment_probability: Annotated[float, Range(0, 1)] = 1.0
    """Probability that each RandAugment operation is applied."""
    three_augment: bool = False
    """3-Augment (DeiT III): one of three changes for each image: grey, solarised or blurred."""
    color_jitter: Annotated[float, Range(0, 1)] = 0.0
    """Colour jitter: largest relative change of brightness, contrast and saturation, in random order; 0: off."""
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    """Colour jitter: largest turn of the hue, as a fraction of the circle; 0: off."""
    erasing: Annotated[float, Range(0, 1)] = 0.0
    """Random erasing: probability that a random rectangle of an image is erased."""
    mixup: Mix = 0.0
    """Parameter of mixup's Beta distribution; 0: off. With cutmix on too, each batch uses one of the two at random."""
    cutmix: Mix = 0.0
    """Parameter of CutMix's Beta distribution; 0: off."""
    mixed_targets: Literal["shares", "both"] = "shares"
    """Targets of the two classes of an image that mixup or CutMix makes: their shares, or 1 for `both` (DeiT III); this
    needs `--loss=sigmoid`."""
    repeats: Annotated[int, Range(1, 64)] = 1
    """Repeated augmentation: number of differently augmented copies of each image, one after the other. An epoch has as
    many images as without it, so that it sees one in `repeats` of the training images."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """LoRA: train a low-rank change of every linear layer in the blocks, and the head; all else is frozen."""

    rank: Annotated[int, Range(0, 1024)] = 0
    """Rank of the changes of the kernels (usual: 4 to 64); 0: no LoRA."""
    alpha: Annotated[float, Range(1e-6, 1e6)] | None = None
    """The changes are multiplied by alpha / rank; default: the rank."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. On the same hardware, runs with equal settings end with equal parameters."""

    model: str = "t2t"
    """Model to train, as NAME or NAME/PRESET (`--list-models` prints them); NAME alone is NAME/tiny. With published
    weights as initial weights: timm/NAME.TAG, hf:ORG/REPO, or a folder with config.json."""
    model_args: tuple[str, ...] = ()
    """Arguments of the model that override its preset, as KEY=VALUE: `--model-args depth=6 dim=192`."""
    objective: str | None = None
    """Training objective, one of `vit_jax.objectives.list_objectives()`; default: `classify`, with a teacher `distill`,
    with `--distill.features` `feature_distill`."""
    objective_args: tuple[str, ...] = ()
    """Arguments of the objective, as KEY=VALUE: `--objective-args masking_ratio=0.6`."""
    init: str | None = None
    """Weights that training starts from: published ones (timm/NAME.TAG, hf:ORG/REPO, torchvision's IMAGENET1K_V1), a
    file (.safetensors, .pth, .pt, .bin, .npz), or a folder: a run, published weights, or written by `train.convert`.
    Positions are resampled; a head for another number of classes, or other class names of a run, is new; default:
    random initialisation."""
    init_prefix: str | None = None
    """Prefix of the model's keys in the file of `--init`, such as `module.`, or `state_dict.model.` for nested dicts;
    default: no prefix."""
    init_from: str | None = None
    """As `--init`, but loads only the encoder, also that of another objective; the head is always new."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, one or more of `backbone` (all but the head), `embeddings` (of patches and
    positions, and tokens) and `blocks:FIRST-LAST`, counted from 0 as in `blocks:0-8`. With a frozen backbone, dropout
    is off and batch norms use their running statistics."""
    train_only: Literal["head"] | None = None
    """The only parameters that are trained; `head`: linear probing, the same as `--freeze=backbone`."""
    recipe: str | None = None
    """Named settings, which the other options override (`--list-recipes` prints them); default: `digits` for the data
    of that name, otherwise `finetune` for published weights."""
    epochs: Annotated[float, Range(0, 1_000_000_000, open_low=True)] | None = None
    """Number of passes over the training images; default: 10."""
    min_steps: Annotated[int, Range(0, MOST_STEPS)] | None = None
    """Minimum number of optimizer steps: if `--epochs` gives fewer, each epoch repeats the images; default: 300, and 0
    if `--epochs` is given."""
    steps: Annotated[int, Range(1, MOST_STEPS)] | None = None
    """Number of optimizer steps; replaces `--epochs` and `--min-steps`."""
    extend: Literal["stretch", "constant"] | None = None
    """Learning rate of a run in the workdir that a larger `--epochs` or `--steps` makes longer: from its last
    checkpoint on that of a run of the new length (`stretch`), or after its former end constant (`constant`)."""
    extend_lr: Annotated[float, Range(1e-35, 1e35)] | None = None
    """Learning rate with `--extend=constant`; default: the one that the schedule ended with."""
    batch_size: Annotated[int, Range(1, MOST_IMAGES)] | None = None
    """Training images per optimizer step, on all devices together; default: 128, or for fewer than 512 images a power
    of two that is at most a quarter of them, and at least 8."""
    eval_batch_size: Annotated[int, Range(1, MOST_IMAGES)] = 256
    """Images per evaluation step, on all devices together; affects only the speed."""
    loss: Literal["softmax", "sigmoid", "mse", "huber"] | None = None
    """Softmax cross-entropy over all classes; sigmoid cross-entropy of each class or label separately; mean squared
    (`mse`) or Huber error (smooth L1) of standardised numbers; default: softmax for classes, sigmoid for labels, mse
    for numbers."""
    label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Label smoothing: probability that targets distribute evenly over all classes; labels move towards 1/2."""
    class_weights: tuple[str, ...] = ()
    """Weight of each class in the loss: `balanced` (images / (classes x images of the class)), NAME=WEIGHT for some
    classes, or a number for each class in order; for labels, the weight where a label is present (`balanced`: images
    without it / images with it). The loss of a batch is divided by the mean weight of its classes."""
    auxiliary_weight: Annotated[float, Range(0, 1_000_000)] = 1.0
    """Weight of losses that models return with their logits: decorrelation (vit_with_decorr), sparsity
    (simple_vit_with_sparse_gating), SIGReg of slots and the loss of token logits (wwt)."""
    drop_path: Annotated[float, Range(0, 1, open_high=True)] | None = None
    """Stochastic depth: rate at which training drops the residual branches of the last block, for each image by itself;
    the rate rises linearly from 0 in the first block; default: that of the model, mostly 0."""
    seed: Annotated[int, Range(0, 2**32, open_high=True)] = 0
    """Random seed of initialisation, data order, augmentation and dropout."""
    sweep: tuple[str, ...] = ()
    """Settings to combine, as OPTION=VALUE,VALUE,...: `--sweep optim.lr=1e-3,3e-3 seed=0,1` trains four runs one after
    the other, each in its own folder in `--workdir`. The same command continues a sweep."""
    workdir: str | None = None
    """Folder of the run; a run that is already in it continues. Default: runs/MODEL-DATA, or runs/MODEL-OBJECTIVE-DATA
    if the objective is given."""
    eval_epochs: Annotated[float, Range(0, 1_000_000_000, open_low=True)] = 1.0
    """Epochs between evaluations; a checkpoint is saved after each evaluation."""
    save_steps: Annotated[int, Range(0, MOST_STEPS)] = 0
    """Steps between additional checkpoints, which limit how many steps a killed run repeats; 0: no additional ones. On
    SIGTERM the run saves another and exits with status 143 (128 + SIGTERM), as if the signal had killed it."""
    log_steps: Annotated[int, Range(1, MOST_STEPS)] = 20
    """Steps per training record in metrics.jsonl, which holds their means."""
    track: Literal["wandb", "mlflow"] | None = None
    """Also send settings and metrics to Weights & Biases or MLflow, which their environment variables configure
    (WANDB_MODE=offline, MLFLOW_TRACKING_URI); default: neither."""
    keep: Annotated[int, Range(1, 1_000_000)] = 3
    """Number of latest checkpoints to keep, in addition to the best one."""
    report: bool = True
    """Write report.html at the end of the run: results, curves, mistakes and attention on one page."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of activations and of the parameters in matrix products; master parameters are always float32."""
    remat: Literal["none", "dots", "full"] = "none"
    """Activations recomputed in the backward pass to save memory: none, all but the outputs of linear layers (dots), or
    all (full)."""
    scan_blocks: bool = False
    """Run equal blocks as one loop, which compiles faster; parameters and checkpoints stay the same."""
    attention: Literal["auto", "plain", "fused"] = "auto"
    """How attention is computed: by its whole map (plain), without storing the map (fused), or as suits the number of
    tokens."""
    mesh: str | None = None
    """Number of devices along each axis, as in `data=4,fsdp=2,tensor=1`: `data` and `fsdp` split the batch, `fsdp` and
    `tensor` the state, `tensor` each feed-forward; default: all devices on `data`."""
    tpu: bool = False
    """Require TPUs, connect all hosts, and compute in bfloat16 on all devices."""
    coordinator: str | None = None
    """Address of process 0 as HOST:PORT, or `auto` to detect it (TPU pods, Slurm, Open MPI); default: a single process,
    or with `--tpu` all hosts of the TPU."""
    processes: Annotated[int, Range(1, 65536)] | None = None
    """Number of processes of the run, if `--coordinator` is an address; they share `--workdir` and each batch."""
    process: Annotated[int, Range(0, 65535)] | None = None
    """Index of this process, counted from 0, if `--coordinator` is an address."""
    compilation_cache: str | None = None
    """Folder for compiled programs, so that the next run of the same kind need not compile again; `none`: do not keep
    them; default: JAX_COMPILATION_CACHE_DIR, or vit-jax/programs in XDG_CACHE_HOME or ~/.cache, of at most 1 GiB."""
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    optim: Optim = dataclasses.field(default_factory=Optim)
    lora: Lora = dataclasses.field(default_factory=Lora)
    distill: Distill = dataclasses.field(default_factory=Distill)


# Options that do not affect the result, and may therefore change when a run is continued.
MAY_CHANGE = ("workdir", "save_steps", "log_steps", "eval_batch_size", "keep", "mesh", "remat", "tpu", "recipe")
MAY_CHANGE += ("coordinator", "processes", "process", "compilation_cache", "data.workers", "extend", "extend_lr")
MAY_CHANGE += ("attention", "report", "track", "data.placement", "data.pixels")  # the dataset stores the type itself


def without_former_defaults(config: Config) -> Config:
    """`config` with None for values that older versions stored as defaults and that mean the same."""
    data, distill = config.data, config.distill
    if data.eval_crop == 1.0 and data.crop_mode is None:
        data = dataclasses.replace(data, eval_crop=None)
    if distill.alpha == 0.5 and distill.features is None:
        distill = dataclasses.replace(distill, alpha=None)
    loss = None if config.loss == LOSSES[data.target][0] else config.loss
    optim = dataclasses.replace(config.optim, schedule=None)
    optim = optim if optim.shape == config.optim.shape else config.optim
    return dataclasses.replace(config, data=data, distill=distill, optim=optim, loss=loss)
