"""Rows of `looped_vit`."""

from tests.cases.case import IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_image
from tests.cases.repairs import channels_last

LOOPED = ("looped_vit", "looped_vit:LoopedViT")
DEPTHS = dict(pre_loop_depth=1, num_looped_blocks=1, post_loop_depth=1, loop_depth=2)
PLAIN = IMAGE | DEPTHS | dict(dim=24, heads=3, dim_head=8, mlp_dim=40)
OTHER = PLAIN | dict(pool="mean", pre_loop_depth=0, num_looped_blocks=2, loop_depth=3, post_loop_depth=0)
FEATURES = PLAIN | OBLONG | dict(num_classes=0)
SEQUENCE = PLAIN | dict(image_size=None, input_shape=(12,), patch_size=3)
VIDEO = PLAIN | dict(image_size=None, input_shape=(4, 4, 6), patch_size=(2, 2, 3), channels=2)

CASES = [
    Case(*LOOPED, INPUT, 15197, PLAIN, maps=4),
    Case(*LOOPED, INPUT, 10741, OTHER, "mean", maps=6),
    Case(*LOOPED, OBLONG_INPUT, 14016, FEATURES, "oblong-features", maps=4),
    Case(*LOOPED, (2, 12, 3), 13973, SEQUENCE, "sequence", maps=4, repairs=(channels_last,)),
    Case(*LOOPED, (2, 4, 4, 6, 2), 14429, VIDEO, "video", maps=4),
]

EXEMPT = {"dropout_count": "upstream's attention drops without a module"}
PUBLISHED = {}  # the paper has diffusion models


def draw(rng):
    image, shape = draw_image(rng)
    depths = {name: rng.randint(0, 2) for name in ("pre_loop_depth", "num_looped_blocks", "post_loop_depth")}
    blocks = dict(dim=8 * rng.randint(2, 5), heads=rng.randint(1, 4), dim_head=rng.choice((4, 7)), mlp_dim=30)
    others = dict(loop_depth=rng.randint(1, 4), pool=rng.choice(("cls", "mean")))
    yield Case(*LOOPED, shape, 0, image | depths | blocks | others)
