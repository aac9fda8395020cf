"""Rows of `levit`."""

from tests.cases.case import Case


def any_channels(make):
    """Any number of `channels`: the first convolution is replaced."""
    from torch import nn

    def repaired(*, channels, **kwargs):
        module = make(**kwargs)
        module.conv_embedding[0] = nn.Conv2d(channels, 32, 3, stride=2, padding=1)
        return module

    return repaired


def oblong(make):
    """Non-square images: position biases for distances in maps with two different sides."""
    import torch
    from vit_pytorch import levit

    def repaired(*, image_size, **kwargs):
        module = make(image_size=64, **kwargs)
        rows, columns = (side // 16 for side in image_size)
        for attention in module.modules():
            if isinstance(attention, levit.Attention):
                step = attention.to_q[0].stride[0]
                pixels = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
                asking = pixels[(pixels % step == 0).all(dim=1)]
                dy, dx = (asking[:, None] - pixels[None]).abs().unbind(dim=-1)
                attention.pos_bias = torch.nn.Embedding(rows * columns, attention.heads)
                attention.pos_indices = dy * columns + dx
                rows, columns = -(-rows // step), -(-columns // step)
                attention.to_out.register_forward_pre_hook(refold(columns))
        return module

    def refold(columns):
        """Upstream uses the rows of the queries' map as columns."""
        return lambda module, args: args[0].flatten(2).unflatten(2, (-1, columns))

    return repaired


def feature_map(make):
    """`num_classes=0`: without pooling and heads, the model returns the last feature map, channels-last."""
    from einops.layers.torch import Rearrange
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.pool, module.mlp_head = Rearrange("b d h w -> b h w d"), nn.Identity()
        return module

    return repaired


def paper_form(make):
    """`paper`: norms in place of biases, Hardswish in place of GELU, and another stem and halving attention."""
    from torch import nn
    from vit_pytorch import levit

    def norm(owner, name, layer, behind=True):
        """Add a norm, stored as `name` of `owner`, after a convolution (without its bias) or before a head."""
        made = nn.BatchNorm2d(layer.out_channels) if behind else nn.BatchNorm1d(layer.in_features)
        owner.add_module(name, made)
        if behind:
            layer.bias = None
            layer.register_forward_hook(lambda module, args, output: made(output))
        else:
            layer.register_forward_pre_hook(lambda module, args: made(args[0]))

    def repaired(*, paper, dim, dim_key, image_size, **kwargs):
        module = make(dim=dim, dim_key=dim_key, image_size=image_size, **kwargs)
        widths = (3, dim[0] // 8, dim[0] // 4, dim[0] // 2, dim[0])
        for i in range(4):
            module.conv_embedding[i] = nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1)
            norm(module, f"stem_norm_{i}", module.conv_embedding[i])
            if i > 0:
                swish = lambda module, args: nn.functional.hardswish(args[0])
                module.conv_embedding[i].register_forward_pre_hook(swish)
        side = image_size // 16
        for i in range(len(dim) - 1):
            sizes = (dim[i], side, 1, dim[i] // dim_key, dim_key, 4 * dim_key)
            module.backbone[2 * i + 1] = levit.Transformer(*sizes, dim_out=dim[i + 1], downsample=True)
            side = -(-side // 2)
        for attention, feed_forward in (layer for stage in module.backbone for layer in stage.layers):
            attention.to_out[0], attention.to_out[1].bias = nn.Hardswish(), None
            norm(feed_forward, "fc1_norm", feed_forward.net[0])
            norm(feed_forward, "fc2_norm", feed_forward.net[3])
        norm(module, "mlp_head_norm", module.mlp_head, behind=False)
        if isinstance(module.distill_head, nn.Linear):
            norm(module, "distill_head_norm", module.distill_head, behind=False)
        return module

    return repaired


def levit(shape, parameters, kwargs, note="", *, depths, repairs=()):
    """A row; the bias of the norm of keys shifts all scores of a query equally."""
    layers = [(2 * i, j) for i, depth in enumerate(depths) for j in range(depth)]
    layers += [(2 * i + 1, 0) for i in range(len(depths) - 1)]
    cancelled = tuple(f"backbone.{n}.layers.{i}.0.to_k.1.bias" for n, i in layers)
    # Attention is nearly uniform after norms whose scale starts at 0: upstream's own float32 gradients, of these layers
    # and of earlier ones, are 2e-5 and more from float64.
    faint = (*cancelled, r"to_[qk]", r"pos_bias")
    rest = dict(maps=len(layers), faint=faint, repairs=repairs, tolerance=3e-5)
    return Case("levit", "levit:LeViT", shape, parameters, kwargs, note, **rest)


PLAIN = dict(image_size=48, num_classes=5, dim=(16, 24), depth=(1, 2), heads=(2, 1), mlp_mult=2, stages=2)
PLAIN |= dict(dim_key=8, dim_value=12)
TWO = dict(image_size=48, num_classes=5, dim=16, depth=1, heads=(1, 2), mlp_mult=3, num_distill_classes=7)
TWO |= dict(dim_key=4, dim_value=4, stages=2)
MAP = PLAIN | dict(image_size=(32, 48), channels=1, num_classes=0, depth=(1, 0))
PAPER = PLAIN | dict(paper=True, num_distill_classes=3, depth=(1, 0))

CASES = [
    levit((2, 48, 48, 3), 126939, PLAIN, depths=(1, 2)),
    levit((2, 48, 48, 3), 117751, TWO, "two-heads", depths=(1, 1)),
    levit((2, 32, 48, 1), 119284, MAP, "oblong-map", depths=(1, 0), repairs=(any_channels, feature_map, oblong)),
    levit((2, 48, 48, 3), 10262, PAPER, "paper", depths=(1, 0), repairs=(paper_form,)),
]


def _published(millions: float, dim: int) -> tuple[float, float]:
    """Table 2 of the paper, in millions, without the second head and its norm."""
    return millions * 1e6 - 1000 * (dim + 1) - 2 * dim, 0.007


PUBLISHED = {
    "levit/128s": _published(7.8, 384),
    "levit/128": _published(9.2, 384),
    "levit/192": _published(10.9, 384),
    "levit/256": _published(18.9, 512),
    "levit/384": _published(39.1, 768),
}

EXEMPT = {
    "bad_sizes": "has no patches",
    "large_images": "takes images of one size",
    "unfilled_images": "has messages of its own",
}


def draw(rng):
    stages, side = rng.randint(1, 3), 16 * rng.randint(2, 4)
    numbers = lambda choices: tuple(rng.choice(choices) for _ in range(rng.randint(1, stages)))
    depth = numbers((0, 1))
    kwargs = dict(image_size=side, stages=stages, dim=numbers((8, 20, 32)), depth=depth, heads=numbers((1, 2, 3)))
    kwargs |= dict(dim_key=rng.choice((4, 7, 16)), dim_value=rng.choice((5, 8)), mlp_mult=rng.randint(1, 3))
    kwargs |= dict(num_classes=rng.randint(2, 12), num_distill_classes=rng.choice((None, 3)))
    depths = depth + depth[-1:] * (stages - len(depth))
    yield levit((2, side, side, 3), 0, kwargs, depths=depths)
