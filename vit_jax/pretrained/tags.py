"""Published weights of timm's networks: preprocessing, number of classes, license, and where they are.

The table is timm_tags.csv, a row for each of timm 1.0.31's pretrained tags whose architecture is supported.
`python -m tests.pretrained.make_tags` writes it from timm.
"""

import csv
import fnmatch
import functools
import importlib.resources
from typing import NamedTuple

from vit_jax.pretrained.networks import check_supported
from vit_jax.pretrained.preprocessing import CLIP, HALF, IMAGENET, Preprocessing
from vit_jax.registry import unknown

# Mean and standard deviation, by the name in the table.
NORMALIZATIONS = {
    "clip": CLIP,
    "half": HALF,
    "imagenet": IMAGENET,
    "none": ((0.0,) * 3, (1.0,) * 3),
    "satellite": ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),
}


class Tag(NamedTuple):
    """Published weights of a network of timm's.

    Attributes:
        preprocessing: Preprocessing of images for these weights.
        num_classes: Outputs of the head; 0 if the weights have none.
        license: Short name of the license, as on the hub; "" if timm does not state one.
        hub_id: Repository on the hub; "" if the weights are not there. Several tags can have one repository.
        url: Address of the weights if they are not on the hub, otherwise "".
    """

    preprocessing: Preprocessing
    num_classes: int
    license: str
    hub_id: str
    url: str


def list_pretrained(pattern: str = "*") -> list[str]:
    """Names of the weights on the hub that `load_pretrained` takes by name, in alphabetical order.

    Args:
        pattern: As in a shell, for the whole name: `list_pretrained("*dinov2*")`. "timm/" may be left out.

    Returns:
        Names such as "timm/vit_small_patch16_224.augreg_in21k_ft_in1k".
    """
    matches = lambda name: fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f"timm/{name}", pattern)
    return [f"timm/{name}" for name, tag in tags().items() if tag.hub_id and matches(name)]


def find_tag(name: str) -> Tag:
    """Return the published weights called `name`, for example "timm/vit_small_patch16_224.augreg_in21k_ft_in1k".

    Raises:
        ValueError: For an unknown name, or one without tag; the message lists similar names, or the tags. For a network
            that is not supported.
    """
    key = name.removeprefix("timm/")
    if key in tags():
        return tags()[key]
    check_supported(key)
    of_architecture = [f"timm/{each}" for each in tags() if each.partition(".")[0] == key]
    if of_architecture:
        raise ValueError(f"{name!r} has no tag: expected one of {', '.join(of_architecture)}")
    raise ValueError(unknown("published weights", name, [f"timm/{each}" for each in tags()]))


@functools.cache
def tags() -> dict[str, Tag]:
    """The table: timm's name of an architecture, a dot and a tag, to the published weights."""
    table = importlib.resources.files("vit_jax.pretrained").joinpath("timm_tags.csv").read_text()
    return {row["name"]: _tag(row) for row in csv.DictReader(table.splitlines())}


def _tag(row: dict[str, str]) -> Tag:
    height, _, width = row["size"].partition("x")
    preprocessing = Preprocessing(
        image_size=(int(height), int(width or height)),
        crop_pct=float(row["crop_pct"]),
        crop_mode=row["crop_mode"],
        interpolation=row["interpolation"],
        mean=NORMALIZATIONS[row["normalization"]][0],
        std=NORMALIZATIONS[row["normalization"]][1],
    )
    source = row["source"] or f"timm/{row['name']}"
    hub_id, url = ("", source) if source.startswith("https:") else (source, "")
    return Tag(preprocessing, int(row["num_classes"]), row["license"], hub_id, url)
