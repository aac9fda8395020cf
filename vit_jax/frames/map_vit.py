"""Base of classifiers whose tokens keep the form of a feature map. The head reads the mean of the last map."""

from collections.abc import Sequence
from typing import ClassVar

from flax import linen as nn

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers.head import NormHead
from vit_jax.layers.shapes import Images, Maps, Output


class MapViT(nn.Module, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last map (b, h, w, d).

    A subclass computes the last map in `maps`, validates its arguments in `check`, and an image's size in `check_size`.
    `image_size` is optional and only used to check at construction that images of this size fit. `drop_path` is the
    rate of stochastic depth in the last block of the last stage, which rises linearly from 0 in the first.
    """

    head_class: ClassVar[type[nn.Module]] = NormHead  # turns the mean of the map into logits
    num_classes: int
    channels: int = 3
    image_size: int | Sequence[int] | None = None
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        self.check()
        if self.image_size is not None:
            self.check_size(self.image_size)
        super().__post_init__()

    def check(self) -> None:
        """Raise ValueError for invalid arguments."""

    def check_size(self, size: int | Sequence[int], name: str = "image_size") -> None:
        """Raise ValueError if the model cannot take images of this `size`, (height, width) or one number for both.

        `name` is the name of the argument in the error message.
        """

    def maps(self, images: Images, *, train: bool) -> Maps:
        """The last feature map, (b, h, w, d)."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        self.check_size(images.shape[1:3], "images")
        x = self.maps(images, train=train)
        return self.head_class(self.num_classes, name="head")(x.mean(axis=(1, 2))) if self.num_classes else x
