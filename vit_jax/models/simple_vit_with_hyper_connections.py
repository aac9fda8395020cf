"""SimpleViT with hyper-connections: several residual streams, mixed by learned weights before and after each layer.

Derives from `SimpleViTWithRegisterTokens` (vit_jax/models/simple_vit_with_register_tokens.py) and overrides
the transformer.

Source: Zhu et al. 2024, arXiv:2409.19606; registers: Darcet et al. 2023, arXiv:2309.16588.
Upstream: vit_pytorch/simple_vit_with_hyper_connections.py.
Differs from upstream: `num_classes=0` gives tokens; registers have an initial std of 0.02 (upstream: 1).
Differs from the paper: the connections are in a SimpleViT, with register tokens.
Axes: b batch, n tokens, d dim, e streams, m mixes of streams, r registers.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.layers import Blocks, DropPath, LayerNorm, sow_block
from vit_jax.layers.check import at_least
from vit_jax.layers.shapes import Tokens
from vit_jax.models import simple_vit_with_register_tokens as registers

Streams = Float[Array, "b n e d"]


class HyperConnection(nn.Module):
    """Dynamic hyper-connections (algorithm 2 of the paper) in place of the residual around `layer`.

    At initialisation they are a plain residual: the layer reads stream `index` (cyclic), and its
    output is added to all streams.
    """

    index: int

    @nn.compact
    def __call__(self, streams: Streams, layer: nn.Module, drop_path: DropPath, *, train: bool) -> Streams:
        count, dim = streams.shape[2:]
        reads_one = jnp.eye(count)[:, self.index % count, None]
        static_alpha = self.param("static_alpha", lambda _: jnp.concatenate([reads_one, jnp.eye(count)], axis=1))
        static_beta = self.param("static_beta", nn.initializers.ones, (count,))

        normed = LayerNorm(use_bias=False, name="norm")(streams)
        alpha = self._dynamic("dynamic_alpha", normed, (dim, count + 1)) + static_alpha[None, None]
        beta = self._dynamic("dynamic_beta", normed, (dim,)) + static_beta[None, None]

        mixed = jnp.einsum("bnem,bned->bnmd", alpha, streams)
        out = drop_path(layer(mixed[:, :, 0], train=train))
        return mixed[:, :, 1:] + jnp.einsum("bnd,bne->bned", out, beta)

    def _dynamic(self, name: str, normed: Array, shape: tuple[int, ...]) -> Array:
        """Weights that depend on the token, small at first; they are added to the static ones."""
        weights = self.param(f"{name}_fn", nn.initializers.zeros, shape)
        return jnp.tanh(normed @ weights) * self.param(f"{name}_scale", nn.initializers.constant(0.01), ())


class Transformer(Blocks):
    """`Blocks` with hyper-connections in place of residuals; a last norm.

    There are `num_residual_streams` streams, which are summed at the end.
    """

    num_residual_streams: int

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        streams = jnp.repeat(x[:, :, None], self.num_residual_streams, axis=2)
        for i, drop_path in enumerate(self.drop_paths(train)):
            attn, ff = self.attention(name=f"attn_{i}"), self.feed_forward(name=f"ff_{i}")
            streams = HyperConnection(i, name=f"attn_connection_{i}")(streams, attn, drop_path, train=train)
            streams = HyperConnection(i, name=f"ff_connection_{i}")(streams, ff, drop_path, train=train)
            sow_block(self, streams)
        return LayerNorm(name="norm")(streams.sum(axis=2))


class SimpleViTHyperConnections(registers.SimpleViTWithRegisterTokens, kw_only=True):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    Positions are computed from the size of each image, which may be any that `patch_size` divides.
    Register tokens are removed after the transformer.

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
        num_residual_streams: number of residual streams, at least 1.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `dim` is not a multiple of 4 above
            4, or `num_residual_streams` is below 1.
    """

    num_residual_streams: int

    def __post_init__(self):
        at_least(self, num_residual_streams=1)
        super().__post_init__()

    def make_transformer(self) -> nn.Module:
        parts = self.make_attention(), self.make_feed_forward()
        return Transformer(self.depth, *parts, self.num_residual_streams, drop_path=self.drop_path)

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"attn_connection_(\d+)", r"layers.\1.0"),
        (r"attn_(\d+)", r"layers.\1.1"),
        (r"ff_connection_(\d+)", r"layers.\1.2"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.3.net", fc2=3),
    )


PRESETS = {
    "tiny": TINY | dict(num_residual_streams=2),
    "b16": vit_sizes(768, num_residual_streams=2),
    "l16": vit_sizes(1024, depth=24, num_residual_streams=2),
}
