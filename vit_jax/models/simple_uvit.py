"""U-ViT: long skip connections from the first half of the blocks to the second, as in a U-Net.

Derives from `SimpleViTWithRegisterTokens` (vit_jax/models/simple_vit_with_register_tokens.py) and overrides
the transformer.

Source: Bao et al. 2022, arXiv:2209.12152. Upstream: vit_pytorch/simple_uvit.py.
Differs from upstream: registers have an initial std of 0.02 (upstream: 1); `num_classes=0` gives the patches' tokens.
Differs from the paper: a classifier with registers (paper: the network of a diffusion model, with tokens for time and
condition, and a convolution that outputs pixels); positions are computed (paper: learned).
Axes: b batch, n tokens, d dim.
"""

import jax.numpy as jnp
from flax import linen as nn

from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import PATCH_EMBED_RULES, feed_forward_rules
from vit_jax.layers import Blocks, Dense, LayerNorm, sow_block
from vit_jax.layers.shapes import Tokens
from vit_jax.models import simple_vit_with_register_tokens as registers


class Transformer(Blocks):
    """`Blocks` with long skip connections, and a last norm.

    The input of block i of the first half is also an input of block `depth - 1 - i`. With an odd
    `depth`, the middle block has no such connection.
    """

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        skips = []
        for i, drop_path in enumerate(self.drop_paths(train)):
            if i < self.depth // 2:
                skips.append(x)
            elif i >= self.depth - self.depth // 2:
                x = Dense(x.shape[-1], name=f"skip_{i}")(jnp.concatenate([skips.pop(), x], axis=-1))
            x = x + drop_path(self.attention(name=f"attn_{i}")(x, train=train))
            x = x + drop_path(self.feed_forward(name=f"ff_{i}")(x, train=train))
            sow_block(self, x)
        return LayerNorm(name="norm")(x)


class SimpleUViT(registers.SimpleViTWithRegisterTokens):
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
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `dim` is not a multiple of 4
            above 4.
    """

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.make_attention(), self.make_feed_forward(), drop_path=self.drop_path)

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"skip_(\d+)", r"layers.\1.0"),
        (r"attn_(\d+)", r"layers.\1.1"),
        *feed_forward_rules(r"ff_(\d+)", r"layers.\1.2", fc2=3),
    )


PRESETS = {
    "tiny": TINY | dict(depth=5),
    "s2": vit_sizes(512, depth=13, patch_size=2, image_size=32),
    "s2_deep": vit_sizes(512, depth=17, patch_size=2, image_size=32),
    "m4": vit_sizes(768, depth=17, patch_size=4, image_size=64),
    "l4": vit_sizes(1024, depth=21, patch_size=4, image_size=64),
    "h2": vit_sizes(1152, depth=29, patch_size=2, image_size=32, heads=16, dim_head=72),
}
