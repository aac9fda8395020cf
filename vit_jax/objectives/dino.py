"""DINO: a student predicts, from one view of an image, the output of its own moving average for another view.

Source: Caron et al. 2021, arXiv:2104.14294. Upstream: vit_pytorch/dino.py.
Differs from upstream: defaults, projector and pairs of views are the paper's (with `settings="upstream"` upstream's);
views are drawn for each sample, and colours change after the crop; the encoder is any model that returns features
(upstream: a layer of a model, selected by name); batch norms take their statistics over all views of one size, and the
moving average has its own.
Differs from the paper: the last layer is trained from the first step. `settings="small"`, for small images and short
runs, has fewer prototypes and local views than `settings="paper"`, a faster moving average, a constant teacher
temperature, larger crops, as small images have few pixels to lose, and neither blur nor solarization.
Axes: b batch, v views, h w height and width, c channels, d features, k prototypes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.check import one_of
from vit_jax.objectives.features import check_encoder
from vit_jax.objectives.pairs import mean_logits, mean_of_pairs, project
from vit_jax.objectives.pretrain import Pretraining
from vit_jax.objectives.projector import CosineProjector, Projected, Projector
from vit_jax.objectives.protocol import Tree
from vit_jax.objectives.views import draw_crops

_PAPER = dict(
    projection_hidden_size=2048,
    num_classes_K=65536,
    projection_layers=4,
    bottleneck_dim=256,
    student_temp=0.1,
    warmup_teacher_temp=0.04,
    teacher_temp=0.07,
    local_lower_crop_scale=0.05,
    local_upper_crop_scale=0.4,
    global_lower_crop_scale=0.4,
    num_local_views=8,
    moving_average_decay=0.996,
    final_moving_average_decay=1.0,
    center_moving_average_decay=0.9,
)
SETTINGS = {
    "paper": _PAPER,
    "small": _PAPER
    | dict(projection_hidden_size=256, num_classes_K=256, bottleneck_dim=64, num_local_views=4)
    | dict(local_lower_crop_scale=0.4, local_upper_crop_scale=0.8, global_lower_crop_scale=0.7)
    | dict(teacher_temp=0.04, moving_average_decay=0.98),
    "upstream": dict(
        projection_hidden_size=256,
        num_classes_K=65336,
        projection_layers=4,
        student_temp=0.9,
        teacher_temp=0.04,
        local_lower_crop_scale=0.05,
        local_upper_crop_scale=0.4,
        global_lower_crop_scale=0.5,
        num_local_views=2,
        moving_average_decay=0.9,
        center_moving_average_decay=0.9,
    ),
}

# For the first global view, the second one, and local views. The paper's values are those of its code.
_LOOK = dict(cubic=True, jitter=(0.4, 0.4, 0.2, 0.1), jittered=0.8, blur=(9, (0.1, 2.0)))
LOOKS = {
    "paper": (_LOOK | dict(blurred=1.0), _LOOK | dict(blurred=0.1, solarized=0.2), _LOOK | dict(blurred=0.5)),
    "small": (_LOOK | dict(blurred=0.0),) * 3,
    "upstream": ({},) * 3,
}


class Student(Projected):
    """The trained network; its moving average is the teacher."""

    torch_rules = (("encoder", "student_encoder.net"), ("projector", "student_encoder.projector"))
    torch_aliases = ((r"student_encoder\.net\.(.*)", r"net.\1"),)


@dataclasses.dataclass(frozen=True)
class Dino(Pretraining):
    """Cross-entropy between the outputs of teacher and student, over all pairs of different views of an image.

    Global views have the size of the images.

    Args:
        encoder: a model that returns features.
        settings: "paper", "small" or "upstream": the defaults of arguments that are None. "upstream" also has another
            projector, and shows the student only local views.
        projection_hidden_size: hidden width of the projector.
        num_classes_K: width of the projection: the number of prototypes.
        projection_layers: layers of the projector.
        bottleneck_dim: width of the projector before the prototypes, without effect for "upstream".
        student_temp: temperature of the student.
        teacher_temp: temperature of the teacher after the warm-up.
        warmup_teacher_temp: temperature of the teacher at the first step, from which it rises linearly; by default
            `teacher_temp`.
        warmup: share of the run in which that temperature rises.
        local_lower_crop_scale: least share of the image that a local view shows.
        local_upper_crop_scale: largest share of the image that a local view shows.
        global_lower_crop_scale: least share of the image that a global view shows.
        local_size: (height, width) of local views in pixels; None for the size of the images.
        num_local_views: number of local views.
        flip: probability of a horizontal flip.
        moving_average_decay: decay of the moving average at the first step.
        final_moving_average_decay: decay at the last step, to which it rises along a cosine; by default
            `moving_average_decay`.
        center_moving_average_decay: decay of the moving average of the teacher's outputs.
        augment_fn: replaces flips, colours and blur of the first global view and half of the local views: a function
            from a key and pixels (h, w, c) in 0..1 to such pixels.
        augment_fn2: the same for the second global view and the other local views.
        mean: mean of each channel with which images are normalised.
        std: standard deviation of each channel with which images are normalised.
        steps: length of the run in steps.

    Raises:
        ValueError: for invalid values, and for an encoder with classes.
    """

    settings: str = "small"
    projection_hidden_size: int | None = None
    num_classes_K: int | None = None
    projection_layers: int | None = None
    bottleneck_dim: int | None = None
    student_temp: float | None = None
    teacher_temp: float | None = None
    warmup_teacher_temp: float | None = None
    warmup: float = 0.3
    local_lower_crop_scale: float | None = None
    local_upper_crop_scale: float | None = None
    global_lower_crop_scale: float | None = None
    local_size: tuple[int, int] | None = None
    num_local_views: int | None = None
    flip: float = 0.5
    moving_average_decay: float | None = None
    final_moving_average_decay: float | None = None
    center_moving_average_decay: float | None = None
    augment_fn: Callable[[Array, Array], Array] | None = None
    augment_fn2: Callable[[Array, Array], Array] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    steps: int = 1

    centers: ClassVar[tuple[str, ...]] = ("center",)

    def __post_init__(self):
        check_encoder(self.encoder)
        one_of("settings", self.settings, tuple(SETTINGS))
        for name, value in SETTINGS[self.settings].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.warmup_teacher_temp is None:
            object.__setattr__(self, "warmup_teacher_temp", self.teacher_temp)
        if self.final_moving_average_decay is None:
            object.__setattr__(self, "final_moving_average_decay", self.moving_average_decay)
        check_numbers(self)
        if self.settings == "upstream" and self.num_local_views != 2:
            raise ValueError(f"num_local_views={self.num_local_views}: expected 2 with settings='upstream'")

    @property
    def upstream(self) -> bool:
        return self.settings == "upstream"

    def make_projector(self) -> nn.Module:
        """The projector applied to the encoder's features."""
        sizes = self.num_classes_K, self.projection_hidden_size, self.projection_layers
        return Projector(*sizes) if self.upstream else CosineProjector(*sizes, self.bottleneck_dim)

    @property
    def model(self) -> nn.Module:
        return Student(self.encoder, self.make_projector())

    def draw(self, key: Array, images: Array) -> dict[str, Array]:
        """Views of every image: "global" (b, 2, h, w, c) and "local" (b, v, h, w, c)."""
        looks = [dict(flip=self.flip) | look for look in LOOKS[self.settings]]
        return draw_crops(key, images, looks, self.num_local_views, self)

    def init(self, key: Array, images: Array) -> tuple[Tree, Tree]:
        variables = dict(self.model.init(key, images))
        params = variables.pop("params")
        extras = {"ema": jax.tree.map(jnp.copy, params), "step": jnp.zeros((), jnp.int32), **variables}
        if "batch_stats" in extras:
            extras["ema_batch_stats"] = jax.tree.map(jnp.copy, extras["batch_stats"])
        zeros = lambda: jnp.zeros(self.num_classes_K)
        return params, extras | {name: {"now": zeros(), "next": zeros()} for name in self.centers}

    def loss(
        self, params: Tree, extras: Tree, batch: Tree, rngs: Mapping[str, Array], train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        drawn = self.draw(rngs["objective"], batch["image"])
        losses, extras = self.compare(params, extras, drawn, rngs, train)
        loss = losses.mean()
        return loss, ({"loss": loss}, extras)

    def evaluate(self, params: Tree, extras: Tree, batch: Tree) -> dict[str, Array]:
        drawn = self.draw(jax.random.key(0), batch["image"])
        return {"loss": self.compare(params, extras, drawn, {}, train=False)[0]}

    def compare(
        self, params: Tree, extras: Tree, drawn: Mapping[str, Array], rngs: Mapping[str, Array], train: bool
    ) -> tuple[Float[Array, "b"], Tree]:
        """Return the loss of every image, given its views, and the extras of the next step."""
        shown = [drawn["local"]] if self.upstream else [drawn["global"], drawn["local"]]
        students, kept = project(self.model, params, extras, "batch_stats", shown, rngs, train)
        average = jax.lax.stop_gradient(jax.tree.map(lambda x: x.astype(drawn["global"].dtype), extras["ema"]))
        rngs = {name: jax.random.fold_in(key, 1) for name, key in rngs.items()}
        teachers, moved = project(self.model, average, extras, "ema_batch_stats", [drawn["global"]], rngs, train)
        losses, centers = self.losses(jax.lax.stop_gradient(teachers), students, extras)
        centers = {name: {"now": extras[name]["now"], "next": center} for name, center in centers.items()}
        return losses, {**extras, **kept, **moved, **centers}

    def losses(self, teachers: list, students: list, extras: Tree) -> tuple[Float[Array, "b"], dict[str, Array]]:
        """Return the loss of every image, given the projections of each view, and the new values of the centers."""
        probabilities = [self.teacher_probabilities(view, extras["center"]["now"], extras["step"]) for view in teachers]
        logs = [self.student_logs(view) for view in students]
        losses = mean_of_pairs(lambda teacher, student: -(teacher * student).sum(axis=-1), probabilities, logs)
        return losses, {"center": mean_logits(teachers)}

    def teacher_probabilities(self, logits: Array, center: Array, step: Array) -> Float[Array, "*b k"]:
        """Return centered and sharpened probabilities, in float32."""
        center = jnp.expand_dims(center, range(logits.ndim - 1))
        return jax.nn.softmax((logits.astype(jnp.float32) - center) / self.temperature(step))

    def student_logs(self, logits: Array) -> Float[Array, "*b k"]:
        """Return log-probabilities, in float32."""
        return jax.nn.log_softmax(logits.astype(jnp.float32) / self.student_temp)

    def temperature(self, step: Array) -> Float[Array, ""]:
        """Return the teacher's temperature at `step`."""
        done = jnp.minimum(step / max(1.0, self.warmup * self.steps), 1.0)
        return self.warmup_teacher_temp + (self.teacher_temp - self.warmup_teacher_temp) * done

    def decay(self, step: Array) -> Float[Array, ""]:
        """Return the decay of the moving average at `step`."""
        left = (1 + jnp.cos(math.pi * jnp.minimum(step / self.steps, 1.0))) / 2
        final = self.final_moving_average_decay
        return final - (final - self.moving_average_decay) * left

    def updated(self, params: Tree, extras: Tree) -> Tree:
        toward = lambda decay: lambda old, new: decay * old + (1 - decay) * new
        moved = {name: extras[name] for name in self.centers}
        follow = toward(self.center_moving_average_decay)
        return {
            **extras,
            "ema": jax.tree.map(toward(self.decay(extras["step"])), extras["ema"], params),
            "step": extras["step"] + 1,
            **{name: {**center, "now": follow(center["now"], center["next"])} for name, center in moved.items()},
        }

    def trunk(self, params: Tree, extras: Tree) -> tuple[nn.Module, Tree]:
        """Return the teacher's encoder, which performs better than the student's in the paper."""
        variables = {"params": extras["ema"]["encoder"]}
        if "encoder" in extras.get("ema_batch_stats", {}):
            variables["batch_stats"] = extras["ema_batch_stats"]["encoder"]
        return self.encoder, variables


def check_numbers(objective: Any) -> None:
    """Raise ValueError for an invalid number among the arguments that `objective` has."""
    positive = ("student_temp", "teacher_temp", "warmup_teacher_temp", "steps", "num_local_views")
    positive += ("projection_layers", "projection_hidden_size", "bottleneck_dim", "num_classes_K")
    positive += ("local_lower_crop_scale", "local_upper_crop_scale", "global_lower_crop_scale")
    shares = ("moving_average_decay", "final_moving_average_decay", "center_moving_average_decay", "warmup")
    for names, fits, expected in (
        (positive, lambda value: value > 0, "more than 0"),
        (shares, lambda value: 0 <= value <= 1, "0 to 1"),
    ):
        for name in names:
            value = getattr(objective, name, None)
            if value is not None and not fits(value):
                raise ValueError(f"{name}={value}: expected {expected}")
    least, most = objective.local_lower_crop_scale, objective.local_upper_crop_scale
    if least > most:
        raise ValueError(f"local_lower_crop_scale={least}: expected at most local_upper_crop_scale={most}")
