"""Rows of `na_vit_nested_tensor_3d`: their input is a list of volumes (f, h, w, c)."""

from tests.cases.case import BLOCKS, IMAGE, Case, draw_blocks
from tests.cases.na_vit import features
from tests.cases.na_vit_nested_tensor import gradients_in

EXEMPT = {"dropout_count": "upstream drops attention in a function, not in a module"}

NESTED_3D = ("na_vit_nested_tensor_3d", "na_vit_nested_tensor_3d:NaViT")
PLAIN = IMAGE | BLOCKS | dict(max_frames=6, frame_patch_size=2)
VOLUMES = ((2, 16, 16, 3), (6, 8, 12, 3), (4, 4, 16, 3))
OBLONG_VOLUMES = ((3, 8, 12, 1), (6, 4, 16, 1))
BARE = PLAIN | dict(depth=1, qk_rmsnorm=False, num_registers=0, token_dropout_prob=0.5)  # no dropout at evaluation
OBLONG = PLAIN | dict(image_size=(8, 16), frame_patch_size=3, channels=1, num_classes=0, num_registers=2)
REPAIRS = (gradients_in("na_vit_nested_tensor_3d"),)

CASES = [
    Case(*NESTED_3D, VOLUMES, 14168, PLAIN, maps=3, repairs=REPAIRS),
    Case(*NESTED_3D, ((2, 4, 4, 3), (4, 16, 8, 3)), 9704, BARE, "bare", maps=2, repairs=REPAIRS),
    Case(*NESTED_3D, OBLONG_VOLUMES, 12656, OBLONG, "oblong-features", maps=3, repairs=(*REPAIRS, features)),
]

# Our own counts; there are no published ones.
PUBLISHED = {"na_vit_nested_tensor_3d/upstream": (61_917_056, 0)}


def example(model):
    return (1, model.max_frames, model.image_size, model.image_size, model.channels)


def draw(rng):
    patch, frame_patch, channels = rng.choice((2, 4, 6)), rng.randint(1, 3), rng.randint(1, 3)
    rows, frames = rng.randint(1, 4), rng.randint(1, 3)
    sizes = dict(image_size=patch * rows, patch_size=patch, max_frames=frame_patch * frames)
    sizes |= dict(frame_patch_size=frame_patch, channels=channels, num_classes=rng.randint(2, 12))
    side = lambda: patch * rng.randint(1, rows)
    shapes = [(frame_patch * rng.randint(1, frames), side(), side(), channels) for _ in range(rng.randint(1, 4))]
    others = dict(qk_rmsnorm=rng.random() < 0.5, num_registers=rng.randint(1, 5))
    yield Case(*NESTED_3D, tuple(shapes), 0, sizes | draw_blocks(rng) | others, repairs=REPAIRS)
