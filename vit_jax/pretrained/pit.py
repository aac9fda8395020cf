"""timm's PiT: blocks of the vision transformer, whose grid of patches is pooled between stages.

Source: Heo et al. 2021, arXiv:2103.16302. Reference: pit.py of timm 1.0.31.
Differs from timm: images may have any size; positions are resampled.
Differs from `vit_jax.models.pit`: queries, keys and values have biases, norms an epsilon of 1e-6, pooling no 1x1
convolution, and the class token no position; there may be a distillation token.
Axes: b batch, n tokens, m tokens after pooling, d dim, h rows and w columns of a grid.
"""

import functools
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.stages import per_stage
from vit_jax.layers import Dense, DepthwiseConv, LayerNorm, prepend, stage_rates
from vit_jax.layers.check import pair
from vit_jax.layers.shapes import Images, Output, Tokens
from vit_jax.layers.unfold import unfold_grid
from vit_jax.pretrained.layouts import State
from vit_jax.pretrained.network import TimmNetwork
from vit_jax.pretrained.positions import resample_positions, with_positions
from vit_jax.pretrained.vision_transformer import Attention, Block, FeedForward, Transformer


class Pool(nn.Module):
    """Halve the sides of a grid of `rows`, rounded up, for wider tokens; the first `before` tokens stay first."""

    before: int
    rows: int
    dim: int

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b m e"]:
        grid = rearrange(x[:, self.before :], "b (h w) d -> b h w d", h=self.rows)
        grid = DepthwiseConv(kernel=3, stride=2, multiplier=self.dim // x.shape[-1], name="conv")(grid)
        first = Dense(self.dim, name="fc")(x[:, : self.before])
        return jnp.concatenate([first, rearrange(grid, "b h w d -> b (h w) d")], axis=1)


class PiT(TimmNetwork, nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to normalised tokens (b, n, d).

    The tokens are the class token, the distillation token if there is one, and the patches of the last stage.

    Args:
        image_size: pixels, or (height, width), that positions are for.
        patch_size: pixels.
        stride: pixels from each patch to the next.
        base_dims: width of a head in each stage.
        depth: number of blocks in each stage.
        heads: attention heads in each stage.
        mlp_ratio: hidden width of each feed-forward, as a multiple of its input.
        num_classes: number of classes; 0 for tokens.
        channels: channels of an image.
        distilled: a distillation token with a head of its own; logits are the mean of both.
        dropout: rate within the blocks.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `base_dims` or `heads` has another number of stages than `depth`.
    """

    image_size: int | tuple[int, int]
    patch_size: int
    stride: int
    base_dims: tuple[int, ...]
    depth: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratio: int = 4
    num_classes: int = 1000
    channels: int = 3
    distilled: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    any_size: ClassVar[bool] = True  # as patches overlap
    pool: ClassVar[str] = "cls"
    timm_first: ClassVar[str] = "patch_embed.conv"
    timm_pool: ClassVar[str] = "token"
    timm_keywords: ClassVar[dict[str, str]] = {
        "img_size": "image_size",
        **{name: name for name in ("patch_size", "stride", "base_dims", "depth", "heads", "mlp_ratio")},
    }

    def __post_init__(self):
        check_arguments(self)
        for name in ("base_dims", "heads"):
            per_stage(self, name, len(self.depth))
        super().__post_init__()

    @property
    def dims(self) -> list[int]:
        """Width of a token in each stage."""
        return [width * heads for width, heads in zip(self.base_dims, self.heads, strict=True)]

    @property
    def num_features(self) -> int:
        return self.dims[-1]

    @property
    def tokens_before(self) -> int:
        """Number of tokens before the patches."""
        return 1 + self.distilled

    @property
    def timm_heads(self) -> tuple[str, ...]:
        return ("head", "head_dist") if self.distilled else ("head",)

    def grid(self, size: int | tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return unfold_grid(pair("image_size", size), (self.patch_size,) * 2, (self.stride,) * 2)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        check_images(images, self.channels)
        dims, init = self.dims, nn.initializers.truncated_normal(0.02)
        patch, stride, old, new = self.patch_size, self.stride, self.grid(self.image_size), self.grid(images.shape[1:3])
        x = nn.Conv(dims[0], (patch, patch), strides=stride, padding="VALID", name="patch_embed")(images)
        positions = self.param("pos_embed", init, (1, dims[0], *old))
        positions = resample_positions(rearrange(positions, "1 d h w -> 1 (h w) d"), old, new)
        tokens = self.param("cls_token", init, (1, 1 + self.distilled, dims[0]))
        x = prepend(tokens, rearrange(x, "b h w d -> b (h w) d") + positions)

        rates = stage_rates(self.drop_path, self.depth)
        norm, rows = functools.partial(LayerNorm, 1e-6), new[0]
        for i, (depth, heads, dim) in enumerate(zip(self.depth, self.heads, dims, strict=True)):
            if i > 0:
                x = Pool(1 + self.distilled, rows, dim, name=f"down_{i}")(x)
                rows = (rows + 1) // 2  # as `Pool` rounds
            attention = functools.partial(
                Attention,
                heads=heads,
                qkv_bias="qkv",
                proj_bias=True,
                norm=norm,
                qk_norm=False,
                out_norm=False,
                rotary=None,
                dropout=self.dropout,
            )
            feed_forward = functools.partial(FeedForward, self.mlp_ratio * dim, "gelu", dropout=self.dropout)
            block = functools.partial(Block, attention, feed_forward, norm, False, (None, None))
            x = Transformer(depth, block, rates[i], name=f"stage_{i}")(x, None, train=train)
        x = norm(name="norm")(x)
        if not self.num_classes:
            return x
        logits = Dense(self.num_classes, name="head")(x[:, 0])
        return (logits + Dense(self.num_classes, name="head_dist")(x[:, 1])) / 2 if self.distilled else logits

    def adapted(self, state: State, published: "PiT", notify: Callable[[str], None]) -> State:
        """The state dict with positions for this network's grid of patches."""
        old, new = published.grid(published.image_size), self.grid(self.image_size)
        if state.get("pos_embed", np.zeros(0)).shape != (1, self.dims[0], *old):
            return state  # conversion says what is wrong
        flat = rearrange(state["pos_embed"], "1 d h w -> 1 (h w) d")
        flat = with_positions({"pos_embed": flat}, old, new, notify)["pos_embed"]
        return state | {"pos_embed": rearrange(np.asarray(flat), "1 (h w) d -> 1 d h w", h=new[0])}

    torch_rules = (
        ("patch_embed", "patch_embed.conv"),
        (r"stage_(\d)", r"transformers.\1"),
        (r"down_(\d)", r"transformers.\1.pool"),
        (r"block_(\d+)", r"blocks.\1"),
    )


def _sizes(patch_size, width, depth, heads):
    sizes = dict(image_size=224, patch_size=patch_size, stride=patch_size // 2, base_dims=(width,) * 3, depth=depth)
    return sizes | dict(heads=(heads, 2 * heads, 4 * heads))


_SIZES = {
    "ti": _sizes(16, 32, (2, 6, 4), 2),
    "xs": _sizes(16, 48, (2, 6, 4), 2),
    "s": _sizes(16, 48, (2, 6, 4), 3),
    "b": _sizes(14, 64, (3, 6, 4), 4),
}
PRESETS = {f"pit_{size}_224": sizes for size, sizes in _SIZES.items()}
PRESETS |= {f"pit_{size}_distilled_224": sizes | dict(distilled=True) for size, sizes in _SIZES.items()}
