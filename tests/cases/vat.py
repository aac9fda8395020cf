"""Rows of `vat` and its ViT."""

import numpy as np

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, Inner, draw_blocks, draw_image


def views_first(make):
    """Views in upstream's layout, (b, v, c, ..., h, w), from the output of `channels_first`."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda video, *args, **kwargs: forward(video.movedim(1, 2), *args, **kwargs)
        return module

    return repaired


def one_view(make):
    """Images and videos without an axis of views, with which upstream crashes: an axis of length 1 is added."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda video, *args, **kwargs: forward(video[:, None], *args, **kwargs)
        return module

    return repaired


def distinct(make):
    """Different tokens, which FiLM does not shrink.

    Otherwise self-attention is so uniform that gradients of its queries are rounding errors, in
    torch too (4e-4 relative, float32 against float64).
    """
    import torch

    def repaired(**kwargs):
        module = make(**kwargs)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in ("register_tokens", "action_pos_emb"):
                    parameter.mul_(100)
                if name.endswith("to_gamma_beta.0.bias"):
                    parameter.chunk(2)[0].fill_(1)
        return module

    return repaired


def vit_tokens(make):
    """`num_classes=0`: without the head, the model returns the tokens."""

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        del module.mlp_head
        forward = module.forward
        module.forward = lambda images: forward(images, return_hiddens=True)[0]
        return module

    return repaired


NORM, DENSE = ("scale", "bias"), ("kernel", "bias")
ATTENTION = dict(norm=NORM, to_q=("kernel",), to_kv=("kernel",), to_out_gates=DENSE, to_out=DENSE)
ENTRANCE = dict(norm_in=NORM, proj=DENSE, norm_out=NORM)


