"""ViT with PatchDropout: trained on a random subset of each image's patches, evaluated on all.

Derives from the frame `PlainViT`; drops patches before the transformer and overrides the patch projection.

Source: Liu et al. 2022, arXiv:2208.07220. Upstream: vit_pytorch/vit_with_patch_dropout.py.
Differs from upstream: `num_classes=0` gives tokens; images may be smaller than `image_size`; tokens and positions have
an initial std of 0.02 (upstream: 1).
Differs from the paper: the class token has no position; no bias in query, key and value.
Axes: b batch, n tokens, e extra tokens, d dim, k classes.
"""

from flax import linen as nn
from jaxtyping import Array

from vit_jax.frames import PlainViT
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import HEAD_RULES, PATCH_PROJECTION_RULES, TRANSFORMER_RULES
from vit_jax.layers import PatchDropout, PatchProjection, add_positions, append, prepend
from vit_jax.layers.check import expect, pair
from vit_jax.layers.shapes import ExtraTokens, Images, Patches, Tokens


class ViTWithPatchDropout(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        patch_dropout: share of the patches to drop in training, at least 0 and below 1.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `pool` is neither "cls" nor
            "mean", or `patch_dropout` is not in [0, 1).
    """

    patch_dropout: float = 0.25

    def __post_init__(self):
        expect(self, "patch_dropout", 0 <= self.patch_dropout < 1, "at least 0 and below 1")
        super().__post_init__()

    def make_patch_embedding(self) -> nn.Module:
        return PatchProjection(pair("patch_size", self.patch_size), self.dim)

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        """Class token (1, 1, d), and positions of the patches only, (n, d)."""
        init = nn.initializers.normal(0.02)
        return self.param("cls_token", init, (1, 1, self.dim)), self.param("pos_embedding", init, (patches, self.dim))

    def setup(self):
        super().setup()
        self.drop_patches = PatchDropout(self.patch_dropout)

    def embed(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer: the class token, the patches that are kept, the extra tokens."""
        self.check_positions(images)
        x = self.to_patch_embedding(images) if patches is None else patches
        x = add_positions(x, self.pos_embedding)
        x = prepend(self.cls_token, self.drop_patches(x, train=train))
        if extra_tokens is not None:
            x = append(x, extra_tokens)
        return self.embedding_dropout(x, deterministic=not train)

    torch_rules = (*PATCH_PROJECTION_RULES, *TRANSFORMER_RULES, *HEAD_RULES)


PRESETS = {"tiny": TINY, "ti16": vit_sizes(192), "s16": vit_sizes(384), "b16": vit_sizes(768)}
