"""Rows of `vit_with_decorr`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image


def decorr_tokens(make):
    """`num_classes=0`: without the head, the model returns the first output of the transformer."""
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.mlp_head = nn.Identity()
        encoded, forward = [], module.forward
        module.transformer.register_forward_hook(lambda module, args, output: encoded.append(output[0]))

        def tokens_and_loss(*args, **kwargs):
            _, loss = forward(*args, **kwargs)
            return encoded.pop(), loss

        module.forward = tokens_and_loss
        return module

    return repaired


DECORR = ("vit_with_decorr", "vit_with_decorr:ViT")
PLAIN = IMAGE | BLOCKS
TOKENS = PLAIN | OBLONG | dict(num_classes=0, decorr_mean_center=True)
SUBSPACES = PLAIN | dict(decorr_use_subspace=True, decorr_dim_subspace=7, decorr_num_subspaces=3)
ACROSS = dict(
    decorr_mean_center=True, decorr_layer_outputs_across_depth=True, decorr_sample_frac=0.1, pool="mean", depth=3
)
LOSS = dict(return_decorr_aux_loss=True)

CASES = [
    Case(*DECORR, INPUT, 10741, PLAIN, maps=2),
    Case(*DECORR, INPUT, 10741, PLAIN, "loss", maps=2, options=LOSS),
    Case(*DECORR, INPUT, 10741, SUBSPACES, "subspaces", maps=2, options=LOSS),
    Case(*DECORR, INPUT, 15149, PLAIN | ACROSS, "across-depth", maps=3, options=LOSS),
    Case(*DECORR, OBLONG_INPUT, 9480, TOKENS, "oblong-tokens", maps=2, options=LOSS, repairs=(decorr_tokens,)),
    Case(*DECORR, INPUT, 10741, PLAIN | dict(decorr_sample_frac=0.0), "no-loss", maps=2, options=LOSS),
]

PUBLISHED = {"vit_with_decorr/b16": (86_543_080, 0)}  # upstream's ViT-B; the paper gives none


def draw(rng):
    image, shape = draw_image(rng)
    names = ("decorr_use_subspace", "decorr_mean_center", "decorr_layer_outputs_across_depth")
    subspaces = dict(decorr_dim_subspace=rng.randint(2, 15), decorr_num_subspaces=rng.randint(1, 3))
    flags = {name: rng.random() < 0.5 for name in names} | dict(pool=rng.choice(("cls", "mean")))
    yield Case(*DECORR, shape, 0, image | draw_blocks(rng) | subspaces | flags, options=LOSS)
