"""torchvision's ViT: a convolution that embeds patches, a class token and a pre-norm transformer.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929. torchvision: models/vision_transformer.py.
Axes: b batch, n tokens, d features, h heads, k classes.
"""

import functools

from einops import rearrange
from flax import linen as nn

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import sequential_rules
from vit_jax.layers import Dense, FeedForward, LayerNorm, ToHeads, attend, prepend
from vit_jax.layers.check import at_least, expect, pair
from vit_jax.layers.shapes import Images, Output, Tokens

make_norm = functools.partial(LayerNorm, 1e-6)


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and with a residual connection."""

    num_heads: int
    mlp_dim: int
    dropout: float
    attention_dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        dim = x.shape[-1]
        to_qkv = ToHeads(3, self.num_heads, dim // self.num_heads, use_bias=True, name="in_proj")
        q, k, v = to_qkv(make_norm(name="ln_1")(x))
        y = Dense(dim, name="out_proj")(attend(self, q, k, v, dropout=self.attention_dropout, train=train))
        x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
        return x + FeedForward(self.mlp_dim, self.dropout, make_norm, name="mlp")(x, train=train)


class VisionTransformer(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to the class token (b, d).

    Args:
        patch_size: pixels, or (height, width).
        num_layers: number of blocks.
        num_heads: attention heads in each block.
        hidden_dim: width of a token.
        mlp_dim: hidden width of each feed-forward.
        image_size: pixels, or (height, width). Images must have this size, which is not 224 for some published weights.
        dropout: rate within the blocks and before them.
        attention_dropout: rate on attention maps.
        num_classes: number of classes; 0 for the class token.
        channels: channels of an image.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `num_heads` does not divide `hidden_dim`.
    """

    patch_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    mlp_dim: int
    image_size: int | tuple[int, int] = 224
    dropout: float = 0.0
    attention_dropout: float = 0.0
    num_classes: int = 1000
    channels: int = 3

    def __post_init__(self):
        check_arguments(self)
        at_least(self, num_layers=0, num_heads=1, hidden_dim=1)
        expect(self, "hidden_dim", self.hidden_dim % self.num_heads == 0, f"a multiple of num_heads={self.num_heads}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        size, patch = pair("image_size", self.image_size), pair("patch_size", self.patch_size)
        if images.shape[1:3] != size:
            raise ValueError(f"images of shape {images.shape}: expected images of image_size={self.image_size!r}")
        x = nn.Conv(self.hidden_dim, patch, strides=patch, padding="VALID", name="conv_proj")(images)
        x = rearrange(x, "b h w d -> b (h w) d")
        x = prepend(self.param("class_token", nn.initializers.zeros, (1, 1, self.hidden_dim)), x)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        for i in range(self.num_layers):
            block = Block(self.num_heads, self.mlp_dim, self.dropout, self.attention_dropout, name=f"encoder_layer_{i}")
            x = block(x, train=train)
        x = make_norm(name="ln")(x[:, 0])
        return Dense(self.num_classes, name="head")(x) if self.num_classes else x

    torch_rules = (
        ("in_proj/kernel", "self_attention.in_proj_weight"),
        ("in_proj/bias", "self_attention.in_proj_bias"),
        ("out_proj", "self_attention.out_proj"),
        ("mlp/norm", "ln_2"),
        *sequential_rules("mlp", "mlp", fc1=0, fc2=3),
        (r"encoder_layer_(\d+)", r"encoder.layers.encoder_layer_\1"),
        ("(ln|pos_embedding)", r"encoder.\1"),
        ("head", "heads.head"),
    )
    # torchvision's published files are older than its present feed-forward.
    torch_former_keys = (
        (r"(.*\.mlp)\.linear_1\.(\w+)", r"\1.0.\2"),
        (r"(.*\.mlp)\.linear_2\.(\w+)", r"\1.3.\2"),
    )


def _sizes(patch_size, num_layers, num_heads, hidden_dim):
    sizes = dict(num_layers=num_layers, num_heads=num_heads, hidden_dim=hidden_dim, mlp_dim=4 * hidden_dim)
    return dict(patch_size=patch_size, **sizes)


PRESETS = {
    "vit_b_16": _sizes(16, 12, 12, 768),
    "vit_b_32": _sizes(32, 12, 12, 768),
    "vit_l_16": _sizes(16, 24, 16, 1024),
    "vit_l_32": _sizes(32, 24, 16, 1024),
    "vit_h_14": _sizes(14, 32, 16, 1280),
}
