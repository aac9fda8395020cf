"""LeVJEPA: local views of a video are pulled towards its global view, and SIGReg prevents collapse.

Source: Kuhn et al., arXiv:2608.27395; SIGReg: Balestriero and LeCun 2025, arXiv:2511.08544.
Upstream: `LeVJEPA` in vit_pytorch/levjepa.py.
Differs from upstream: images are videos of one frame; views are drawn for each video, the same for all its frames;
local views may have another size; the encoder is any model that returns features, and if it cannot drop patches, all
are used; views of different videos are not mixed: upstream concatenates all global views and all local views, then
reshapes the result as if the views of each video were adjacent (`mix_images=True` does so too).
Differs from the paper: unknown; only upstream's code was compared.
Axes: b batch, v views (the global one first), h w height and width, c channels, d features, k projected features,
m directions.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.batch_norm import BatchNorm
from vit_jax.layers.check import one_of
from vit_jax.layers.dense import Dense
from vit_jax.layers.gelu import gelu
from vit_jax.layers.sigreg import random_directions, sigreg_loss
from vit_jax.objectives.features import check_encoder, pooled
from vit_jax.objectives.pretrain import Pretraining
from vit_jax.objectives.protocol import Tree
from vit_jax.objectives.views import View, make_views

SIGREG = dict(num_proj=1024, knots=17)  # defaults of `sigreg_loss_kwargs`


class StandardizedDense(nn.Module):
    """Linear layer whose weights have mean 0 and variance 1 for each output (Qiao et al. 2019, arXiv:1903.10520)."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        kernel = self.param("kernel", init, (x.shape[-1], self.features)).astype(jnp.float32)
        kernel = kernel - kernel.mean(axis=0, keepdims=True)
        variance = jnp.square(kernel).mean(axis=0, keepdims=True)
        kernel = (kernel / jnp.sqrt(jnp.maximum(variance, 1e-4))).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x @ kernel + jnp.expand_dims(bias, range(x.ndim - 1))


