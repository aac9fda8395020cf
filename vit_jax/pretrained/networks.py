"""timm's networks with published weights: the class and the arguments for each of timm's names."""

from typing import Any

from vit_jax.pretrained import architectures, convnext, levit, pit, swin
from vit_jax.pretrained.vision_transformer import VisionTransformer
from vit_jax.registry import argument_names, unknown

CLASSES = {
    VisionTransformer: architectures.ARCHITECTURES,
    swin.Swin: swin.PRESETS,
    convnext.ConvNeXt: convnext.PRESETS,
    levit.LeViT: levit.PRESETS,
    pit.PiT: pit.PRESETS,
}
NETWORKS = {name: (kind, arguments) for kind, presets in CLASSES.items() for name, arguments in presets.items()}
PRESETS = {name: arguments for name, (_, arguments) in NETWORKS.items()}
ARGUMENTS = sorted({name for kind in CLASSES for name in argument_names(kind)})
UNSUPPORTED = architectures.UNSUPPORTED | convnext.UNSUPPORTED


def find_network(name: str) -> tuple[type, dict[str, Any]]:
    """Return the class and the arguments of a network of timm's.

    Args:
        name: "vit_small_patch16_224", or with a tag, which is ignored: "vit_small_patch16_224.augreg_in1k".

    Raises:
        ValueError: if there is no such network, or it is not supported; the message says what is missing.
    """
    plain = check_supported(name)
    if plain not in NETWORKS:
        raise ValueError(unknown("preset of model 'timm'", plain, list(NETWORKS)))
    return NETWORKS[plain]


def check_supported(name: str) -> str:
    """Return timm's `name` without its tag. Raises ValueError for a network that is known not to be supported."""
    plain = name.partition(".")[0]
    if plain in UNSUPPORTED:
        raise ValueError(f"timm/{plain} is not supported: it has {UNSUPPORTED[plain]}")
    return plain
