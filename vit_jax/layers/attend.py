"""Scaled dot-product attention. Source: Vaswani et al. 2017, arXiv:1706.03762."""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.layers.attention_forms import attention, attention_map


def attend(
    module: nn.Module,
    q: Float[Array, "*b h i d"],
    k: Float[Array, "*b h j d"],
    v: Float[Array, "*b h j e"],
    *,
    scale: float | Float[Array, ""] | None = None,
    bias: Float[Array, "*#b #h i j"] | None = None,
    mask: Bool[Array, "*#b #h #i j"] | None = None,
    dropout: float = 0.0,
    train: bool = False,
) -> Float[Array, "*b i he"]:
    """Return the attention output, heads concatenated: softmax(q kᵀ scale + bias) v for each head.

    The attention map is computed as a whole only if it is collected, if it has dropout, or for few tokens. Otherwise
    a fused form computes the same (`attention_forms`); `execution(attention=...)` selects either.

    Args:
        module: module that the attention belongs to. Its attention map is sown as "attn" in "intermediates".
        q: queries.
        k: keys.
        v: values.
        scale: factor of the scores, d**-0.5 by default.
        bias: added to the scaled scores.
        mask: where it is False, the query does not attend to the key.
        dropout: rate on the attention map.
        train: apply dropout, with the rng "dropout" of `module`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if module.is_mutable_collection("intermediates") or (train and dropout):
        attn = attention_map(q, k, scale, bias, mask).astype(v.dtype)
        module.sow("intermediates", "attn", attn)
        attn = nn.Dropout(dropout)(attn, deterministic=not train)
        out = jnp.einsum("...ij,...je->...ie", attn, v)
    else:
        out = attention(q, k, v, scale, bias, mask)
    return rearrange(out, "... h i e -> ... i (h e)")
