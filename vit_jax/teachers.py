"""Other names for torchvision's networks, which `vit_jax.create_model` builds, too."""

from typing import TYPE_CHECKING, Any

from vit_jax.registry import TORCHVISION, create_model, unknown

if TYPE_CHECKING:
    from flax import linen as nn


def list_teachers() -> list[str]:
    """Names that `create_teacher` takes, in alphabetical order."""
    return sorted(TORCHVISION)


def create_teacher(name: str, /, **kwargs: Any) -> "nn.Module":
    """Build one of torchvision's networks, as `vit_jax.create_model` does.

    Args:
        name: one of `list_teachers()`.
        **kwargs: arguments of the network, such as `num_classes`, 1000 by default.

    Raises:
        ValueError: for an unknown name or argument (the message lists similar names), or an invalid value.
    """
    if name not in TORCHVISION:
        raise ValueError(unknown("teacher", name, list_teachers()))
    return create_model(name, **kwargs)
