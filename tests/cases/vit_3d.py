"""Rows of `vit_3d`."""

from tests.cases.case import BLOCKS, Case, draw_blocks
from tests.cases.repairs import tokens

VIT = ("vit_3d", "vit_3d:ViT")
VIDEO = dict(image_size=8, image_patch_size=4, frames=6, frame_patch_size=2, num_classes=5)
OBLONG = dict(image_size=(8, 12), image_patch_size=(4, 2), frame_patch_size=3, channels=1)
INPUT, OBLONG_INPUT = (2, 6, 8, 8, 3), (2, 6, 8, 12, 1)

TOKENS = VIDEO | BLOCKS | OBLONG | dict(num_classes=0)

CASES = [
    Case(*VIT, INPUT, 11893, VIDEO | BLOCKS, maps=2),
    Case(*VIT, INPUT, 11893, VIDEO | BLOCKS | dict(pool="mean"), "mean", maps=2),
    Case(*VIT, OBLONG_INPUT, 10136, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
    Case(*VIT, (2, 4, 8, 4, 3), 10693, VIDEO | BLOCKS | dict(heads=1, dim_head=24), "smaller-one-head", maps=2),
]

PUBLISHED = {}  # the paper has no video models


def example(model):
    return (1, model.frames, model.image_size, model.image_size, model.channels)


def draw_video(rng):
    """Randomly drawn arguments of a video in patches, and the shape of the input."""
    patches, counts = [rng.randint(1, 4) for _ in range(3)], [rng.randint(1, 3) for _ in range(3)]
    sides = [patch * count for patch, count in zip(patches, counts, strict=True)]
    (frames, *size), (frame_patch, *image_patch), channels = sides, patches, rng.randint(1, 3)
    video = dict(frames=frames, image_size=tuple(size), channels=channels, num_classes=rng.randint(2, 12))
    return video | dict(frame_patch_size=frame_patch, image_patch_size=tuple(image_patch)), (2, *sides, channels)


def draw(rng):
    video, shape = draw_video(rng)
    yield Case(*VIT, shape, 0, video | draw_blocks(rng) | dict(pool=rng.choice(("cls", "mean"))))
