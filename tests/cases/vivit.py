"""Rows of `vivit`."""

import numpy as np

from tests.cases.case import Case


def tokens(make):
    """`num_classes=0`: without the head, the model returns the output of the last transformer."""
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.mlp_head = nn.Identity()
        last = getattr(module, "factorized_transformer", None) or module.temporal_transformer
        encoded, forward = [], module.forward
        last.register_forward_hook(lambda module, args, output: encoded.append(output))
        module.forward = lambda *args, **kwargs: (forward(*args, **kwargs), encoded.pop())[1]
        return module

    return repaired


def frame_mask(seed: int, *shape: int) -> dict[str, np.ndarray]:
    """Mask of some frames of each video, always with the first two."""
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[:, :2] = True
    return dict(mask=mask)


VIVIT = ("vivit", "vivit:ViViT")
VIDEO = dict(image_size=8, image_patch_size=4, frames=6, frame_patch_size=2, num_classes=5)
INPUT, OBLONG_INPUT = (2, 6, 8, 8, 3), (2, 4, 8, 12, 1)
OBLONG = dict(image_size=(8, 12), image_patch_size=(4, 2), frames=4, channels=1)
BLOCKS = dict(dim=24, spatial_depth=2, temporal_depth=1, heads=3, dim_head=8, mlp_dim=40)
PLAIN = VIDEO | BLOCKS
SELF = dict(variant="factorized_self_attention", temporal_depth=2)
ONE_HEAD = dict(heads=1, dim_head=24)
TOKENS = PLAIN | OBLONG | dict(num_classes=0)
SMALLER = PLAIN | dict(pool="mean", use_flash_attn=False)
MASK = frame_mask(0, 2, 6)

CASES = [
    Case(*VIVIT, INPUT, 16349, PLAIN, maps=3),
    Case(*VIVIT, INPUT, 16349, PLAIN, "mask", maps=3, keyword_inputs=MASK),
    Case(*VIVIT, (2, 4, 8, 4, 3), 16301, SMALLER, "mean-smaller-mask", maps=3, keyword_inputs=frame_mask(1, 2, 4)),
    Case(*VIVIT, OBLONG_INPUT, 14432, TOKENS, "oblong-tokens", maps=3, repairs=(tokens,)),
    Case(*VIVIT, INPUT, 16621, PLAIN | SELF, "self-attention", maps=4, keyword_inputs=MASK),
    Case(*VIVIT, INPUT, 14197, PLAIN | SELF | ONE_HEAD | dict(pool="mean"), "self-attention-mean", maps=4),
    Case(*VIVIT, OBLONG_INPUT, 14704, TOKENS | SELF, "self-attention-tokens", maps=4, repairs=(tokens,)),
]

# Our own counts; the paper's table was not available.
PUBLISHED = {"vivit/b16x2": (117_736_168, 0)}


def example(model) -> tuple[int, ...]:
    return (1, model.frames, model.image_size, model.image_size, 3)


def draw_video(rng):
    """Randomly drawn arguments of a video, and the shape of the input."""
    patch, frame_patch, channels = rng.choice((2, 4)), rng.randint(1, 2), rng.randint(1, 3)
    side, frames = patch * rng.randint(2, 3), frame_patch * rng.randint(2, 4)
    video = dict(image_size=side, image_patch_size=patch, frames=frames, frame_patch_size=frame_patch)
    blocks = dict(dim=8 * rng.randint(2, 5), heads=rng.randint(1, 4), dim_head=rng.choice((4, 7, 16)))
    blocks |= dict(mlp_dim=rng.randint(5, 60), spatial_depth=rng.randint(1, 2), pool=rng.choice(("cls", "mean")))
    blocks |= dict(temporal_depth=rng.randint(1, 2), use_flash_attn=rng.random() < 0.5, channels=channels)
    return video | blocks | dict(num_classes=rng.randint(2, 9)), (2, frames, side, side, channels)


def draw(rng):
    kwargs, shape = draw_video(rng)
    if rng.random() < 0.5:
        kwargs |= dict(variant="factorized_self_attention", temporal_depth=kwargs["spatial_depth"])
    mask = frame_mask(rng.randint(0, 9), *shape[:2])
    yield Case(*VIVIT, shape, 0, kwargs, keyword_inputs=rng.choice(({}, mask)))
