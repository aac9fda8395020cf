"""torchvision's classification networks, as teachers with published weights or as models to train.

`create_teacher("resnet50", num_classes=10)` builds any of them by torchvision's name. Their interface is that of
`vit_jax.create_model`: images (b, H, W, c) to logits (b, k), or with `num_classes=0` to pooled features.
`vit_jax.convert` converts torchvision's state dicts from and to their variables.
"""

import dataclasses
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vit_jax.registry import check_keywords, unknown

if TYPE_CHECKING:
    from flax import linen as nn

# "file:Class", and the names in PRESETS of the file. Tests always run the first name of a family.
FAMILIES = {
    "alexnet:AlexNet": "alexnet",
    "convnext:ConvNeXt": "convnext_tiny convnext_small convnext_base convnext_large",
    "densenet:DenseNet": "densenet121 densenet161 densenet169 densenet201",
    "efficientnet:EfficientNet": (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 "
        "efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l"
    ),
    "googlenet:GoogLeNet": "googlenet",
    "inception:InceptionV3": "inception_v3",
    "maxvit:MaxVit": "maxvit_t",
    "mnasnet:MNASNet": "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    "mobilenet_v2:MobileNetV2": "mobilenet_v2",
    "mobilenet_v3:MobileNetV3": "mobilenet_v3_small mobilenet_v3_large",
    "regnet:RegNet": (
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf "
        "regnet_y_128gf regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf "
        "regnet_x_32gf"
    ),
    "resnet:ResNet": (
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d "
        "wide_resnet50_2 wide_resnet101_2"
    ),
    "shufflenet_v2:ShuffleNetV2": "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    "squeezenet:SqueezeNet": "squeezenet1_1 squeezenet1_0",
    "swin:SwinTransformer": "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
    "vgg:VGG": "vgg11_bn vgg13_bn vgg16_bn vgg19_bn vgg11 vgg13 vgg16 vgg19",
    "vit:VisionTransformer": "vit_b_32 vit_b_16 vit_l_16 vit_l_32 vit_h_14",
}
TEACHERS = {name: family for family, names in FAMILIES.items() for name in names.split()}


def list_teachers() -> list[str]:
    """Names that `create_teacher` takes, in alphabetical order."""
    return sorted(TEACHERS)


def create_teacher(name: str, /, **kwargs: Any) -> "nn.Module":
    """Build one of torchvision's networks.

    Args:
        name: one of `list_teachers()`.
        **kwargs: arguments of the network, such as `num_classes`, 1000 by default.

    Raises:
        ValueError: for an unknown name or argument (the message lists similar names), or an invalid value.
    """
    module, teacher_class = _find(name)
    check_keywords(name, teacher_class, kwargs := {**module.PRESETS[name], **kwargs})
    return teacher_class(**kwargs)


def teacher_arguments(name: str) -> list[str]:
    """Names of the arguments that the teacher `name` takes. Raises ValueError for an unknown name."""
    return [field.name for field in dataclasses.fields(_find(name)[1])]


def _find(name: str) -> tuple[ModuleType, type]:
    if name not in TEACHERS:
        raise ValueError(unknown("teacher", name, list_teachers()))
    file, _, class_name = TEACHERS[name].partition(":")
    module = importlib.import_module(f"vit_jax.teachers.{file}")
    return module, getattr(module, class_name)
