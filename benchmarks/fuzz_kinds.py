"""Kinds of files for `fuzz.py`: how to write valid files, their reader, and the errors that the reader declares."""

import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.fuzz_data import (
    make_arrays,
    make_shards,
    make_stored,
    make_tables,
    read_arrays,
    read_shards,
    read_stored,
    read_table,
)
from tests.runs import train as run_trainer
from train.config import Data
from train.data import transforms
from train.data.dataset import load_dataset
from train.errors import UserError
from train.run.integrity import damage
from train.run.records import read_records
from train.run.stored import load_run, read_run_file
from vit_jax.images import FORMATS
from vit_jax.pretrained.describe import describe
from vit_jax.pretrained.files import load_weights, save_folder
from vit_jax.pretrained.json_files import load_config
from vit_jax.state_dict import PrefixError, check_names
from vit_jax.torch_file import load_torch_file


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files of one kind."""

    make: Callable[[Path], None]
    """Writes valid files into an empty folder."""
    targets: str
    """Files to damage: a pattern for Path.glob."""
    read: Callable[[Path, Path], object]
    """Reads a damaged file, given the folder and the file."""
    declared: tuple[type[Exception], ...]
    """Errors that `read` may raise. Subclasses are included, except those of ValueError."""
    share: float
    """Fraction of all damaged files."""


# Weights.


def make_weights(folder: Path) -> None:
    """Write state dicts and checkpoints in all formats of torch and safetensors, and in formats that are refused."""
    rng = np.random.default_rng(0)
    state = {f"block.{i}.weight": rng.normal(size=(4, 3)).astype(np.float32) for i in range(3)}
    state["steps"] = np.array(7)
    np.savez(folder / "weights.npz", **state)
    try:
        import safetensors.numpy

        safetensors.numpy.save_file(state, folder / "weights.safetensors")
        import torch
    except ImportError as error:
        raise SystemExit(f"{error}: the fuzzer needs the extra `test`") from error
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    tensors |= {"half": torch.ones(3).bfloat16(), "turned": tensors["block.0.weight"].t(), "none": torch.ones(0)}
    checkpoint = {"model": tensors, "epoch": 3, "args": {"lr": 0.1, "name": "vit"}, "list": [1, None, (True, 2.5)]}
    for name, content in (("flat", tensors), ("checkpoint", checkpoint), ("keys", {0: tensors, 1: {2: 3}})):
        torch.save(content, folder / f"{name}.pth")
        torch.save(content, folder / f"{name}-old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "script.pt", "w") as archive:  # the layout of TorchScript
        for entry, content in {"data.pkl": pickle.dumps({}, 2), "code/__torch__.py": b"", "constants.pkl": b""}.items():
            archive.writestr(f"script/{entry}", content)


def read_weights(folder: Path, file: Path) -> None:
    """The first steps of `from_torch`."""
    check_names("weights", load_torch_file(file), "Net", {"block.0.weight", "block.1.weight", "steps"})


# Folders of published weights.


def make_published(folder: Path) -> None:
    """Write a folder with a configuration and an index of one file of weights."""
    state = {f"blocks.{i}.norm1.weight": np.ones(4, np.float32) for i in range(3)}
    config = {"architecture": "vit", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.5, 0.5]}}
    save_folder(folder / "published", config, state)
    index = {"metadata": {"total_size": 48}, "weight_map": dict.fromkeys(state, "model.safetensors")}
    (folder / "published/model.safetensors.index.json").write_text(json.dumps(index))


def read_published(folder: Path, file: Path) -> None:
    """The first steps of `load_pretrained`, for a whole file and for one with an index."""
    load_config(folder / "published")
    for weights in (None, "model.safetensors.index.json"):
        describe(load_weights(folder / "published", weights))


# Images.


def make_images(folder: Path) -> None:
    """Write an image of every format and mode that Pillow writes and the trainer reads."""
    import tifffile
    from PIL import Image

    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (13, 11, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (9, 10), np.uint16))
    modes = {mode: colour.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")} | {"I16": deep}
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in FORMATS:
        if form not in Image.SAVE:
            continue
        for mode, image in modes.items():
            try:
                image.save(folder / f"{form}-{mode}.{form.lower()}", form, exif=exif)
            except (OSError, ValueError, KeyError, TypeError):  # the format does not support the mode
                (folder / f"{form}-{mode}.{form.lower()}").unlink(missing_ok=True)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"):
        image = modes["1"] if compression == "group4" else colour
        image.save(folder / f"{compression}.tiff", "TIFF", compression=compression)
    frames = [modes["P"], modes["P"].rotate(90)]
    for form in ("GIF", "PNG", "WEBP"):
        frames[0].save(folder / f"animated.{form.lower()}", form, save_all=True, append_images=frames)
    bands = rng.integers(0, 2**16, (9, 10, 5), np.uint16)
    for array in (bands, bands.astype(np.uint8), bands.astype(np.float32)):
        np.save(folder / f"{array.dtype}.npy", array)
        for compression in (None, "zlib"):
            path = folder / f"{array.dtype}-{compression}.tif"
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig", compression=compression)


def read_image(folder: Path, file: Path) -> None:
    """Read it as training does: first its form, then the pixels."""
    form = transforms.image_form(str(file), file.name)
    for channels, pixels in {form, *((1, "uint8"), (3, "uint8")) * (form.channels in (1, 3))}:
        image = transforms.decode(str(file), channels, file.name, pixels)
        assert image.dtype == pixels
        assert image.shape[2] == channels


# Workdirs.


def make_workdir(folder: Path) -> None:
    """Write the workdir of a run of one step."""
    if status := run_trainer(folder / "run", "--steps=1", "--epochs=1"):
        raise SystemExit(f"the trainer ended with status {status}")


def read_configuration(folder: Path, file: Path) -> None:
    """The first step of every command that reads a workdir."""
    read_run_file(folder / "run")


def read_metrics(folder: Path, file: Path) -> None:
    """Read the records as a continued run does."""
    for record in read_records(folder / "run"):
        assert isinstance(record["step"], int)
        assert isinstance(record["split"], str)


def read_sums(folder: Path, file: Path) -> str | None:
    """Verify the checksums. Damage is the result, not an error."""
    return damage(file.parent)


def read_checkpoint(folder: Path, file: Path) -> None:
    """Load the run after its checksums are corrected, as an attacker would do."""
    step = next(parent for parent in file.parents if parent.name.isdigit())
    sums = step / "checksums.json"
    stored = sums.read_bytes()
    if file != sums:
        import hashlib

        inside = json.dumps(file.relative_to(step).as_posix())
        lines = stored.decode().splitlines()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines = [
            f"{inside}: {json.dumps(digest)}{',' * line.endswith(',')}" if inside in line else line for line in lines
        ]
        sums.write_text("\n".join(lines))
    try:
        load_run(folder / "run")
    finally:
        sums.write_bytes(stored)


# Datasets of TFDS.


def make_tfds(folder: Path) -> None:
    """Prepare a TFDS dataset of four images."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Blobs(tfds.core.GeneratorBasedBuilder):
        """Four images of two classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names="ab"),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

        def _generate_examples(self, count):
            for i in range(count):
                file = io.BytesIO()
                Image.new("RGB", (4, 4), (i, 0, 0)).save(file, "PNG")
                file.seek(0)
                yield i, {"image": file, "label": i % 2}

    Blobs(data_dir=str(folder), file_format="array_record").download_and_prepare()


def read_tfds(folder: Path, file: Path) -> None:
    """Read all examples of both splits."""
    dataset = load_dataset(Data(name="tfds:blobs", dir=str(folder)))
    for source in (dataset.train, dataset.eval):
        for i in range(len(source)):
            source[i]


WEIGHTS = (ValueError, PrefixError)
KINDS = {
    "weights": Kind(make_weights, "*", read_weights, WEIGHTS, 0.35),
    "published": Kind(make_published, "published/*", read_published, (ValueError,), 0.05),
    "images": Kind(make_images, "*", read_image, (UserError,), 0.35),
    "configurations": Kind(make_workdir, "run/config.json", read_configuration, (UserError,), 0.1),
    "metrics": Kind(make_workdir, "run/metrics.jsonl", read_metrics, (UserError,), 0.05),
    "checksums": Kind(make_workdir, "run/checkpoints/1/checksums.json", read_sums, (), 0.05),
    "checkpoints": Kind(make_workdir, "run/checkpoints/1/**/*", read_checkpoint, (UserError,), 0.02),
    "tfds": Kind(make_tfds, "blobs/1.0.0/*", read_tfds, (UserError,), 0.03),
    "tables": Kind(make_tables, "tables/*", read_table, (UserError,), 0.02),
    "stored": Kind(make_stored, "data/**/*", read_stored, (UserError,), 0.01),
    "arrays": Kind(make_arrays, "arrays/**/*.np*", read_arrays, (UserError,), 0.02),
    "shards": Kind(make_shards, "shards/*", read_shards, (UserError,), 0.02),
}