def paths(name: str, **leaves: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of the parameters of the module `name`, given the leaves of each of its parts."""
    return tuple(f"{name}/{part}/{leaf}" for part in leaves for leaf in leaves[part])


def blocks_from(first: int, name: str, depth: int = 2, attention: dict = ATTENTION) -> tuple[str, ...]:
    """Paths of the parameters of the last blocks of the encoder `name`, and of its norm.

    They have no effect if only blocks before `first` are read.
    """
    unread = paths(f"{name}/transformer", norm=NORM)
    for i in range(first, depth):
        unread += paths(f"{name}/transformer/attn_{i}", **attention)
        unread += paths(f"{name}/transformer/ff_{i}", norm=NORM, fc1=DENSE, fc2=DENSE)
    return unread


VIT, VAT = ("vat:ViT", "vat:ViT"), ("vat", "vat:VAT")
PLAIN = IMAGE | BLOCKS
REGISTERS = dict(pool="mean", num_register_tokens=2, heads=1, dim_head=24)
TRUNK = PLAIN | dict(image_size=8)
ACTIONS = dict(vit=Inner(*VIT, TRUNK), dim=20, depth=2, heads=2, dim_head=7, mlp_dim=30, dim_action=6)
SMALL = ACTIONS | dict(self_attn_heads=3, self_attn_dim_head=5)
VIDEO = SMALL | dict(time_seq_len=3, num_views=2, vit_layer_indices=(2, 0), action_chunk_len=4)
ALONE = dict(add_self_attn=False, num_register_tokens=0)
NARROW = SMALL | dict(heads=1, dim_head=20, self_attn_heads=1, self_attn_dim_head=20, depth=1, vit_layer_indices=(-2,))
CONDITIONS = dict(num_tasks=3, dim_extra_token=5, num_advantage_bins=4)
CONDITIONED = SMALL | CONDITIONS | dict(vit=TRUNK | dict(num_register_tokens=1))
GIVEN = dict(extra=(2, 5), tasks=np.array([2, 0]), advantages=np.array([-1, 3]))
TARGETS = dict(extra=(2, 3, 5), tasks=np.array([1, 2]), actions=(2, 7, 6))

VIEWS = (2, 2, 8, 8, 3)

HEAD, IDLE_HEAD = paths("vit", mlp_head=DENSE), ("mlp_head/kernel", "mlp_head/bias")
BLOCK_1 = HEAD + blocks_from(1, "vit")
FROZEN = (*HEAD, "vit/cls_token", "vit/pos_embedding", *paths("vit/to_patch_embedding", **ENTRANCE))
FROZEN += blocks_from(0, "vit")
IDLE = ("task_emb", "advantage_emb", "to_extra_token/kernel", "to_extra_token/bias")
IDLE += tuple(f"film_{i}/{leaf}" for i in range(2) for leaf in DENSE)
SIX = dict(maps=6, unused=BLOCK_1, repairs=(distinct, views_first))
FOUR, ONE = SIX | dict(maps=4), SIX | dict(repairs=(distinct, one_view))
HIDDENS = dict(options=dict(return_hiddens=True))
TOKENS = dict(maps=2, repairs=(vit_tokens,))

CASES = [
    Case(*VAT, VIEWS, 37071, ACTIONS, **SIX),
    Case(*VAT, (2, 2, 3, 8, 8, 3), 19009, VIDEO, "video", **SIX | dict(unused=HEAD)),
    Case(*VAT, VIEWS, 16223, SMALL | ALONE, "alone", **FOUR),
    Case(*VAT, VIEWS, 14979, NARROW, "one-head", **FOUR),
    Case(*VAT, (2, 8, 8, 3), 18949, SMALL, "one-view", **ONE),
    Case(*VAT, (2, 3, 8, 8, 3), 18961, VIDEO | dict(num_views=None), "one-view-video", **ONE | dict(unused=HEAD)),
    Case(*VAT, VIEWS, 20933, CONDITIONED, "conditions", keyword_inputs=GIVEN, **HIDDENS, **SIX),
    Case(*VAT, VIEWS, 20933, CONDITIONED, "no-conditions", **SIX | dict(unused=BLOCK_1 + IDLE)),
    Case(*VAT, VIEWS, 20933, CONDITIONED, "loss", keyword_inputs=TARGETS, options=dict(advantages=2), **SIX),
    Case(*VAT, VIEWS, 18949, SMALL, "frozen", options=dict(freeze_vit=True), **SIX | dict(unused=FROZEN)),
    Case(*VIT, INPUT, 10867, PLAIN, maps=2),
    Case(*VIT, INPUT, 9615, PLAIN | REGISTERS, "mean-registers-one-head", maps=2),
    Case(*VIT, OBLONG_INPUT, 9606, PLAIN | OBLONG | dict(num_classes=0), "oblong-tokens", **TOKENS),
    Case(*VIT, INPUT, 10867, PLAIN, "hiddens", maps=2, unused=IDLE_HEAD, **HIDDENS),
]

PUBLISHED = {}  # the paper's sizes are unknown


def draw_actions(rng, depths: dict[str, int]):
    """Randomly drawn arguments of a model of actions, its conditions, and the layers of its encoders to read."""
    depth = rng.randint(1, 3)
    sizes = dict(dim=4 * rng.randint(2, 9), depth=depth, heads=rng.randint(1, 3), dim_head=rng.randint(3, 9))
    sizes |= dict(mlp_dim=rng.randint(5, 40), dim_action=rng.randint(1, 6), action_chunk_len=rng.randint(1, 8))
    sizes |= dict(num_register_tokens=rng.randint(0, 3), add_self_attn=rng.random() < 0.7)
    sizes |= dict(self_attn_heads=rng.randint(1, 3), self_attn_dim_head=rng.randint(3, 9))
    sizes |= {name: tuple(rng.randint(-1, of) for _ in range(depth)) for name, of in depths.items()}
    sizes |= dict(num_tasks=3, dim_extra_token=2, num_advantage_bins=rng.randint(1, 5))
    given = dict(extra=(2, 2), tasks=np.array([rng.randint(0, 2), 1]), advantages=np.array([-1, 0]))
    return sizes, {name: value for name, value in given.items() if rng.random() < 0.7}


def draw(rng):
    image, shape = draw_image(rng)
    trunk = image | draw_blocks(rng) | dict(num_register_tokens=rng.randint(0, 3))
    yield Case(*VIT, shape, 0, trunk | dict(pool=rng.choice(("cls", "mean"))))
    views, frames = rng.randint(1, 2), rng.randint(1, 3)
    sizes, given = draw_actions(rng, dict(vit_layer_indices=trunk["depth"]))
    sizes |= dict(vit=Inner(*VIT, trunk), num_views=views, time_seq_len=frames)
    shape = (2, views, *((frames,) if frames > 1 else ()), *shape[1:])
    yield Case(*VAT, shape, 0, sizes, keyword_inputs=given, repairs=(distinct, views_first))
