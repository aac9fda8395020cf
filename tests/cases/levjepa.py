"""Rows of `levjepa:VideoTransformer`."""

from tests.cases.case import Case

VIDEO = ("levjepa:VideoTransformer", "levjepa:VideoTransformer")
SIZES = dict(dim=24, depth=2, heads=3, dim_head=10, mlp_dim=40)
PLAIN = SIZES | dict(image_size=8, patch_size=4, frames=3)
OBLONG = SIZES | dict(image_size=(8, 12), patch_size=(4, 2), frames=2, channels=1, rotary_max_freq=7.0)


def dense(make):
    """The mask and attention in plain torch: upstream compiles both."""
    import torch
    import vit_pytorch.levjepa

    def mask_of(frame):
        return lambda b, h, q, k: (frame[b, q] == -1) | ((frame[b, k] >= 0) & (frame[b, q] >= frame[b, k]))

    def whole_mask(block, batch, heads, seq_len, device):
        place = torch.arange(seq_len)
        return block(torch.arange(batch)[:, None, None], 0, place[None, :, None], place[None, None, :])[:, None]

    def attention(q, k, v, block_mask, scale):
        scores = q @ k.mT * scale
        scores = scores if block_mask is None else scores.masked_fill(~block_mask, float("-inf"))
        return scores.softmax(dim=-1) @ v

    replaced = dict(create_block_causal_mask_fn=mask_of, create_block_mask_for=whole_mask, flex_attention=attention)

    def repaired(**kwargs):
        vars(vit_pytorch.levjepa).update(replaced)
        return make(**kwargs)

    return repaired


CASES = [
    Case(*VIDEO, (2, 3, 8, 8, 3), 11120, PLAIN, maps=2, repairs=(dense,)),
    Case(*VIDEO, (2, 2, 8, 12, 1), 10120, OBLONG, "oblong", maps=2, repairs=(dense,)),
    Case(*VIDEO, (2, 3, 8, 8, 3), 11120, PLAIN | dict(block_causal=False), "not-causal", maps=2, repairs=(dense,)),
]

PUBLISHED = {}


def draw(rng):
    patch, frames, channels = rng.randint(2, 4), rng.randint(1, 4), rng.randint(1, 3)
    side = patch * rng.randint(1, 3)
    video = dict(image_size=side, patch_size=patch, frames=frames, channels=channels, block_causal=rng.random() < 0.7)
    blocks = dict(dim=8 * rng.randint(2, 6), depth=rng.randint(1, 3), heads=rng.randint(1, 4))
    blocks |= dict(dim_head=rng.choice((6, 9, 16)), mlp_dim=rng.randint(5, 60), rotary_max_freq=rng.uniform(2, 12))
    yield Case(*VIDEO, (2, frames, side, side, channels), 0, video | blocks, repairs=(dense,))


def example(model):
    return (1, model.frames, model.image_size, model.image_size, model.channels)
