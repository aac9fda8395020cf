"""Rows of `t2t`."""

from tests.cases.case import BLOCKS, INPUT, OBLONG_INPUT, Case, draw_blocks
from tests.cases.efficient import TRANSFORMER
from tests.cases.repairs import set_positions, tokens


def oblong_t2t(make):
    """Non-square images: merging stages with the right grid (upstream: the square root), and matching positions."""
    from einops.layers.torch import Rearrange

    def repaired(*, image_size, t2t_layers, **kwargs):
        module = make(image_size=16, t2t_layers=t2t_layers, **kwargs)
        before = module.pos_embedding.shape[1] - 1
        rows, columns = image_size
        for i, (kernel, stride) in enumerate(t2t_layers):
            if i > 0:
                module.to_patch_embedding[4 * i] = Rearrange("b (h w) c -> b c h w", h=rows)
            rows, columns = ((side - kernel + 2 * (stride // 2)) // stride + 1 for side in (rows, columns))
        set_positions(module, rows * columns, before)
        return module

    return repaired


T2T = ("t2t", "t2t:T2TViT")
PLAIN = dict(image_size=16, num_classes=5, t2t_layers=((3, 2), (3, 2)), **BLOCKS)
LONG = PLAIN | dict(t2t_layers=((5, 3), (2, 1), (3, 2)), channels=1, pool="mean")
AROUND = dict(image_size=16, num_classes=5, dim=24, t2t_layers=((3, 2), (3, 2)), transformer=TRANSFORMER)
TOKENS = PLAIN | dict(image_size=(8, 12), channels=1, num_classes=0)

CASES = [
    Case(*T2T, INPUT, 19138, PLAIN, maps=3),
    Case(*T2T, (2, 16, 16, 1), 84882, LONG, "three-stages-mean", maps=4),
    Case(*T2T, INPUT, 19138, AROUND, "transformer", maps=3),
    Case(*T2T, OBLONG_INPUT, 11501, TOKENS, "oblong-tokens", maps=3, repairs=(oblong_t2t, tokens)),
]

# Tables of the paper, in millions; here positions are learned.
PUBLISHED = {
    "t2t/7": (4.3e6, 0.01),
    "t2t/10": (5.9e6, 0.01),
    "t2t/12": (6.9e6, 0.01),
    "t2t/14": (21.5e6, 0.01),
    "t2t/19": (39.2e6, 0.01),
    "t2t/24": (64.1e6, 0.01),
}


EXEMPT = {"bad_sizes": "has no patches", "unfilled_images": "has no patches"}


def draw(rng):
    side, channels = rng.randint(12, 20), rng.randint(1, 3)
    layers = ((rng.choice((3, 4, 7)), rng.choice((2, 3))), (3, rng.choice((1, 2))))
    image = dict(image_size=side, channels=channels, num_classes=rng.randint(2, 12), t2t_layers=layers)
    yield Case(*T2T, (2, side, side, channels), 0, image | draw_blocks(rng) | dict(pool=rng.choice(("cls", "mean"))))
