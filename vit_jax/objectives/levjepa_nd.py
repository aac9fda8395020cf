"""LeVJEPA for arrays with any number of axes: noisy copies with different dropped patches are pulled together.

Source: Kuhn et al., arXiv:2608.27395; SIGReg: Balestriero and LeCun 2025, arXiv:2511.08544.
Upstream: `LeVJEPAND` in vit_pytorch/levjepa_nd.py.
Differs from upstream: without an augmentation, views differ by noise (upstream: they are equal); the encoder is any
model that returns features; views of different arrays are not mixed (upstream mixes them, as in its LeVJEPA;
`mix_images=True` does so too).
Differs from the paper: any number of axes (paper: video); views are not cropped.
Axes: b batch, v views (the source first), c channels.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.objectives import levjepa


@dataclasses.dataclass(frozen=True)
class LeVJEPAND(levjepa.ViewsJEPA):
    """Squared distance of `num_target_aug_views` target views from the source view, plus SIGReg of each view.

    The arguments of `ViewsJEPA`, and:

    Args:
        num_target_aug_views: number of target views.
        noise: standard deviation of the noise that is added by default.
        augment_src: makes the source view: a function from a key and an array (*shape, c) to an array of that shape.
        augment_tgt: the same for target views.

    Raises:
        ValueError: for invalid values, and for an encoder with classes.
    """

    num_target_aug_views: int = 1
    noise: float = 0.1
    augment_src: Callable[[Array, Array], Array] | None = None
    augment_tgt: Callable[[Array, Array], Array] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.num_target_aug_views < 1:
            raise ValueError(f"num_target_aug_views={self.num_target_aug_views}: expected at least 1")
        if self.noise < 0:
            raise ValueError(f"noise={self.noise}: expected 0 or more")

    def make_views(self, key: Array, images: Float[Array, "b *shape c"]) -> list[Array]:
        keys = jax.random.split(key, (1 + self.num_target_aug_views, len(images)))
        noisy = lambda key, x: x + self.noise * jax.random.normal(key, x.shape, x.dtype)
        source, target = self.augment_src or noisy, self.augment_tgt or noisy
        views = [jax.vmap(source if i == 0 else target)(keys[i], images) for i in range(len(keys))]
        return [jnp.stack(views, axis=1)]
