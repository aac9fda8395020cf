"""Rows of `vat_siglip` and its SigLIP."""

from tests.cases.case import Case
from tests.cases.vat import (
    CONDITIONS,
    DENSE,
    GIVEN,
    HIDDENS,
    IDLE,
    NORM,
    blocks_from,
    distinct,
    draw_actions,
    one_view,
    paths,
    views_first,
)


def oblong_siglip(make):
    """Non-square images and patches, any number of channels: another projection, with matching positions."""
    import torch
    from einops.layers.torch import Rearrange
    from torch import nn

    def repaired(*, image_size, patch_size, channels, dim, **kwargs):
        module = make(image_size=8, patch_size=4, dim=dim, **kwargs)
        (height, width), (ph, pw) = image_size, patch_size
        rearrange = Rearrange("b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=ph, pw=pw)
        module.to_patch_embed = nn.Sequential(rearrange, nn.Linear(ph * pw * channels, dim))
        module.pos_embed = nn.Parameter(torch.randn((height // ph) * (width // pw), dim))
        return module

    return repaired


SIGLIP, VAT = ("vat_siglip:SigLIP", "vat_siglip:SigLIP"), ("vat_siglip", "vat_siglip:SigLIPVAT")
TOWER = dict(image_size=8, patch_size=4, dim=24, depth=2, heads=3, mlp_dim=40)
OBLONG = TOWER | dict(image_size=(8, 12), patch_size=(4, 2), channels=1, heads=5, norm_eps=1e-3)
SIZES = dict(dim=20, depth=2, heads=2, dim_head=7, mlp_dim=30, dim_action=6)
PLAIN = SIZES | {f"siglip_{name}": value for name, value in TOWER.items()}
SMALL = PLAIN | dict(self_attn_heads=3, self_attn_dim_head=5, action_chunk_len=7)
VIDEO = SMALL | dict(time_seq_len=3, num_views=2, vit_layer_indices=(2, 0), siglip_norm_eps=1e-3)
ALONE = SMALL | dict(add_self_attn=False, num_register_tokens=0, depth=1, heads=1, dim_head=20)
CONDITIONED = SMALL | CONDITIONS | dict(num_views=2)
VIEWS, ONE_VIEW = (2, 2, 8, 8, 3), (2, 8, 8, 3)

ATTENTION = dict(norm=NORM, to_q=DENSE, to_kv=DENSE, to_out=DENSE)
BLOCKS, BLOCK_1 = (blocks_from(i, "vit", attention=ATTENTION) for i in range(2))
FROZEN = (*BLOCKS, "vit/pos_embed", *paths("vit/to_patch_embed", proj=DENSE))
SIX = dict(maps=6, unused=BLOCK_1, repairs=(distinct, views_first))

CASES = [
    Case(*VAT, VIEWS, 38316, PLAIN, **SIX),
    Case(*VAT, (2, 2, 3, 8, 8, 3), 18818, VIDEO, "video", **SIX | dict(unused=())),
    Case(*VAT, VIEWS, 13819, ALONE, "alone", **SIX | dict(maps=3, unused=BLOCKS)),
    Case(*VAT, ONE_VIEW, 18698, SMALL, "one-view", **SIX | dict(repairs=(distinct, one_view))),
    Case(*VAT, VIEWS, 20706, CONDITIONED, "conditions", keyword_inputs=GIVEN, **HIDDENS, **SIX),
    Case(*VAT, VIEWS, 20706, CONDITIONED, "no-conditions", **SIX | dict(unused=BLOCK_1 + IDLE)),
    Case(*VAT, VIEWS, 18698, SMALL, "loss", keyword_inputs=dict(actions=(2, 7, 6)), **SIX),
    Case(*VAT, VIEWS, 18698, SMALL, "frozen", options=dict(freeze_vit=True), **SIX | dict(unused=FROZEN)),
    Case(*SIGLIP, ONE_VIEW, 10280, TOWER, maps=2),
    Case(*SIGLIP, (2, 8, 12, 1), 8720, OBLONG, "oblong-five-heads", maps=2, repairs=(oblong_siglip,)),
    Case(*SIGLIP, ONE_VIEW, 10280, TOWER, "hiddens", maps=2, **HIDDENS),
]

PUBLISHED = {}  # there is no classifier


def draw(rng):
    patch, heads = rng.choice((2, 4)), rng.randint(1, 3)
    side = patch * rng.randint(2, 4)
    tower = dict(image_size=side, patch_size=patch, dim=heads * rng.randint(4, 9), depth=rng.randint(1, 3), heads=heads)
    tower |= dict(mlp_dim=rng.randint(5, 50))
    yield Case(*SIGLIP, (2, side, side, 3), 0, tower)
    views, frames = rng.randint(1, 2), rng.randint(1, 3)
    sizes, given = draw_actions(rng, dict(vit_layer_indices=tower["depth"]))
    sizes |= {f"siglip_{name}": value for name, value in tower.items()} | dict(num_views=views, time_seq_len=frames)
    shape = (2, views, *((frames,) if frames > 1 else ()), side, side, 3)
    yield Case(*VAT, shape, 0, sizes, keyword_inputs=given, repairs=(distinct, views_first))
