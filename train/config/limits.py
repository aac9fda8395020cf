"""Limits of numbers in a configuration."""

from typing import Annotated

from train.commandline.ranges import Range

MOST_STEPS = 2**31 - 1  # steps are counted in int32
MOST_IMAGES = 2**20  # in a batch; check_memory compares it with the memory once the image size is known

Side = Annotated[int, Range(1, 16384)]  # pixels
Share = Annotated[float, Range(0.001, 1)]  # of an image; a smaller crop could be empty
Mix = Annotated[float, Range(1e-6, 1000, or_zero=True)]  # outside of it, float32 samples are NaN or constant
Decay = Annotated[float, Range(0, 1 - 1e-6)]  # closer to 1, float32 rounds to 1
