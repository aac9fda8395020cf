"""timm's config.json: which architecture, which arguments differ from it, and how images are prepared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.layers.check import pair
from vit_jax.pretrained.architectures import ARCHITECTURES
from vit_jax.pretrained.arguments import Arguments
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.printable import printable
from vit_jax.registry import create_model

# timm's keywords for what may differ from an architecture.
_KEYWORDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "dim",
    "depth": "depth",
    "num_heads": "heads",
    "num_classes": "num_classes",
    "in_chans": "channels",
}
_POOLS = {"token": "cls", "avg": "mean", "map": "map"}
_IN_TRAINING = ("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "dynamic_img_size")
_SIZES = ("image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "num_classes", "channels")


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
    given |= {key: value for key, value in config.get("model_args", {}).items() if key not in _IN_TRAINING}
    pool = given.pop("global_pool", None)
    if pool is not None and _POOLS.get(pool) != base.pool:
        raise ValueError(f"{file}: model_args has global_pool={printable(repr(pool), 60)}, unlike {name}")
    arguments = {_KEYWORDS[key]: value for key, value in given.items() if key in _KEYWORDS}
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    ratio = given.pop("mlp_ratio", None)
    if ratio is not None:
        arguments["mlp_dim"] = int(arguments.get("dim", base.dim) * ratio)
    elif "dim" in arguments:
        arguments["mlp_dim"] = arguments["dim"] * base.mlp_dim // base.dim
    if unknown := given.keys() - _KEYWORDS:
        key = min(unknown)
        value = printable(repr(given[key]), 60)
        raise ValueError(f"{file}: model_args has {printable(key)}={value}, which is not supported")
    return name, arguments


def write_config(model: Arguments, preprocess: Preprocessing) -> dict[str, Any]:
    """Return the content of config.json that timm reads for `model`.

    Raises:
        ValueError: if no architecture of timm's differs from `model` in sizes alone.
    """
    name, different = architecture_of(model)
    base = ARCHITECTURES[name]
    keywords = {ours: theirs for theirs, ours in _KEYWORDS.items() if ours != "num_classes"}
    arguments = {keywords[key]: value for key, value in different.items() if key in keywords}
    if model.mlp_dim * base["dim"] != base["mlp_dim"] * model.dim:
        arguments["mlp_ratio"] = model.mlp_dim / model.dim
    config = {"architecture": name, "num_classes": model.num_classes, "num_features": model.dim}
    if arguments:
        config["model_args"] = arguments
    config["pretrained_cfg"] = preprocess.to_config() | {
        "num_classes": model.num_classes,
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if model.distilled else "head",
    }
    return config


def architecture_of(model: Arguments) -> tuple[str, dict[str, Any]]:
    """The architecture of timm's that is most like `model`, and the sizes in which they differ.

    Raises:
        ValueError: if no architecture differs from `model` in sizes alone.
    """
    best = None
    for name, arguments in ARCHITECTURES.items():
        different = _differences(model, arguments)
        if different.keys() <= set(_SIZES) and (best is None or len(different) < len(best[1])):
            best = name, different
    if best is None:
        raise ValueError("no architecture of timm's has the blocks of this model: save it with to_torch")
    return best


def _differences(model: Arguments, arguments: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(Arguments) if field.name not in ("parent", "name")}
    found = {}
    for key, field in fields.items():
        value, expected = getattr(model, key), arguments.get(key, field.default)
        if key in ("dropout", "drop_path", "num_classes") or value == expected:
            continue
        if key in ("image_size", "patch_size") and pair(key, value) == pair(key, expected):
            continue
        found[key] = value
    return found
