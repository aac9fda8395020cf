"""Write a folder of photographs without splits: crops of the two that come with scikit-learn, one class each."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

rng = np.random.default_rng(0)
images = load_sample_images()
for name, photo in zip(images.filenames, images.images, strict=True):
    folder = Path(sys.argv[1], Path(name).stem)
    folder.mkdir(parents=True)
    for number in range(60):
        top, left = (rng.integers(side - 96) for side in photo.shape[:2])
        Image.fromarray(photo[top : top + 96, left : left + 96]).save(folder / f"{number:02}.jpg", quality=90)
