"""timm's networks with published weights, and the arguments of their constructors."""

import contextlib
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("torch")
import tests.upstream  # noqa: F401, which makes torchvision importable, and so timm

timm = pytest.importorskip("timm")
from timm.models import convnext, deit, eva, levit, pit, swin_transformer, vision_transformer  # noqa: E402

FILES = (vision_transformer, deit, eva)  # of vision transformers
OTHER_FILES = (convnext, levit, pit, swin_transformer)
SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "swiglu_align_to")
SETTINGS = ("pretrained_filter_fn", "feature_cfg", "pretrained_strict", "dynamic_img_size", "rope_rescale_coords")

CONFIGS = {
    f"{name}.{tag}": config
    for file in FILES
    for name, configs in file.default_cfgs.items()
    for tag, config in configs.cfgs.items()
    if config.has_weights
}
NAMES = sorted({tag.partition(".")[0] for tag in CONFIGS})


def constructor_arguments(name: str) -> dict[str, Any]:
    """The arguments with which timm builds `name`, and its class as "class"; those that change no result left out."""
    calls = []
    note = lambda model_class, variant, pretrained, **kwargs: calls.append({"class": model_class, **kwargs})
    with contextlib.ExitStack() as stack:
        for file in FILES + OTHER_FILES:
            stack.enter_context(mock.patch.object(file, "build_model_with_cfg", note))
        timm.model_entrypoint(name)()
    return {key: value for key, value in calls[0].items() if key not in SETTINGS}


def facts(name: str) -> str:
    """The arguments of timm's constructor other than sizes, in an order of their own."""
    arguments = constructor_arguments(name)
    return str(sorted((key, str(value)) for key, value in arguments.items() if key not in SIZES))
