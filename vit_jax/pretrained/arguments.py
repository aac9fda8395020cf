"""The arguments of the vision transformer, in which published weights differ."""

from typing import ClassVar

from flax import linen as nn

from vit_jax.frames.arguments import check_arguments
from vit_jax.layers.check import expect, one_of, pair, patch_grid
from vit_jax.pretrained.network import TimmNetwork
from vit_jax.pretrained.parts import ACTIVATIONS
from vit_jax.pretrained.rotary import Rotary


class Arguments(TimmNetwork, nn.Module):
    """Base of `VisionTransformer`: its arguments and their checks.

    Args:
        image_size: pixels, or (height, width), that learned positions are for.
        patch_size: pixels, or (height, width).
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        num_classes: number of classes; 0 for tokens.
        channels: channels of an image.
        epsilon: epsilon of all norms.
        activation: "gelu", "gelu_tanh" (its approximation), "quick_gelu" or "swiglu".
        pool: what the head reads: "cls" for the class token, "mean" for the mean of the patches, "map" for attention
            pooling of all tokens.
        last_norm: "tokens" for a norm before pooling, "pooled" for one after it, "none" for none.
        class_token: whether there is a class token.
        registers: number of further tokens before the patches.
        positions: whether there are learned positions.
        antialias: whether positions are resampled to another image size with antialiasing, as in timm, or without, as
            in transformers.
        rotary: rotary positions, if any.
        qkv_bias: which of queries, keys and values have a bias: "qkv", "qv" or "".
        proj_bias: whether the other linear layers of a block have a bias.
        rms_norm: RMSNorm instead of LayerNorm.
        patch_norm: a norm after the patch embedding.
        pre_norm: a norm before the first block, and no bias in the patch embedding, as in CLIP.
        post_norm: norms at the end of the branches of a block instead of the beginning.
        qk_norm: norms of queries and keys.
        attention_norm: a norm of the output of attention, before its last linear layer.
        mlp_norm: a norm in the feed-forward, after the activation.
        layer_scale: initial LayerScale of attention and of feed-forward; None for no LayerScale.
        pool_heads: heads of attention pooling; None for `heads`.
        pool_mlp_dim: hidden width of attention pooling; None for `mlp_dim`.
        dropout: rate within the blocks and before them.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        distilled: a distillation token after the class token, with a head of its own; logits are the mean of both.
        any_size: whether pixels at the right and at the bottom that fill no patch are left out. Otherwise patches must
            divide images.
        layout: how timm's file of the weights differs from the parameters here; see `vit_jax.pretrained.layouts`.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `heads` does not divide `dim`, or for another value of
            a name.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    num_classes: int = 1000
    channels: int = 3
    epsilon: float = 1e-6
    activation: str = "gelu"
    pool: str = "cls"
    last_norm: str = "tokens"
    class_token: bool = True
    registers: int = 0
    positions: bool = True
    antialias: bool = True
    rotary: Rotary | None = None
    qkv_bias: str = "qkv"
    proj_bias: bool = True
    rms_norm: bool = False
    patch_norm: bool = False
    pre_norm: bool = False
    post_norm: bool = False
    qk_norm: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
    layer_scale: tuple[float | None, float | None] = (None, None)
    pool_heads: int | None = None
    pool_mlp_dim: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    distilled: bool = False
    any_size: bool = False
    layout: tuple[str, ...] = ()

    pools: ClassVar[tuple[str, ...]] = ("cls", "mean", "map")
    timm_first: ClassVar[str] = "patch_embed.proj"
    timm_keywords: ClassVar[dict[str, str]] = {
        "img_size": "image_size",
        "patch_size": "patch_size",
        "embed_dim": "dim",
        "depth": "depth",
        "num_heads": "heads",
    }

    def __post_init__(self):
        check_arguments(self)
        one_of("activation", self.activation, tuple(ACTIVATIONS))
        one_of("last_norm", self.last_norm, ("tokens", "pooled", "none"))
        one_of("qkv_bias", self.qkv_bias, ("qkv", "qv", ""))
        expect(self, "dim", self.dim % self.heads == 0, f"a multiple of heads={self.heads}")
        expect(self, "pool", self.pool != "cls" or self.class_token, "'mean' or 'map' without a class token")
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of `image_size`."""
        return self.grid_of(self.image_size)

    def grid_of(self, image_size: int | tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        if not self.any_size:
            return patch_grid(image_size, self.patch_size)
        sides, patch = pair("image_size", image_size), pair("patch_size", self.patch_size)
        return tuple(side // length for side, length in zip(sides, patch, strict=True))

    @property
    def tokens_before(self) -> int:
        """Number of tokens before the patches."""
        return self.class_token + self.distilled + self.registers

    @property
    def patches_fixed(self) -> bool:
        """Whether the blocks need all patches of an image, for `vit_jax.objectives.masked`."""
        return self.rotary is not None
