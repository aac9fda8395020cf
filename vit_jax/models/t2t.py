"""T2T-ViT: patches that overlap, and are merged and attended to in turn until few enough are left.

Source: Yuan et al. 2021, arXiv:2101.11986. Upstream: vit_pytorch/t2t.py.
Differs from upstream: images may be non-square; `num_classes=0` gives tokens; tokens and positions start at a
deviation of 0.02 (upstream: 1).
Differs from the paper: positions are learned; by default each merging stage attends at its unfolded width, as
upstream's does (`token_dim` and the paper's presets: at the paper's, 64).
Axes: b batch, n tokens, e extra tokens, d dim, k classes.
"""

import math
from typing import ClassVar

from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, PlainViT, ToHeads, Transformer, attend, unfold, unfold_grid
from vit_jax.layers.check import at_least, expect, pair
from vit_jax.layers.rules import TRANSFORMER_RULES
from vit_jax.layers.shapes import Images, Tokens


class TokenTransformer(nn.Module):
    """The paper's merging stage: attention of one head narrows tokens to `dim`, its values being the residual."""

    dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], *, train: bool = False) -> Tokens:
        q, k, v = ToHeads(3, 1, self.dim, name="to_qkv")(LayerNorm(name="norm")(x))
        out = Dense(self.dim, name="to_out")(attend(self, q, k, v))
        x = v[:, 0] + nn.Dropout(self.dropout)(out, deterministic=not train)
        return x + FeedForward(self.dim, self.dropout, name="ff")(x, train=train)


class TokensToToken(nn.Module):
    """Image (b, H, W, c) to tokens (b, n, dim): at each of `t2t_layers`, (kernel, stride), windows become tokens."""

    dim: int
    t2t_layers: tuple[tuple[int, int], ...]
    dropout: float
    token_dim: int | None

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Tokens:
        x = images
        for i, (kernel, stride) in enumerate(self.t2t_layers):
            x = unfold(x, (kernel, kernel), (stride, stride), padding=stride // 2)
            (_, rows, _, width), name = x.shape, f"transformer_{i}"
            x = rearrange(x, "b h w c -> b (h w) c")
            if i < len(self.t2t_layers) - 1:
                if self.token_dim is None:
                    merge = Transformer(width, 1, 1, width, width, self.dropout, name=name)
                else:
                    merge = TokenTransformer(self.token_dim, self.dropout, name=name)
                x = rearrange(merge(x, train=train), "b (h w) c -> b h w c", h=rows)
        return Dense(self.dim, name="proj")(x)


class T2TViT(PlainViT):
    """The plain ViT, but for where its tokens come from.

    `transformer` maps tokens (b, n, dim) to the same shape and is called with `train=` besides; without it one is
    made of `depth`, `heads`, `mlp_dim`, `dim_head` and `dropout`. With `token_dim` the merging stages are the paper's,
    that wide; the paper's presets have it, and take upstream's weights with `token_dim=None`.
    Raises ValueError when neither is given, when the image is smaller than a window of `t2t_layers`, or for a `pool`
    other than "cls" and "mean".
    """

    patch_size: ClassVar[None] = None
    depth: int | None = None
    heads: int | None = None
    mlp_dim: int | None = None
    transformer: nn.Module | None = None
    t2t_layers: tuple[tuple[int, int], ...] = ((7, 4), (3, 2), (3, 2))
    token_dim: int | None = None

    def __post_init__(self):
        expect(self, "t2t_layers", len(self.t2t_layers) > 0, "at least one (kernel, stride)")
        at_least(self, token_dim=1)
        self._token_grid()
        if self.transformer is None:
            sizes = dict(depth=self.depth, heads=self.heads, mlp_dim=self.mlp_dim)
            if missing := [name for name, value in sizes.items() if value is None]:
                raise ValueError(f"{', '.join(missing)} not given: expected numbers, or a transformer")
            transformer = Transformer(dim=self.dim, dim_head=self.dim_head, dropout=self.dropout, parent=None, **sizes)
            object.__setattr__(self, "transformer", transformer)
        super().__post_init__()

    def _token_grid(self) -> tuple[int, int]:
        grid = pair("image_size", self.image_size)
        for kernel, stride in self.t2t_layers:
            grid = unfold_grid(grid, (kernel, kernel), (stride, stride), stride // 2)
        return grid

    def setup(self):
        self.to_patch_embedding = TokensToToken(self.dim, self.t2t_layers, self.dropout, self.token_dim)
        self.cls_token, self.pos_embedding = self.make_tokens(math.prod(self._token_grid()))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        if self.num_classes:
            self.mlp_head = Dense(self.num_classes)

    def patches(self, images: Images, *, train: bool) -> Tokens:
        return self.to_patch_embedding(images, train=train)


def _paper(dim, depth, mlp_ratio):
    return dict(image_size=224, dim=dim, depth=depth, heads=dim // 64, mlp_dim=mlp_ratio * dim, token_dim=64)


PRESETS = {
    "tiny": dict(image_size=32, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128, t2t_layers=((3, 2), (3, 2))),
    "7": _paper(256, 7, 2),
    "10": _paper(256, 10, 2),
    "12": _paper(256, 12, 2),
    "14": _paper(384, 14, 3),
    "19": _paper(448, 19, 3),
    "24": _paper(512, 24, 3),
}


def torch_rules(model: T2TViT) -> tuple[tuple[str, str], ...]:
    """Upstream's entrance is one Sequential: four entries for each merging stage, then the projection."""
    stages = len(model.t2t_layers)
    return (
        *((f"to_patch_embedding/transformer_{i}", f"to_patch_embedding.{4 * i + 3}") for i in range(stages - 1)),
        ("to_patch_embedding/proj", f"to_patch_embedding.{4 * stages}"),
        *TRANSFORMER_RULES,
    )
