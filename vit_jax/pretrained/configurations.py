"""From the `config.json` of Hugging Face's transformers to the arguments of `VisionTransformer`.

Reference: transformers 5.24. Published files may leave out what is the default of their class, therefore the defaults
are here, too.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_jax.pretrained.rotary import Rotary
from vit_jax.printable import printable

Config = Mapping[str, Any]
Arguments = dict[str, Any]


class Family(NamedTuple):
    """Configurations with one `model_type`.

    Args:
        layout: layout of the weights, a name of `publishers.LAYOUTS`.
        defaults: values of keys that a configuration leaves out.
        arguments: a function from a configuration to arguments other than sizes.
        encoders: names of classes whose output is tokens; the first is the default.
        classifiers: names of classes whose output is logits.
    """

    layout: str
    defaults: Config
    arguments: Callable[[Config], Arguments]
    encoders: tuple[str, ...]
    classifiers: tuple[str, ...] = ()


def arguments_of(config: Config) -> tuple[Arguments, str]:
    """Return the arguments of `VisionTransformer` and the layout of the weights, for the contents of a `config.json`.

    For CLIP and SigLIP the network is the vision tower; CLIP's projection, if the file has it, is the head.

    Raises:
        ValueError: for an unknown `model_type` and for values that are not supported.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise _unsupported("model_type", kind, f"one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    tower = _dict(config, "vision_config") | _dict(config, "vision_config_dict")  # in the configuration of two towers
    tower = {key: value for key, value in tower.items() if key in family.defaults and key != "projection_dim"}
    config = {**family.defaults, **config, **tower}
    config["architectures"] = config.get("architectures") or [family.encoders[0]]
    if config["architectures"][0] not in family.encoders + family.classifiers:
        expected = f"one of {', '.join(family.encoders + family.classifiers)}"
        raise _unsupported("architectures", config["architectures"], expected)
    classes = _labels(config) if config["architectures"][0] in family.classifiers else 0
    arguments = _common(config) | dict(num_classes=classes) | family.arguments(config)
    return arguments, arguments.pop("layout", family.layout)


def _unsupported(key: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"config.json: {key}={printable(repr(value))}: expected {expected}")


def _dict(config: Config, key: str) -> Config:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise _unsupported(key, value, "an object")
    return dict(value)


def _one_of(config: Config, key: str, *values: Any) -> Any:
    if config[key] not in values:
        raise _unsupported(key, config[key], " or ".join(map(repr, values)))
    return config[key]


def _number(config: Config, key: str, kind: Any = int | float, expected: str = "a number") -> int | float:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, kind) or not value >= 0:
        raise _unsupported(key, value, expected)
    return value


def _integer(config: Config, key: str) -> int:
    return _number(config, key, int, "an integer")


def _sides(config: Config, key: str) -> int | tuple[int, ...]:
    value = config[key]
    return tuple(value) if isinstance(value, list) else _integer(config, key)


def _labels(config: Config) -> int:
    """The number of classes; a configuration for two classes with default names leaves them out."""
    return len(_dict(config, "id2label")) or _integer({"num_labels": 2, **config}, "num_labels")


def _common(config: Config) -> Arguments:
    return dict(
        image_size=_sides(config, "image_size"),
        patch_size=_sides(config, "patch_size"),
        channels=_integer(config, "num_channels"),
        dim=_integer(config, "hidden_size"),
        depth=_integer(config, "num_hidden_layers"),
        heads=_integer(config, "num_attention_heads"),
        mlp_dim=_integer(config, "intermediate_size"),
        epsilon=_number(config, "layer_norm_eps"),
        activation=_activation(config),
        qkv_bias="qkv" if _one_of(config, "qkv_bias", True, False) else "",
        antialias=False,
    )


def _activation(config: Config) -> str:
    names = dict(silu="swiglu") if config.get("use_gated_mlp") else ACTIVATIONS
    return names[_one_of(config, "hidden_act", *names)]


def _vit(config: Config) -> Arguments:
    return {}


def _ijepa(config: Config) -> Arguments:
    return dict(class_token=False, pool="mean")


def _deit(config: Config) -> Arguments:
    if config["architectures"][0].endswith("WithTeacher"):
        return dict(distilled=True, layout="transformers_deit_teacher")
    return dict(registers=1)  # which the distillation token is without a head of its own


