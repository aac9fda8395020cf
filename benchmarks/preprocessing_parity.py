"""Compare the preprocessing of photographs with timm's: pixels that differ, and processor time.

    python benchmarks/preprocessing_parity.py PHOTOS

PHOTOS is a folder of image files. Each is prepared with every mode, interpolation and crop that occurs among timm's
tags, and with "border", at two sizes. Both sides read the file, turn it upright, resize, crop and normalise; they take
turns. Needs the extra `test`, and timm.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image, ImageOps

import tests.upstream  # noqa: F401, which makes torchvision importable
from vit_jax.images import SUFFIXES
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.tags import tags

SIZES = ((224, 224), (160, 256))


def variants() -> list[Preprocessing]:
    """Every combination of mode, interpolation and crop among the tags, and "border", at both sizes."""
    published = {(p.crop_mode, p.interpolation, p.crop_pct) for p in (tag.preprocessing for tag in tags().values())}
    border = {("border", interpolation, share) for _, interpolation, share in published}
    return [
        Preprocessing(size, share, mode, interpolation)
        for mode, interpolation, share in sorted(published | border)
        for size in SIZES
    ]


def timm_transform(preprocess: Preprocessing) -> Callable[[Path], np.ndarray]:
    """timm's transform for evaluation, of an upright image."""
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config(pretrained_cfg=preprocess.to_config()))

    def prepare(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return transform(ImageOps.exif_transpose(image).convert("RGB")).numpy()

    return prepare


def compare(preprocess: Preprocessing, photos: list[Path]) -> tuple[int, float, float]:
    """Number of pixels that differ, and milliseconds for an image on our side and on timm's."""
    theirs, seconds, differing = timm_transform(preprocess), np.zeros(2), 0
    for path in photos:
        start = time.process_time()
        found = preprocess(path)
        middle = time.process_time()
        expected = theirs(path)
        seconds += middle - start, time.process_time() - middle
        differing += int((found != expected.transpose(1, 2, 0)).any(axis=-1).sum())
    return differing, *(1000 * seconds / len(photos))


def main() -> None:
    """Print a row for each variant, and the totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of image files")
    photos = sorted(path for path in parser.parse_args().photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    print(f"{len(photos)} photographs")
    print("mode    filter    crop_pct    size  differing pixels  ours ms  timm ms")
    compare(Preprocessing(), photos[:3])  # the first use imports modules
    rows = []
    for p in variants():
        pixels, ours, theirs = compare(p, photos)
        size = "x".join(map(str, p.image_size))
        print(f"{p.crop_mode:7} {p.interpolation:9} {p.crop_pct:8} {size:>7} {pixels:17,} {ours:8.2f} {theirs:8.2f}")
        rows.append((pixels, ours, theirs))
    pixels, ours, theirs = np.sum(rows, axis=0)
    print(f"{len(rows)} variants: {pixels:,.0f} pixels differ; {ours / theirs:.2f} of timm's time")


if __name__ == "__main__":
    main()
