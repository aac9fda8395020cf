"""timm's config.json: which architecture, which arguments differ from it, and how images are prepared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.layers.check import pair
from vit_jax.pretrained.network import TimmNetwork
from vit_jax.pretrained.networks import CLASSES
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.printable import printable
from vit_jax.registry import argument_names, create_model

# timm's keywords for what may differ from an architecture, besides the network's own.
_KEYWORDS = {"num_classes": "num_classes", "in_chans": "channels"}
_IN_TRAINING = ("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "dynamic_img_size")
_OURS_IN_TRAINING = ("dropout", "drop_path", "attention_dropout", "stochastic_depth_prob")


def read_config(config: Mapping[str, Any], file: str) -> tuple[str, dict[str, Any]]:
    """Return timm's name of the architecture, and the arguments that differ from it.

    Args:
        config: content of timm's config.json.
        file: name of the file in error messages.

    Raises:
        ValueError: if the architecture or an argument is not supported.
    """
    name = config["architecture"]
    base = create_model(f"timm/{name}")
    given = {key: config[key] for key in ("num_classes",) if key in config}
    stated = config.get("model_args") or {}
    if not isinstance(stated, Mapping):
        raise ValueError(f"{file}: model_args={printable(repr(stated), 60)}: expected an object")
    given |= {key: value for key, value in stated.items() if key not in _IN_TRAINING}
    pool = given.pop("global_pool", base.timm_pool)
    if pool != base.timm_pool:
        raise ValueError(f"{file}: model_args has global_pool={printable(repr(pool), 60)}, unlike {name}")
    keywords = _KEYWORDS | base.timm_keywords
    arguments = {keywords[key]: value for key, value in given.items() if key in keywords}
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    for key, value in (given | {"mlp_ratio": given.get("mlp_ratio", 1)}).items():
        numbers = value if isinstance(value, list) else [value]
        if key in (*keywords, "mlp_ratio") and not all(type(number) in (int, float) for number in numbers):
            raise ValueError(f"{file}: {printable(key)}={printable(repr(value), 60)}: expected numbers")
    if hasattr(base, "mlp_dim"):
        ratio = given.pop("mlp_ratio", None)
        if ratio is not None:
            arguments["mlp_dim"] = int(arguments.get("dim", base.dim) * ratio)
        elif "dim" in arguments:
            arguments["mlp_dim"] = arguments["dim"] * base.mlp_dim // base.dim
    if unknown := given.keys() - keywords:
        key = min(unknown)
        value = printable(repr(given[key]), 60)
        raise ValueError(f"{file}: model_args has {printable(key)}={value}, which is not supported")
    return name, arguments


def write_config(model: TimmNetwork, preprocess: Preprocessing) -> dict[str, Any]:
    """Return the content of config.json that timm reads for `model`.

    Raises:
        ValueError: if no architecture of timm's differs from `model` in sizes alone.
    """
    name, different = _architecture_of_sizes(model)
    base = CLASSES[type(model)][name]
    keywords = {ours: theirs for theirs, ours in (_KEYWORDS | model.timm_keywords).items()}
    arguments = {keywords[key]: value for key, value in different.items() if key in keywords}
    if hasattr(model, "mlp_dim") and model.mlp_dim * base["dim"] != base["mlp_dim"] * model.dim:
        arguments["mlp_ratio"] = model.mlp_dim / model.dim
    config = {"architecture": name, "num_classes": model.num_classes, "num_features": model.num_features}
    if arguments:
        config["model_args"] = arguments
    config["pretrained_cfg"] = preprocess.to_config() | {
        "num_classes": model.num_classes,
        "fixed_input_size": hasattr(model, "image_size"),
        "first_conv": model.timm_first,
        "classifier": model.timm_heads[0] if len(model.timm_heads) == 1 else list(model.timm_heads),
    }
    return config


def architecture_of(model: TimmNetwork) -> tuple[str, dict[str, Any]]:
    """The architecture of timm's that is most like `model`, and the arguments in which they differ."""
    found = {name: _differences(model, arguments) for name, arguments in CLASSES[type(model)].items()}
    name = min(found, key=lambda name: len(found[name]))
    return name, found[name]


def _architecture_of_sizes(model: TimmNetwork) -> tuple[str, dict[str, Any]]:
    """As `architecture_of`, if they differ in sizes alone. Raises ValueError if no architecture does."""
    sizes = {*_KEYWORDS.values(), *model.timm_keywords.values(), "mlp_dim"}
    found = {name: _differences(model, arguments) for name, arguments in CLASSES[type(model)].items()}
    found = {name: different for name, different in found.items() if different.keys() <= sizes}
    if not found:
        raise ValueError("no architecture of timm's has the blocks of this model: save it with to_torch")
    name = min(found, key=lambda name: len(found[name]))
    return name, found[name]


def _differences(model: TimmNetwork, arguments: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(model)}
    found = {}
    for key in argument_names(type(model)):
        value, expected = getattr(model, key), arguments.get(key, defaults[key])
        if key in (*_OURS_IN_TRAINING, "num_classes", "antialias") or value == expected:
            continue
        if key in ("image_size", "patch_size") and pair(key, value) == pair(key, expected):
            continue
        found[key] = value
    return found
