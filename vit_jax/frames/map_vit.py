"""Base of classifiers whose tokens stay a map: checks of images, and the mean of the last map as features."""

from collections.abc import Sequence
from typing import ClassVar

from flax import linen as nn

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.layers.head import NormHead
from vit_jax.layers.shapes import Images, Maps, Output


class MapViT(nn.Module, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the last map (b, h, w, d).

    A variant makes the map in `maps`, and says what it asks of its arguments in `check`, of an image's size in
    `check_size`. `image_size` is for information, and checked at construction.
    """

    head_class: ClassVar[type[nn.Module]] = NormHead  # turns the mean of the map into logits
    num_classes: int
    channels: int = 3
    image_size: int | Sequence[int] | None = None

    def __post_init__(self):
        check_arguments(self)
        self.check()
        if self.image_size is not None:
            self.check_size(self.image_size)
        super().__post_init__()

    def check(self) -> None:
        """Raises ValueError for arguments that make no sense."""

    def check_size(self, size: int | Sequence[int], name: str = "image_size") -> None:
        """Raises ValueError for images that cannot be of this `size`, (height, width) or one number for both.

        `name` is that of what has the size.
        """

    def maps(self, images: Images, *, train: bool) -> Maps:
        """The last map of features, (b, h, w, d)."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        self.check_size(images.shape[1:3], "images")
        x = self.maps(images, train=train)
        return self.head_class(self.num_classes, name="head")(x.mean(axis=(1, 2))) if self.num_classes else x
