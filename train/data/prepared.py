"""Prepare a TFDS dataset, or find the folder of a prepared one and validate it before TFDS reads it.

TFDS imports every Python class that features.json names, and does not validate the other files.
"""

import contextlib
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from train.data.targets import MOST_CLASSES
from train.errors import UserError, one_line, one_line_errors

NAME = re.compile(r"(?P<name>\w+)(/(?P<config>(?!\.)[\w+.-]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?", re.ASCII)
VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){2}", re.ASCII)


def find_prepared(tfds: ModuleType, name: str, data_dir: Path) -> Path:
    """Find the folder of a dataset: data_dir/NAME[/CONFIG]/VERSION, with the highest version that matches.

    TFDS itself would import the Python module of a dataset to find its default configuration.

    Args:
        tfds: The module tensorflow_datasets.
        name: NAME, NAME/CONFIG or NAME:VERSION, where * in a version matches any number.
        data_dir: The folder of all datasets.

    Raises:
        UserError: If there is no such folder.
    """
    parsed = check_name(name)
    with one_line_errors(f"tfds:{name} cannot be read in {data_dir}"):
        folder = data_dir / tfds.core.naming.camelcase_to_snakecase(parsed["name"])
        if parsed["config"]:
            folder /= parsed["config"]
        elif folder.is_dir() and not _versions(folder):
            folder /= _only_configuration(name, folder)
        wanted = (parsed["version"] or "*.*.*").split(".")
        fits = lambda version: all(w in ("*", v) for w, v in zip(wanted, version.split("."), strict=True))
        versions = [version for version in _versions(folder) if fits(version)]
    if not versions:
        raise UserError(f"tfds:{name} is not prepared in {data_dir}: {how_to_prepare(name, data_dir)} prepares it")
    return folder / versions[-1]


def _only_configuration(name: str, folder: Path) -> str:
    """The configuration in the folder of a dataset; "" if there is none. Raises UserError if there are several."""
    found = sorted(child.name for child in folder.iterdir() if _versions(child))
    if len(found) > 1:
        raise UserError(f"tfds:{name} has several configurations: expected one of {', '.join(found)} after a /")
    return found[0] if found else ""


def _versions(folder: Path) -> list[str]:
    """Names of the versions in a folder, in ascending order."""
    if not folder.is_dir():
        return []
    found = [child.name for child in folder.iterdir() if VERSION.fullmatch(child.name) and child.is_dir()]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def how_to_prepare(name: str, data_dir: Path) -> str:
    """The command that prepares a dataset."""
    return f"vit-jax prepare {name} --dir={shlex.quote(str(data_dir))}"


def prepare(name: str, data_dir: str | None) -> Path:
    """Download and prepare a dataset as ArrayRecord, and return its folder.

    Args:
        name: NAME, NAME/CONFIG or NAME:VERSION.
        data_dir: The folder of all datasets; that of TFDS if None.

    Raises:
        UserError: If TFDS does not know the dataset, or cannot download or prepare it.
    """
    check_name(name)
    import tensorflow_datasets as tfds  # slow to import

    data_dir = Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))
    first = iter([True])  # without a network, each file has ten of the same warnings: the first says what is wrong
    logging.getLogger("urllib3.connectionpool").addFilter(lambda _: next(first, False))
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"TFDS has no dataset {name}") from error
    except Exception as error:  # of the network, the disk, or the dataset's code
        if _needs_tensorflow(error):
            raise UserError(
                f"the code of TFDS for {name} uses TensorFlow: run the same command in an environment with it "
                "(pip install tensorflow); training does not need it"
            ) from error
        raise UserError(f"{name} cannot be prepared in {data_dir}: {one_line(error)}") from error
    return Path(builder.data_dir)


def _needs_tensorflow(error: BaseException | None) -> bool:
    """Whether TensorFlow was missing, according to an error or its causes."""
    while error is not None:
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "tensorflow":
            return True
        error = error.__cause__ or error.__context__
    return False


def check_name(name: str) -> re.Match:
    """Parse the name of a dataset. Raises UserError if it is not one."""
    if parsed := NAME.fullmatch(name):
        return parsed
    raise UserError(f"unknown data 'tfds:{name}': expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0")


def check_metadata(tfds: ModuleType, folder: Path) -> None:
    """Raises UserError if reading the folder could block, or could run Python code that it names."""
    with one_line_errors(f"{folder} cannot be read"):
        for path in folder.iterdir():
            if not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} is not a regular file")
        _check_classes(tfds, folder)


def _check_classes(tfds: ModuleType, folder: Path) -> None:
    """Raises UserError if the dataset names a Python class that is not one of TFDS's own features."""
    features, info = (_read_json(folder / name) for name in ("features.json", "dataset_info.json"))
    base = tfds.features.FeatureConnector
    classes = [c for c in vars(tfds.features).values() if isinstance(c, type) and issubclass(c, base)]
    own = {f"{c.__module__}.{c.__name__}" for c in classes} | {alias for c in classes for alias in c.ALIASES}
    for path, part in (("features.json", features), ("dataset_info.json", info.get("features"))):
        for name in _named_classes(part):
            if name not in own:
                raise UserError(
                    f"{folder / path} names the class {name[:100]!r}: only features of TFDS itself are read, "
                    "as others would run Python code that came with the data"
                )


def _named_classes(node: Any) -> Iterator[str]:
    """Yield every class name in the JSON of features, in all forms that TFDS accepts."""
    left = [node]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            names = map(node.get, ("pythonClassName", "python_class_name", "type"))
            yield from (name for name in names if isinstance(name, str))
            left += node.values()
        elif isinstance(node, list):
            left += node
        elif isinstance(node, str):  # some features contain others as JSON in a string
            with contextlib.suppress(ValueError):
                left.append(json.loads(node))


def _read_json(path: Path) -> dict:
    with one_line_errors(f"{path} cannot be read"):
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, not {type(content).__name__}")
        return content


def read_class_names(label: Any, key: str, folder: Path) -> tuple[str, ...]:
    """Read the class names; class numbers if the dataset has no names.

    TFDS itself ignores a file with a wrong number of names.

    Args:
        label: The feature of the labels.
        key: Its name.
        folder: The folder of the dataset.

    Raises:
        UserError: If the number of classes is out of range, or the names do not match it.
    """
    count, path = label.num_classes or 0, folder / f"{key.replace('/', '.')}.labels.txt"
    if not 0 < count <= MOST_CLASSES:
        raise UserError(f"{folder / 'features.json'} says {count} classes: expected 1 to {MOST_CLASSES:,}")
    if not path.exists():
        return tuple(map(str, range(count)))
    with one_line_errors(f"{path} cannot be read"):
        names = tuple(line.strip() for line in path.read_text().split("\n") if line.strip())
    if len(set(names)) != count or len(names) != count:
        raise UserError(f"{path} is damaged: it has {len(set(names))} different names, of {count} classes")
    return names


def check_shards(split: Any, folder: Path) -> None:
    """Raises UserError if a file of the split is missing, outside `folder`, or too short."""
    if split.num_examples < 1:
        raise UserError(f"split {split.name!r} of {folder} is empty")
    for shard in split.file_instructions:
        path = Path(shard.filename)
        if ".." in path.parts or not path.is_relative_to(folder) or not path.is_file():
            raise UserError(f"{path} is missing: TFDS has not finished preparing {folder}, or it is damaged")
        if shard.examples_in_shard > path.stat().st_size:
            raise UserError(f"{path} is damaged: it cannot hold {shard.examples_in_shard:,} examples")