class Compared(nn.Module):
    """An encoder, a projector and the loss: views of images to losses (b,). The fields are those of `ViewsJEPA`."""

    encoder: nn.Module
    num_classes_K: int
    projection_hidden: int
    use_batch_norm: bool
    use_weight_standardization: bool
    invariance_loss_weight: float
    sigreg_loss_weight: float
    knots: int
    mix_images: bool

    def setup(self):
        linear = StandardizedDense if self.use_weight_standardization else Dense
        self.fc1, self.fc2 = linear(self.projection_hidden), Dense(self.num_classes_K)
        self.norm = BatchNorm() if self.use_batch_norm else nn.RMSNorm(epsilon=float(np.finfo(np.float32).eps))

    def project(self, views: Sequence[Array], kept: Sequence[Array | None], *, train: bool) -> Float[Array, "b v k"]:
        """Return the projections of the views of all groups."""
        batch, features = len(views[0]), []
        for group, patches in zip(views, kept, strict=True):
            keywords = {} if patches is None else dict(kept=patches)
            out = self.encoder(group.reshape(-1, *group.shape[2:]), train=train, **keywords)
            features.append(pooled(self.encoder, out).reshape(batch, group.shape[1], -1))
        hidden = self.fc1(jnp.concatenate(features, axis=1))
        return self.fc2(gelu(self.norm(hidden, train=train) if self.use_batch_norm else self.norm(hidden)))

    def __call__(
        self,
        images: Float[Array, "b *shape c"],
        *,
        views: Sequence[Array],
        kept: Sequence[Array | None],
        directions: Float[Array, "m k"],
        weights: Float[Array, "b"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b"]:
        """Return the loss of each image.

        Args:
            images: unused.
            views: groups (b, v, *shape, c) of views of the same size. The other views are pulled towards the first view
                of the first group.
            kept: for each group, the indices of the patches to use, (b v, p), or None for all.
            directions: directions of SIGReg.
            weights: weight of each image in SIGReg.
            train: training mode of the encoder and of batch norm.
        """
        x = self.project(views, kept, train=train).astype(jnp.float32)
        if self.mix_images:
            x = jnp.concatenate([x[:, 0], x[:, 1:].reshape(-1, x.shape[-1])]).reshape(x.shape)
        apart = jnp.square(x - x[:, :1]).mean(axis=(1, 2))
        of_view = lambda x: sigreg_loss(x[:, None], directions, (0, 3), self.knots, weights)
        count = len(x) if weights is None else weights.sum()
        shape = jax.vmap(of_view, in_axes=1)(x).mean() * count * 2
        return self.invariance_loss_weight * apart + self.sigreg_loss_weight * shape

    torch_rules = (("fc1", "projector.0"), ("norm", "projector.1"), ("fc2", "projector.3"))


@dataclasses.dataclass(frozen=True)
class ViewsJEPA(Pretraining):
    """Base of `LeVJEPA` and `LeVJEPAND`: projector, losses and dropped patches. Subclasses define the views.

    Args:
        encoder: a model that returns features.
        num_classes_K: width of the projection.
        projection_hidden: hidden width of the projector.
        drop_ratio: share of the patches to drop in training; by default 0.95 if the encoder can drop patches, else 0.
        use_batch_norm: use batch norm in the projector, else RMSNorm.
        use_weight_standardization: standardise the weights of the projector's first layer.
        invariance_loss_weight: weight of the squared distance of views.
        sigreg_loss_weight: weight of SIGReg.
        sigreg_loss_kwargs: `num_proj` (directions) and `knots` of SIGReg.
        mix_images: compare views of different images, as upstream does by mistake.
        mean: mean of each channel with which images are normalised.
        std: standard deviation of each channel with which images are normalised.

    Raises:
        ValueError: for invalid values, and for an encoder with classes.
    """

    num_classes_K: int = 256
    projection_hidden: int = 256
    drop_ratio: float | None = None
    use_batch_norm: bool = True
    use_weight_standardization: bool = False
    invariance_loss_weight: float = 1.0
    sigreg_loss_weight: float = 0.02
    sigreg_loss_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mix_images: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        check_encoder(self.encoder)
        for name in self.sigreg_loss_kwargs:
            one_of("sigreg_loss_kwargs", name, tuple(SIGREG))
        drops = hasattr(self.encoder, "draw_kept")
        if self.drop_ratio is None:
            object.__setattr__(self, "drop_ratio", DROP_RATIO if drops else 0.0)
        expected = "at least 0 and below 1" if drops else f"0, as {type(self.encoder).__name__} keeps all its patches"
        if not 0 <= self.drop_ratio < 1 or (self.drop_ratio and not drops):
            raise ValueError(f"drop_ratio={self.drop_ratio}: expected {expected}")
        for name in ("num_classes_K", "projection_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    @property
    def sigreg(self) -> dict[str, int]:
        """The number of directions, and of knots of the integral."""
        return SIGREG | dict(self.sigreg_loss_kwargs)

    @property
    def model(self) -> nn.Module:
        return Compared(
            self.encoder,
            self.num_classes_K,
            self.projection_hidden,
            self.use_batch_norm,
            self.use_weight_standardization,
            self.invariance_loss_weight,
            self.sigreg_loss_weight,
            self.sigreg["knots"],
            self.mix_images,
        )

    def make_views(self, key: Array, images: Array) -> list[Array]:
        """Return groups of views (b, v, *shape, c)."""
        raise NotImplementedError

    def draw(self, key: Array, images: Array) -> dict[str, Any]:
        views_key, kept_key, directions_key = jax.random.split(key, 3)
        views, kept = self.make_views(views_key, images), []
        for i, group in enumerate(views):
            shape = (group.shape[0] * group.shape[1], *group.shape[2:])
            draw = lambda key: self.encoder.draw_kept(key, shape, self.drop_ratio)  # noqa: B023
            kept.append(draw(jax.random.fold_in(kept_key, i)) if self.drop_ratio else None)
        directions = random_directions(directions_key, self.num_classes_K, self.sigreg["num_proj"])
        return {"views": views, "kept": kept, "directions": directions}

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        """Return the loss of each image, without dropping patches.

        SIGReg, one number for all images with a "mask" of 1, is added to each.
        """
        drawn = self.draw(jax.random.key(0), batch["image"]) | {"weights": batch.get("mask")}
        return {"loss": self.model.apply({"params": params, **extras}, batch["image"], **drawn)}


DROP_RATIO = 0.95


@dataclasses.dataclass(frozen=True)
class LeVJEPA(ViewsJEPA):
    """Squared distance of all views from the global one, plus SIGReg of each view; for images (b, *frames, h, w, c).

    The global view has the size of the images. The arguments of `ViewsJEPA`, and:

    Args:
        num_local_views: number of local views.
        local_size: (height, width) of local views in pixels; None for the size of the images.
        local_crop_scale: least and largest share of the image that a local view shows.
        global_crop_scale: least and largest share of the image that the global view shows.
        crop_ratio_range: least and largest width over height of a crop.
        flip: probability of a horizontal flip of a local view.
        local_augment_fn: replaces flips and colours of local views: a function from a key and pixels
            (*frames, h, w, c) in 0..1 to such pixels.
        global_augment_fn: the same for the global view, which otherwise is only cropped.

    Raises:
        ValueError: for invalid values, and for an encoder with classes.
    """

    num_local_views: int = 4
    local_size: tuple[int, int] | None = None
    local_crop_scale: tuple[float, float] = (0.02, 0.4)
    global_crop_scale: tuple[float, float] = (0.8, 1.0)
    crop_ratio_range: tuple[float, float] = (0.75, 1.3333)
    flip: float = 0.5
    local_augment_fn: Callable[[Array, Array], Array] | None = None
    global_augment_fn: Callable[[Array, Array], Array] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.num_local_views < 1:
            raise ValueError(f"num_local_views={self.num_local_views}: expected at least 1")

    def make_views(self, key: Array, images: Array) -> list[Array]:
        plain = dict(flip=0.0, jittered=0.0, grey=0.0, blurred=0.0)
        crop, colours = dict(ratio=self.crop_ratio_range, cubic=True), dict(jitter=(0.4, 0.4, 0.2, 0.1), jittered=0.8)
        whole = View(self.global_crop_scale, look=self.global_augment_fn, **crop, **plain)
        looks = dict(look=self.local_augment_fn, size=self.local_size, flip=self.flip, blurred=0.0)
        part = View(self.local_crop_scale, **crop, **colours, **looks)
        keys = jax.random.split(key)
        return [
            make_views(key, images, view, count, self.mean, self.std)
            for key, view, count in zip(keys, (whole, part), (1, self.num_local_views), strict=True)
        ]
