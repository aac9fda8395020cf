"""Rows of `na_vit`: the input is a list of images, which upstream packs into one sequence."""

from tests.cases.case import BLOCKS, IMAGE, Case, draw_blocks


def features(make):
    """`num_classes=0`: the model returns the input of the head."""

    def repaired(*, num_classes, **kwargs):
        from torch import nn

        module = make(num_classes=1, **kwargs)
        module.mlp_head = nn.Identity()
        return module

    return repaired


NA_VIT = ("na_vit", "na_vit:NaViT")
PLAIN = IMAGE | BLOCKS
SIZES = ((16, 16, 3), (8, 12, 3), (4, 16, 3))
OBLONG = PLAIN | dict(image_size=(8, 16), channels=1, num_classes=0)
RATES = PLAIN | dict(depth=1, token_dropout_prob=0.5, dropout=0.1, emb_dropout=0.1)  # no dropout at evaluation

CASES = [
    Case(*NA_VIT, SIZES, 12776, PLAIN, maps=3),
    Case(*NA_VIT, ((4, 4, 3), (16, 8, 3)), 8392, RATES, "rates", maps=2),
    Case(*NA_VIT, ((8, 12, 1), (4, 16, 1)), 11784, OBLONG, "oblong-features", maps=3, repairs=(features,)),
]

# Our own counts, as the paper gives none.
PUBLISHED = {"na_vit/b32": (90_524_160, 0), "na_vit/b16": (88_763_136, 0), "na_vit/l16": (308_253_440, 0)}

EXEMPT = {
    "large_images": "has positions for rows and columns, and names the image",
    "dropout_count": "upstream drops attention in a function, not in a module",
}


def draw_images(rng):
    """Randomly drawn arguments of a square image in patches, and shapes of images up to that size."""
    patch, channels, rows = rng.choice((2, 4, 6)), rng.randint(1, 3), rng.randint(1, 4)
    image = dict(image_size=patch * rows, patch_size=patch, channels=channels, num_classes=rng.randint(2, 12))
    side = lambda: patch * rng.randint(1, rows)
    return image, tuple((side(), side(), channels) for _ in range(rng.randint(1, 5)))


def draw(rng):
    image, shapes = draw_images(rng)
    yield Case(*NA_VIT, shapes, 0, image | draw_blocks(rng))
