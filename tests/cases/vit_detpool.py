"""Rows of `vit_detpool`."""

import numpy as np

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image

DETPOOL = ("vit_detpool", "vit_detpool:ViTDetPool")
PLAIN = IMAGE | BLOCKS
TOKENS = PLAIN | OBLONG | dict(num_classes=0)


def object_mask(seed: int, *shape: int, share: float = 0.5) -> dict[str, np.ndarray]:
    return dict(object_mask=np.random.default_rng(seed).random(shape) < share)


# Masks are of one image, since tests of transformations pass single images.
PIXELS, PATCHES, GRID = object_mask(0, 1, 16, 16, share=0.1), object_mask(1, 1, 16), object_mask(2, 1, 2, 6)

CASES = [
    Case(*DETPOOL, INPUT, 10717, PLAIN, maps=2),
    Case(*DETPOOL, (1, 16, 16, 3), 10717, PLAIN, "mask-of-pixels", maps=2, keyword_inputs=PIXELS),
    Case(*DETPOOL, (1, 16, 16, 3), 10693, PLAIN | dict(use_cls_token=False), "mask", maps=2, keyword_inputs=PATCHES),
    Case(*DETPOOL, (1, 8, 12, 1), 9456, TOKENS, "oblong-tokens-mask", maps=2, keyword_inputs=GRID),
    Case(*DETPOOL, OBLONG_INPUT, 8256, TOKENS | dict(heads=1, dim_head=24), "no-projection", maps=2),
]

PUBLISHED = {}  # the paper gives none


def draw(rng):
    image, shape = draw_image(rng)
    side = rng.choice((1, image["patch_size"]))
    mask = object_mask(rng.randint(0, 9), 2, shape[1] // side, shape[2] // side)
    kwargs = image | draw_blocks(rng) | dict(use_cls_token=rng.random() < 0.5)
    yield Case(*DETPOOL, shape, 0, kwargs, keyword_inputs=rng.choice(({}, mask)))