def _dinov2(config: Config) -> Arguments:
    hidden = int(_integer(config, "hidden_size") * _number(config, "mlp_ratio"))
    swiglu = dict(activation="swiglu", mlp_dim=(hidden * 2 // 3 + 7) // 8 * 8)
    return dict(
        registers=_integer({"num_register_tokens": 0, **config}, "num_register_tokens"),
        layer_scale=(_number(config, "layerscale_value"),) * 2,
    ) | (swiglu if config["use_swiglu_ffn"] else dict(mlp_dim=hidden))


def _dinov3(config: Config) -> Arguments:
    biases = "".join(letter for letter, part in zip("qkv", _PARTS, strict=True) if config[f"{part}_bias"])
    if biases not in ("qkv", "qv", ""):
        raise _unsupported("query_bias, key_bias, value_bias", biases, "those of all, of query and value, or none")
    _one_of(config, "mlp_bias", config["proj_bias"])
    return dict(
        positions=False,
        rotary=Rotary("dinov3", _number(config, "rope_theta")),
        registers=_integer(config, "num_register_tokens"),
        layer_scale=(_number(config, "layerscale_value"),) * 2,
        qkv_bias=biases,
        proj_bias=config["proj_bias"],
    )


def _siglip(config: Config) -> Arguments:
    if config["architectures"][0].endswith("ForImageClassification"):
        return dict(class_token=False, pool="mean", layout="transformers_siglip_classifier")
    return dict(class_token=False, pool="map" if config["vision_use_head"] else "mean")


def _siglip2(config: Config) -> Arguments:
    side = math.isqrt(_integer(config, "num_patches"))  # of the square grid that the positions are for
    return _siglip(config) | dict(image_size=side * _integer(config, "patch_size"))


def _clip(config: Config) -> Arguments:
    projected = config["architectures"][0] in ("CLIPModel", "CLIPVisionModelWithProjection")
    return dict(pre_norm=True, num_classes=_integer(config, "projection_dim") if projected else 0)


ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_PARTS = ("query", "key", "value")

BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, num_channels=3)
BASE |= dict(image_size=224, patch_size=16, hidden_act="gelu", layer_norm_eps=1e-12, qkv_bias=True)
DINOV2 = BASE | dict(patch_size=14, layer_norm_eps=1e-6, mlp_ratio=4, layerscale_value=1.0, use_swiglu_ffn=False)
DINOV2_REGISTERS = DINOV2 | dict(patch_size=16, num_register_tokens=4)
DINOV3 = BASE | dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536, layer_norm_eps=1e-5)
DINOV3 |= dict(query_bias=True, key_bias=False, value_bias=True, proj_bias=True, mlp_bias=True, use_gated_mlp=False)
DINOV3 |= dict(num_register_tokens=0, layerscale_value=1.0, rope_theta=100.0)
SIGLIP = BASE | dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, vision_use_head=True)
SIGLIP2 = SIGLIP | dict(num_patches=256)
CLIP = BASE | dict(patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=512)

SIGLIP_CLASSIFIER = ("SiglipForImageClassification",)
FAMILIES = {
    "vit": Family(
        "transformers_vit", BASE, _vit, ("ViTModel", "ViTForMaskedImageModeling"), ("ViTForImageClassification",)
    ),
    "vit_mae": Family("transformers_vit", BASE, _vit, ("ViTMAEModel", "ViTMAEForPreTraining")),
    "vit_msn": Family(
        "transformers_vit", BASE | dict(layer_norm_eps=1e-6), _vit, ("ViTMSNModel",), ("ViTMSNForImageClassification",)
    ),
    "ijepa": Family("transformers_vit", BASE, _ijepa, ("IJepaModel",), ("IJepaForImageClassification",)),
    "deit": Family(
        "transformers_deit",
        BASE,
        _deit,
        ("DeiTModel", "DeiTForMaskedImageModeling"),
        ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
    ),
    "dinov2": Family("transformers_dinov2", DINOV2, _dinov2, ("Dinov2Model", "Dinov2Backbone")),
    "dinov2_with_registers": Family(
        "transformers_dinov2",
        DINOV2_REGISTERS,
        _dinov2,
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersBackbone"),
    ),
    "dinov3_vit": Family("transformers_dinov3", DINOV3, _dinov3, ("DINOv3ViTModel", "DINOv3ViTBackbone")),
    "siglip": Family("transformers_siglip", SIGLIP, _siglip, ("SiglipModel",), SIGLIP_CLASSIFIER),
    "siglip_vision_model": Family("transformers_siglip", SIGLIP, _siglip, ("SiglipVisionModel",), SIGLIP_CLASSIFIER),
    "siglip2": Family("transformers_siglip", SIGLIP2, _siglip2, ("Siglip2Model",)),
    "siglip2_vision_model": Family("transformers_siglip", SIGLIP2, _siglip2, ("Siglip2VisionModel",)),
    "clip": Family("transformers_clip", CLIP, _clip, ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection")),
    "clip_vision_model": Family("transformers_clip", CLIP, _clip, ("CLIPVisionModel", "CLIPVisionModelWithProjection")),
}
