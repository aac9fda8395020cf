"""Draw the attention of a model over its input images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.data.augment import normalize
from train.data.transforms import as_picture
from train.errors import UserError
from train.run.stored import Run
from vit_jax.capture import attention, rollout
from vit_jax.objectives.distill import Distill
from vit_jax.objectives.features import token_grid

INCHES, DPI = 2.2, 150  # of a panel, whether the image has 8x8 or 224x224 pixels
TOKENS = ("cls_token", "class_token")  # parameters of the token before the patches


class Panels(NamedTuple):
    """Attention maps to draw.

    Attributes:
        shares: Attention that each patch receives, (b, maps, rows, columns); the shares of a map sum to at most one.
        names: Titles of the maps.
        reader: The token whose attention is shown, for the title of the picture.
    """

    shares: np.ndarray
    names: tuple[str, ...]
    reader: str


def draw_attention(panels: Panels, pixels: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Draw attention maps over their images: one row per image, which starts with the image itself.

    Args:
        panels: The maps.
        pixels: The images (b, h, w, c).
        titles: A title for each image.
        path: The picture to write; the suffix gives the format, PNG if there is none.

    Raises:
        UserError: If the file cannot be written.
    """
    import matplotlib.figure  # slow to import

    columns = len(panels.names) + 1
    size = (INCHES * columns, (INCHES + 0.4) * len(pixels) + 0.4)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    figure.suptitle(f"attention of {panels.reader}")
    grid = figure.subplots(len(pixels), columns, squeeze=False)
    for row, image, title, maps in zip(grid, pixels, titles, panels.shares, strict=True):
        height, width, _ = image.shape
        picture = np.asarray(as_picture(image))
        show = dict(extent=(0, width, height, 0), interpolation="nearest")
        for axes in row:
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, **show)
            axes.set_axis_off()
        row[0].set_title(title, parse_math=False)
        for axes, name, shares in zip(row[1:], panels.names, maps, strict=True):
            axes.imshow(shares, cmap="inferno", alpha=0.7, vmin=0, **show)
            axes.set_title(f"{name}\nup to {shares.max():.1%}")
    try:
        figure.savefig(path, dpi=DPI, format=path.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise UserError(f"--attention {path} cannot be written: {error}") from error


def attention_panels(run: Run, pixels: np.ndarray) -> Panels:
    """Attention of the class token, or without a class token the mean over all tokens.

    There is one map for each head of the last layer, and the rollout over all layers (over the layers of the last stage
    if the model has stages).

    Args:
        run: A trained classifier.
        pixels: Images (b, h, w, c) of the run's type.

    Raises:
        UserError: If the model's attention has no map over single patches.
    """
    model, variables = run.objective.model, {"params": run.params, **run.extras}

    @jax.jit
    def look(pixels):
        maps = attention(model, variables, normalize(pixels, run.info.mean, run.info.std))
        if isinstance(maps, Mapping):
            maps = last_of_one_shape(list(maps.values()))
        return maps, rollout(maps)

    try:
        maps, rolled = map(np.asarray, look(pixels))
    except ValueError as error:
        raise UserError(f"--attention: {error}") from error
    if not np.allclose(maps.sum(axis=-1), 1, atol=1e-3):
        raise UserError(f"--attention: {run.config.model}'s attention maps have rows that do not sum to one")
    plain, params, behind = model, run.params, 0
    if isinstance(run.objective, Distill):
        plain, params = model.student, run.params["student"]
        behind = int("distillation_token" in run.params)  # it is the last one
    front, tokens = int(any(name in params for name in TOKENS)), maps.shape[-1]
    grid = token_grid(plain, pixels.shape[1:3], tokens - front - behind)
    if grid is None or maps.shape[1] != len(pixels):
        raise UserError(f"--attention: cannot determine which of the {tokens} tokens of {run.config.model} are patches")
    drawn = np.concatenate([maps[-1], rolled[:, None]], axis=1)
    of_class = front and getattr(plain, "pool", "cls") == "cls"
    read = drawn[:, :, 0] if of_class else drawn.mean(axis=2)
    shares = read[..., front : tokens - behind].reshape(*read.shape[:2], *grid)
    names = (*(f"last layer, head {i + 1}" for i in range(maps.shape[2])), f"{len(maps)} layers, rolled out")
    return Panels(shares, names, "the class token" if of_class else "all tokens (mean)")


def last_of_one_shape(maps: list[jax.Array]) -> jax.Array:
    """The longest run of maps of one shape at the end of `maps`: the maps of the last stage."""
    first = next((i + 1 for i in reversed(range(len(maps))) if maps[i].shape != maps[-1].shape), 0)
    return jnp.stack(maps[first:])
