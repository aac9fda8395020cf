"""Rows of `wwt` and its head."""

import jax
import numpy as np

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, Inner, draw_blocks, draw_image


def features(make):
    """`num_classes=0`: without the heads, the model returns features instead of logits."""
    import functools

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        for head in ("mlp_head", "mlp_head_tokens"):
            if hasattr(module, head):
                delattr(module, head)
        module.forward = functools.partial(module.forward, return_embeddings=True)
        return module

    return repaired


def fixed_directions(make):
    """The loss of slots along the directions that our model uses at evaluation."""
    from unittest import mock

    import torch

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward

        def with_directions(*args, **kwargs):
            normal = lambda shape, device: torch.from_numpy(np.array(jax.random.normal(jax.random.key(0), shape)))
            with mock.patch("torch.randn", normal):
                return forward(*args, **kwargs)

        module.forward = with_directions
        return module

    return repaired


def unpack(forward, x, **kwargs):
    """Call a head with 16 patches and 6 slots of 24 features, and the mask between them, cut from one array."""
    return forward((x[:, :16, :24], x[:, 16:, :24]), [x[:, None, :16, 24:]], ((0, 1),), **kwargs)


WWT, HEAD = ("wwt", "wwt:WWT"), ("wwt:AutoencodingHead", "wwt:AutoencodingHead")
PLAIN = IMAGE | BLOCKS | dict(num_slots=(6, 3), return_tokens=True)
CHAIN = ((0, 1), (0, 2), (1, 2))
MAPS = Inner(*HEAD, dict(image_size=16, patch_size=4))
PATHS = Inner(*HEAD, dict(image_size=16, patch_size=4, pathways=((2, 1, 0), (0, 2)), channel_first=True))
SLOTS = PLAIN | dict(return_tokens=False, depth=1, num_slots=5, gate_attention=False)
LOSS = dict(l1norm_after_tokens_softmax=True, sigreg_slots=(True, False), task_heads=MAPS)
GROUPS = dict(token_softmax_over_slots=True, num_register_tokens=2, num_register_slots=(1, 2), interactions=CHAIN)
PROJECTED = GROUPS | dict(project_mask_groups=True, num_register_slots=1, task_heads=PATHS)
FEATURES = PLAIN | OBLONG | GROUPS | dict(num_classes=0, mlp_dim=None, depth=1)
DECODER = Inner("vit:Transformer", "vit:Transformer", BLOCKS)
DECODED = dict(image_size=16, patch_size=4, pathways=((0, 1),), decoder=DECODER)


def unread(path):
    """Paths of the parameters of the feed-forward at `path`."""
    return tuple(f"{path}/{leaf}" for leaf in ("norm/scale", "fc1/kernel", "fc1/bias", "fc2/kernel", "fc2/bias"))


LAST_MASKS = unread("layer_1_attn_0/mlp_mask") + unread("layer_1_attn_1/mlp_mask")
LAST_TOKENS = tuple(f"layer_0_attn_0/to_out_tokens/{leaf}" for leaf in ("kernel", "bias")) + unread("layer_0_mlp_0")
UNREAD = unread("layer_0_attn_0/mlp_mask") + LAST_TOKENS
LOSS_ROW = dict(maps=8, repairs=(fixed_directions,))

CASES = [
    Case(*WWT, INPUT, 37454, PLAIN, maps=8, unused=LAST_MASKS),
    Case(*WWT, INPUT, 11723, SLOTS, "one-level", maps=2, unused=UNREAD),
    Case(*WWT, INPUT, 37454, PLAIN | LOSS, "loss", **LOSS_ROW),
    # Masks shift all scores of a softmax nearly equally: upstream's own float32 gradients differ by 7e-4 from float64.
    Case(*WWT, INPUT, 53428, PLAIN | PROJECTED, "projected", maps=12, faint=("mlp_mask",)),
    Case(*WWT, OBLONG_INPUT, 54932, FEATURES, "oblong-features", maps=6, repairs=(features,)),
    Case(*HEAD, (2, 22, 30), 8864, DECODED, maps=2, call=unpack),
]

# Our own counts; the paper's table was not available.
PUBLISHED = {"wwt/upstream": (7_284_712, 0)}


def draw(rng):
    image, shape = draw_image(rng)
    flags = ("return_tokens", "l1norm_after_tokens_softmax", "token_softmax_over_slots", "project_mask_groups")
    chosen = {flag: rng.random() < 0.5 for flag in (*flags, "gate_attention")}
    slots = dict(num_slots=(rng.randint(4, 8), rng.randint(1, 3)), num_register_slots=(rng.randint(0, 2), 1))
    head = Inner(*HEAD, {name: image[name] for name in ("image_size", "patch_size")})
    wiring = dict(interactions=rng.choice((None, CHAIN)), num_register_tokens=rng.randint(0, 3), task_heads=head)
    yield Case(*WWT, shape, 0, image | draw_blocks(rng) | chosen | slots | wiring)
    yield Case(*HEAD, (2, 22, 30), 0, DECODED | dict(pathways=(rng.choice(((0, 1), (1,))),)), call=unpack)
