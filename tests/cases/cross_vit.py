"""Rows of `cross_vit`."""

from tests.cases.case import INPUT, OBLONG_INPUT, Case
from tests.cases.repairs import set_positions


def oblong_cross_vit(make):
    """Non-square images and patches: in each branch another patch projection, with matching positions."""
    from einops.layers.torch import Rearrange
    from torch import nn

    def repaired(*, image_size, sm_patch_size, lg_patch_size, channels, **kwargs):
        module = make(image_size=8, sm_patch_size=4, lg_patch_size=4, channels=channels, **kwargs)
        patches = {module.sm_image_embedder: sm_patch_size, module.lg_image_embedder: lg_patch_size}
        for embedder, (ph, pw) in patches.items():
            embed, dim = embedder.to_patch_embedding, embedder.pos_embedding.shape[-1]
            embed[0] = Rearrange("b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=ph, pw=pw)
            embed[1] = nn.LayerNorm(ph * pw * channels)
            embed[2] = nn.Linear(ph * pw * channels, dim)
            set_positions(embedder, (image_size[0] // ph) * (image_size[1] // pw), before=4)
        return module

    return repaired


def both_tokens(make):
    """`num_classes=0`: the model returns the tokens of both branches."""

    def repaired(*, num_classes, **kwargs):
        from torch import nn

        module = make(num_classes=1, **kwargs)
        module.sm_mlp_head = module.lg_mlp_head = nn.Identity()
        embedders = module.sm_image_embedder, module.lg_image_embedder
        module.forward = lambda images: module.multi_scale_encoder(*(embed(images) for embed in embedders))
        return module

    return repaired


CROSS_VIT = ("cross_vit", "cross_vit:CrossViT")
SMALL = dict(sm_patch_size=4, sm_dim=16, sm_enc_depth=1, sm_enc_heads=2, sm_enc_mlp_dim=20, sm_enc_dim_head=8)
LARGE = dict(lg_patch_size=8, lg_dim=24, lg_enc_depth=1, lg_enc_heads=3, lg_enc_mlp_dim=28, lg_enc_dim_head=4)
CROSS = dict(depth=1, cross_attn_depth=1, cross_attn_heads=2, cross_attn_dim_head=8, dropout=0.0, emb_dropout=0.0)
PLAIN = dict(image_size=16, num_classes=5) | SMALL | LARGE | CROSS
# One head as wide as the tokens, branches of equal width, two rounds of all parts.
ALIKE = PLAIN | dict(lg_dim=16, sm_enc_heads=1, sm_enc_dim_head=16, depth=2, lg_enc_depth=2, cross_attn_depth=2)
OBLONG = dict(image_size=(8, 12), sm_patch_size=(4, 2), lg_patch_size=(2, 6), channels=1, num_classes=0)
TOKENS = PLAIN | OBLONG

CASES = [
    Case(*CROSS_VIT, INPUT, 15522, PLAIN, maps=4),
    Case(*CROSS_VIT, INPUT, 24450, ALIKE, "alike-twice", maps=14),
    Case(*CROSS_VIT, OBLONG_INPUT, 9864, TOKENS, "oblong-tokens", maps=4, repairs=(oblong_cross_vit, both_tokens)),
]

# Tables 1 and 3 of the paper, in millions. Here heads of cross attention have the same width in both directions.
PUBLISHED = {
    "cross_vit/ti": (6.9e6, 0.04),
    "cross_vit/s": (26.7e6, 0.04),
    "cross_vit/b": (104.7e6, 0.04),
    "cross_vit/9": (8.6e6, 0.04),
    "cross_vit/15": (27.4e6, 0.04),
    "cross_vit/18": (43.3e6, 0.04),
}

EXEMPT = {"bad_sizes": "has two patch sizes"}


def draw(rng):
    branch = lambda: dict(
        patch_size=rng.choice((2, 4, 6)),
        dim=8 * rng.randint(2, 5),
        enc_depth=rng.randint(1, 2),
        enc_heads=rng.randint(1, 4),
        enc_mlp_dim=rng.randint(5, 60),
        enc_dim_head=rng.choice((4, 7, 16)),
    )
    branches = {f"{name}_{key}": value for name in ("sm", "lg") for key, value in branch().items()}
    cross = dict(
        depth=rng.randint(1, 2),
        cross_attn_depth=rng.randint(1, 2),
        cross_attn_heads=rng.randint(1, 4),
        cross_attn_dim_head=rng.choice((4, 7, 16)),
        channels=rng.randint(1, 3),
        num_classes=rng.randint(2, 12),
    )
    yield Case(*CROSS_VIT, (2, 12, 12, cross["channels"]), 0, dict(image_size=12) | branches | cross)
