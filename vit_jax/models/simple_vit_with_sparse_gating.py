"""SimpleViT with sparse attention: narrow queries and keys compute a gate for each query and patch.

Derives from `SimpleViTWithRegisterTokens` (vit_jax/models/simple_vit_with_register_tokens.py) and overrides
the attention and the transformer.

Source: upstream, which names no paper. Upstream: vit_pytorch/simple_vit_with_sparse_gating.py.
Differs from upstream: `num_classes=0` gives tokens; registers have an initial std of 0.02 (upstream: 1).
Axes: b batch, n tokens (registers first), d dim, h heads, i query, j key, p patches, r extra tokens, k classes.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.simple_vit import BiasFreeAttention
from vit_jax.layers import Blocks, Dense, LayerNorm, attend, prepend, sow_block
from vit_jax.layers.check import at_least, one_of
from vit_jax.layers.shapes import Images, Tokens
from vit_jax.models import simple_vit
from vit_jax.models.simple_vit_with_register_tokens import SimpleViTWithRegisterTokens


class Attention(BiasFreeAttention):
    """Attention whose weights are multiplied by gates before normalisation; the first `registers` keys have no gates.

    Returns the tokens, and the mean gate of each image, from 0 to 1.
    """

    dim_mask: int
    registers: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> tuple[Tokens, Float[Array, "b"]]:
        inner_dim, mask_dim = 3 * self.heads * self.dim_head, 2 * self.heads * self.dim_mask
        parts = Dense(inner_dim + mask_dim, use_bias=False, name="to_qkv_and_mask")(LayerNorm(name="norm")(x))
        q, k, v = rearrange(parts[..., :inner_dim], "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        q_mask, k_mask = rearrange(parts[..., inner_dim:], "b n (qk h d) -> qk b h n d", qk=2, h=self.heads)

        gates = jnp.einsum("bhid,bhjd->bhij", q_mask, k_mask[:, :, self.registers :]) * self.dim_mask**-0.5
        gates = gates.astype(jnp.float32)
        log_gates = jnp.maximum(jax.nn.log_sigmoid(gates), jnp.log(1e-20)).astype(q.dtype)
        log_gates = jnp.pad(log_gates, ((0, 0), (0, 0), (0, 0), (self.registers, 0)))
        out = Dense(x.shape[-1], use_bias=False, name="to_out")(attend(self, q, k, v, bias=log_gates))
        return out, jax.nn.sigmoid(gates).mean(axis=(1, 2, 3))


class Transformer(Blocks):
    """`Blocks` and a last norm; returns the tokens, and the mean gate of each image over all layers."""

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> tuple[Tokens, Float[Array, "b"]]:
        mean_openness = jnp.zeros(x.shape[0])
        for i, drop_path in enumerate(self.drop_paths(train)):
            out, openness = self.attention(name=f"attn_{i}")(x, train=train)
            x, mean_openness = x + drop_path(out), mean_openness + openness / self.depth
            x = x + drop_path(self.feed_forward(name=f"ff_{i}")(x, train=train))
            sow_block(self, x)
        return LayerNorm(name="norm")(x), mean_openness


class SimpleViTWithSparseGating(SimpleViTWithRegisterTokens):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.
    Register tokens are removed after the transformer. With `return_loss=True` the call returns a
    pair: this output and the sparsity loss, a scalar to add to the loss of the classifier.

    Args:
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token, a multiple of 4.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        num_register_tokens: number of register tokens.
        dim_mask: width of a head's queries and keys for the gates.
        sparsity_loss_type: "l1" for the mean gate, averaged over images; "thresholded_l1" for the
            part of it above `sparsity_threshold`.
        sparsity_threshold: mean gate from which on there is a loss.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `dim` is not a multiple of 4 above
            4, or `sparsity_loss_type` is unknown.
    """

    dim_mask: int = 4
    sparsity_loss_type: str = "thresholded_l1"
    sparsity_threshold: float = 0.05

    loss_keywords: ClassVar[Mapping[str, bool]] = {"return_loss": True}  # of calls in training

    def __post_init__(self):
        at_least(self, dim_mask=1)
        one_of("sparsity_loss_type", self.sparsity_loss_type, ("l1", "thresholded_l1"))
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        gating = (self.dim_mask, self.num_register_tokens)
        attention = functools.partial(Attention, self.heads, self.dim_head, *gating)
        return Transformer(self.depth, attention, self.make_feed_forward(), drop_path=self.drop_path)

    def transform_with_loss(self, tokens: Tokens, *, train: bool = False) -> tuple[Tokens, Float[Array, ""]]:
        """The output of `transform`, and the sparsity loss."""
        x = prepend(self.register_tokens, tokens) if self.num_register_tokens else tokens
        x, openness = self.transformer(x, train=train)
        loss = openness if self.sparsity_loss_type == "l1" else nn.relu(openness - self.sparsity_threshold)
        return x[:, self.num_register_tokens :], loss.mean()

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        return self.transform_with_loss(tokens, train=train)[0]

    def __call__(self, images: Images, *, return_loss: bool = False, train: bool = False):
        tokens, loss = self.transform_with_loss(self.embed(images), train=train)
        out = self.head(tokens) if self.num_classes else tokens
        return (out, loss) if return_loss else out


PRESETS = simple_vit.PRESETS  # upstream names no sizes
