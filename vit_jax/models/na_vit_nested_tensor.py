"""NaViT as in upstream's version for torch's nested tensors: other norms, the same packing.

Derives from `NaViT` (vit_jax/models/na_vit.py) and overrides its attention, its patch embedding and its
pooling.

Source: Dehghani et al. 2023, arXiv:2307.06304. Upstream: vit_pytorch/na_vit_nested_tensor.py.
Differs from upstream: images are packed and masked, as shapes under jit are fixed; the patch embedding and positions
get gradients (upstream: its nested tensor stops them); as NaViT it takes packed images, batches and lists of lists,
groups images, has non-square patches, `num_classes=0`, a function as `token_dropout_prob`, and an initial std of 0.02.
Differs from the paper: as NaViT does; all heads share one LayerNorm of queries and keys; the pooling has no residual.
Axes: b rows, n tokens, m context, s images of a row, d dim, h heads, q query, j key.
"""

import numpy as np
from einops import rearrange
from flax import linen as nn

from vit_jax.layers import Dense, LayerNorm, attend
from vit_jax.layers.shapes import Tokens
from vit_jax.models.na_vit import MODULE_RULES, PRESETS, Context, EmbedPatches, Mask, NaViT, Norm

__all__ = ["PRESETS", "NaViTNestedTensor"]


class Attention(nn.Module):
    """Scaled attention of `x` over itself, or over a context, where `mask` is True."""

    heads: int
    dim_head: int
    dropout: float
    qk_norm: bool

    @nn.compact
    def __call__(self, x: Tokens, mask: Mask, context: Context | None = None, *, train: bool = False) -> Tokens:
        x = Norm(name="norm")(x)
        source = x if context is None else context
        inputs = {"to_queries": x, "to_keys": source, "to_values": source}
        qkv = (Dense(self.heads * self.dim_head, use_bias=False, name=name)(value) for name, value in inputs.items())
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in qkv)
        if self.qk_norm:
            q, k = Norm(name="query_norm")(q), Norm(name="key_norm")(k)
        out = attend(self, q, k, v, mask=mask[:, None], dropout=self.dropout, train=train)
        return Dense(x.shape[-1], use_bias=False, name="to_out")(out)


class NaViTNestedTensor(NaViT):
    """Classifier: images (h, w, c) of different sizes to logits (i, k); with `num_classes=0` to features (i, d).

    Images are passed as to `NaViT`.

    Args:
        image_size: largest size of an image: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for pooled features.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        token_dropout_prob: share of the patches of an image to drop in training, or a function of
            (height, width) that returns it.
        qk_rmsnorm: normalise the queries and keys of the blocks.
        drop_path: rate of stochastic depth in the last block, for all images of a sequence at once; it
            rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size` or an image, or an image is larger
            than `image_size`.
    """

    qk_rmsnorm: bool = True

    def make_attention(self, dropout: float, name: str) -> nn.Module:
        qk_norm = self.qk_rmsnorm or name == "attn_pool"
        return Attention(self.heads, self.dim_head, dropout, qk_norm, name=name)

    def make_patch_embedding(self) -> nn.Module:
        return EmbedPatches(self.dim, LayerNorm, name="to_patch_embedding")

    def pool_images(self, queries: Tokens, mask: Mask, x: Context, *, train: bool) -> Tokens:
        """As `NaViT.pool_images`, without a residual."""
        return self.make_attention(0.0, "attn_pool")(queries, mask, x, train=train)

    torch_rules = MODULE_RULES

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Nothing: unlike `NaViT`, this model has a bias wherever upstream has one."""
        return {}
