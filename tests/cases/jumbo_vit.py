"""Rows of `jumbo_vit`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image


def plain_widths(make):
    """`multiply_widths=False`: multipliers with which upstream's widths are the same."""

    def repaired(*, multiply_widths, dim, mlp_dim, jumbo_cls_k, jumbo_ff_mult, **kwargs):
        mlp_mult, jumbo_mult = (mlp_dim + 0.5) / dim, (jumbo_ff_mult + 0.5) / (dim * jumbo_cls_k)
        return make(dim=dim, mlp_dim=mlp_mult, jumbo_cls_k=jumbo_cls_k, jumbo_ff_mult=jumbo_mult, **kwargs)

    return repaired


def tokens(make):
    """`num_classes=0`: the model returns pieces and patches after the last layer."""
    import torch
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.norm = module.linear_head = nn.Identity()
        outputs, forward = {}, module.forward
        for name, branch in (("pieces", module.jumbo_ff), ("patches", module.layers[-1][1])):
            branch.register_forward_hook(lambda _, args, out, name=name: outputs.update({name: args[0] + out}))
        module.forward = lambda images: (forward(images), torch.cat((outputs["pieces"], outputs["patches"]), 1))[1]
        return module

    return repaired


JUMBO = ("jumbo_vit", "jumbo_vit:JumboViT")
PLAIN = IMAGE | BLOCKS | dict(mlp_dim=2, jumbo_cls_k=2, jumbo_ff_mult=1)
WIDTHS = IMAGE | BLOCKS | dict(num_jumbo_cls=2, jumbo_cls_k=3, jumbo_ff_mult=2, multiply_widths=False)
TOKENS = PLAIN | OBLONG | dict(num_classes=0, num_jumbo_cls=2, jumbo_ff_mult=0.5)
LAST = ("norm/scale", "norm/bias", "fc1/kernel", "fc1/bias", "fc2/kernel", "fc2/bias")
UNUSED = tuple(f"transformer/ff_1/{name}" for name in LAST)  # patches after the last attention are not pooled

CASES = [
    Case(*JUMBO, INPUT, 234725, PLAIN, maps=2, unused=UNUSED),
    Case(*JUMBO, INPUT, 31501, WIDTHS, "widths", maps=2, unused=UNUSED, repairs=(plain_widths,)),
    Case(*JUMBO, OBLONG_INPUT, 121816, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
]

EXEMPT = {"large_images": "computes positions for any image"}
# Our own counts: the head is smaller than the paper's, and norms and positions are different.
PUBLISHED = {
    "jumbo_vit/pico16": (4_169_032, 0),
    "jumbo_vit/nano16": (7_327_336, 0),
    "jumbo_vit/ti16": (16_298_152, 0),
    "jumbo_vit/s16": (64_444_264, 0),
    "jumbo_vit/b16": (128_867_560, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    sizes = dict(dim=8 * rng.randint(2, 4), mlp_dim=rng.randint(1, 4), jumbo_ff_mult=rng.choice((0.5, 1, 2)))
    jumbo = dict(num_jumbo_cls=rng.randint(1, 3), jumbo_cls_k=rng.randint(1, 3))
    yield Case(*JUMBO, shape, 0, image | draw_blocks(rng) | sizes | jumbo)
