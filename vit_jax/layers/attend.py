"""Scaled dot-product attention. Source: Vaswani et al. 2017, arXiv:1706.03762."""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.layers.attention_scores import attention_scores
from vit_jax.layers.softmax import softmax


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
    """Return the attention output, heads concatenated.

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
    scores = attention_scores(q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    attn = softmax(scores).astype(v.dtype)
    module.sow("intermediates", "attn", attn)
    attn = nn.Dropout(dropout)(attn, deterministic=not train)
    return rearrange(jnp.einsum("...ij,...je->...ie", attn, v), "... h i e -> ... i (h e)")
