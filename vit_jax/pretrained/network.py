"""The base of networks that take timm's weights."""

from collections.abc import Callable
from typing import ClassVar

from vit_jax.pretrained.layouts import State


class TimmNetwork:
    """A network that takes timm's weights, and its facts for `load_pretrained` and `save_pretrained`.

    Its conversion rules are for timm's state dicts.

    Attributes:
        timm_keywords: timm's keywords of sizes in a config.json, and the arguments here.
        timm_heads: names of the linear heads in a state dict.
        timm_first: name of the first convolution in a state dict.
        timm_pool: timm's name of how the head pools.
        num_features: width of the features that the heads read.
    """

    timm_keywords: ClassVar[dict[str, str]]
    timm_heads: ClassVar[tuple[str, ...]] = ("head.fc",)
    timm_first: ClassVar[str]
    timm_pool: ClassVar[str] = "avg"
    num_features: int

    def adapted(self, state: State, published: "TimmNetwork", notify: Callable[[str], None]) -> State:
        """Adapt a state dict to the image size of this network.

        Args:
            state: of `published`.
            published: the network whose weights these are.
            notify: called with lines about what is resampled.

        Raises:
            ValueError: if weights for one image size cannot be used at the other.
        """
        return state
