"""Layers that three or more models share, each in its own file. Models import them from here."""

from vit_jax.layers.array_patches import ArrayPatchEmbed, array_grid
from vit_jax.layers.attend import attend
from vit_jax.layers.attention import Attention
from vit_jax.layers.attention_scores import attention_scores
from vit_jax.layers.batch_norm import BatchNorm
from vit_jax.layers.blocks import Blocks, NormedBlocks
from vit_jax.layers.context_attention import ContextAttention
from vit_jax.layers.conv_feed_forward import ConvFeedForward
from vit_jax.layers.conv_norm import ConvNorm
from vit_jax.layers.dense import Dense
from vit_jax.layers.depthwise import DepthwiseConv
from vit_jax.layers.drop_path import DropPath, drop_paths, drop_rates, make_drop_path, stage_rates
from vit_jax.layers.feed_forward import FeedForward
from vit_jax.layers.gelu import gelu
from vit_jax.layers.head import NormHead
from vit_jax.layers.layer_scale import LayerScale
from vit_jax.layers.max_pool import max_pool
from vit_jax.layers.moss import MOSS
from vit_jax.layers.norm import ChannelNorm, LayerNorm, l2_normalize, standardize
from vit_jax.layers.patch_dropout import PatchDropout
from vit_jax.layers.patch_embed import PatchEmbed, VideoPatchEmbed
from vit_jax.layers.patch_projection import PatchProjection
from vit_jax.layers.pointwise import PointwiseConv
from vit_jax.layers.positions import relative_positions, sincos_1d, sincos_2d
from vit_jax.layers.rotary import rotate
from vit_jax.layers.run_blocks import run_blocks, sow_block
from vit_jax.layers.softmax import softmax
from vit_jax.layers.squeeze_excitation import SqueezeExcitation
from vit_jax.layers.to_heads import ToHeads
from vit_jax.layers.tokens import add_positions, append, pool_tokens, prepend
from vit_jax.layers.unfold import unfold, unfold_grid
from vit_jax.layers.window_attention import WindowAttention

__all__ = [
    "MOSS",
    "ArrayPatchEmbed",
    "Attention",
    "BatchNorm",
    "Blocks",
    "ChannelNorm",
    "ContextAttention",
    "ConvFeedForward",
    "ConvNorm",
    "Dense",
    "DepthwiseConv",
    "DropPath",
    "FeedForward",
    "LayerNorm",
    "LayerScale",
    "NormHead",
    "NormedBlocks",
    "PatchDropout",
    "PatchEmbed",
    "PatchProjection",
    "PointwiseConv",
    "SqueezeExcitation",
    "ToHeads",
    "VideoPatchEmbed",
    "WindowAttention",
    "add_positions",
    "append",
    "array_grid",
    "attend",
    "attention_scores",
    "drop_paths",
    "drop_rates",
    "gelu",
    "l2_normalize",
    "make_drop_path",
    "max_pool",
    "pool_tokens",
    "prepend",
    "relative_positions",
    "rotate",
    "run_blocks",
    "sincos_1d",
    "sincos_2d",
    "softmax",
    "sow_block",
    "stage_rates",
    "standardize",
    "unfold",
    "unfold_grid",
]
