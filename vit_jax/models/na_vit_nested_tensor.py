"""NaViT as upstream writes it over torch's nested tensors, which need no padding: other norms, the same packing.

Source: Dehghani et al. 2023, arXiv:2307.06304. Upstream: vit_pytorch/na_vit_nested_tensor.py.
Differs from upstream: images are packed and masked, as shapes under jit are fixed; the patch embedding and positions
get gradients (upstream: its nested tensor cuts them off); all else as for NaViT: packed images and batches, lists of
lists and grouping, non-square patches, `num_classes=0`, a function as `token_dropout_prob`, starts of 0.02.
Differs from the paper: as NaViT does; queries and keys have one LayerNorm for all heads, and the pool no residual.
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
    """Scaled attention of x over itself, or over a context, where `mask` allows."""

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
    """`NaViT` with norms of its own; `qk_rmsnorm=False` leaves queries and keys of the blocks as they are."""

    qk_rmsnorm: bool = True

    def make_attention(self, dropout: float, name: str) -> nn.Module:
        qk_norm = self.qk_rmsnorm or name == "attn_pool"
        return Attention(self.heads, self.dim_head, dropout, qk_norm, name=name)

    def make_patch_embedding(self) -> nn.Module:
        return EmbedPatches(self.dim, LayerNorm, name="to_patch_embedding")

    def pool_images(self, queries: Tokens, mask: Mask, x: Context, *, train: bool) -> Tokens:
        """As NaViT's, without a residual."""
        return self.make_attention(0.0, "attn_pool")(queries, mask, x, train=train)

    torch_rules = MODULE_RULES

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Nothing: unlike `NaViT`, this model has a bias wherever upstream has one."""
        return {}
