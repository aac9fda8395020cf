"""NaViT as upstream writes it over torch's nested tensors, which need no padding: other norms, the same packing.

Source: Dehghani et al. 2023, arXiv:2307.06304. Upstream: vit_pytorch/na_vit_nested_tensor.py.
Differs from upstream: images are packed and masked, as shapes under jit are fixed; the patch embedding and positions
get gradients (upstream: its nested tensor cuts them off); all else as for NaViT: packed images and batches, lists of
lists and grouping, non-square patches, `num_classes=0`, a function as `token_dropout_prob`, starts of 0.02.
Differs from the paper: as NaViT does; queries and keys have one LayerNorm for all heads, and the pool no residual.
Axes: b rows, n tokens, m context, s images of a row, d dim, h heads, q query, j key.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.layers import Dense, LayerNorm
from vit_jax.models import na_vit

PRESETS = na_vit.PRESETS


class Attention(na_vit.Attention):
    """Scaled attention of x over itself, or over a context, where `mask` allows."""

    qk_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        mask: Bool[Array, "b n m"],
        context: Float[Array, "b m d"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(use_bias=False, name="norm")(x)
        source = x if context is None else context
        inputs = {"to_queries": x, "to_keys": source, "to_values": source}
        q, k, v = (Dense(inner_dim, use_bias=False, name=name)(value) for name, value in inputs.items())
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (q, k, v))
        if self.qk_norm:
            q, k = LayerNorm(use_bias=False, name="query_norm")(q), LayerNorm(use_bias=False, name="key_norm")(k)
        scores = jnp.einsum("bhqd,bhjd->bhqj", q, k) * self.dim_head**-0.5
        return Dense(dim, use_bias=False, name="to_out")(self.weigh(scores, v, mask, train=train))


class NaViTNestedTensor(na_vit.NaViT):
    """`NaViT` with norms of its own; `qk_rmsnorm=False` leaves queries and keys of the blocks as they are."""

    qk_rmsnorm: bool = True

    def make_attention(self, dropout: float, name: str) -> nn.Module:
        qk_norm = self.qk_rmsnorm or name == "attn_pool"
        return Attention(self.heads, self.dim_head, dropout, qk_norm, name=name)

    def make_patch_embedding(self) -> nn.Module:
        return na_vit.EmbedPatches(self.dim, use_bias=True, name="to_patch_embedding")

    def pool_images(
        self, queries: Float[Array, "b s d"], of_image: Bool[Array, "b s n"], x: Float[Array, "b n d"], *, train
    ):
        """As NaViT's, without a residual."""
        return self.make_attention(0.0, "attn_pool")(queries, of_image, x, train=train)


TORCH_RULES = (
    (r"to_patch_embedding/norm_in", "to_patch_embedding.0"),
    (r"to_patch_embedding/norm_out", "to_patch_embedding.2"),
    (r"attn_(\d+)/norm", r"transformer.layers.\1.0.norm"),
    (r"attn_pool/norm", "attn_pool.norm"),
    (r"ff_(\d+)/norm", r"transformer.layers.\1.1.0"),
    (r"norm_head", "mlp_head.0"),
    (r"norm", "transformer.norm"),
    *na_vit.BLOCK_RULES,
)
