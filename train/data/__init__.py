"""Datasets and batches: images and labels of several sources, as batches of images."""

from train.data.dataset import Dataset, load_dataset
from train.data.pipeline import eval_batches, image_to_input, train_batches, view_batches
from train.data.skipped import Skipped
from train.data.transforms import Unreadable

__all__ = [
    "Dataset",
    "Skipped",
    "Unreadable",
    "eval_batches",
    "image_to_input",
    "load_dataset",
    "train_batches",
    "view_batches",
]
