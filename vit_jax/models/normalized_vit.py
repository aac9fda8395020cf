"""nViT: tokens and the vectors of all weight matrices have unit length; layers move tokens on the unit sphere.

Derives from the frame `BaseSimpleViT` and overrides all of its modules; positions are learned.

Source: Loshchilov et al. 2024 (nGPT), arXiv:2410.01131. Upstream: vit_pytorch/normalized_vit.py.
Differs from upstream: patches may be non-square; `num_classes=0` gives tokens.
Differs from the paper: images instead of text, with learned positions (paper: rotary) and pooled tokens; the patch
projection and the head are normalised too; scales are stored as they are (paper: divided by their initial value).
Axes: b batch, n patches, d dim, h heads, i query, j key, e extra tokens, k classes.
"""

import functools
import math
from collections.abc import Mapping

from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.simple_vit import BaseSimpleViT
from vit_jax.layers import Blocks, DropPath, add_positions, append, attend, l2_normalize
from vit_jax.layers.check import at_least, pair, patch_grid
from vit_jax.layers.packing import to_patches
from vit_jax.layers.shapes import ExtraTokens, Images, Patches, Tokens


def unit_columns(kernel: Float[Array, "c d"]) -> Float[Array, "c d"]:
    """Normalise the weights of each output feature of `kernel` to length 1."""
    return l2_normalize(kernel.T).T


class NormDense(nn.Module):
    """Linear map without bias whose weights have length 1 for each output, or with `norm_in` for each input."""

    features: int
    norm_in: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch features"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        return x @ (l2_normalize(kernel) if self.norm_in else unit_columns(kernel))


class PatchNormDense(NormDense):
    """`NormDense` of the patches of images."""

    patch_size: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, images: Images) -> Tokens:
        return super().__call__(to_patches(images, self.patch_size))


class Attention(nn.Module):
    """Attention over scaled cosine similarities, without the residual."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        project = lambda name: NormDense(self.heads * self.dim_head, name=name)(x)
        q, k, v = (rearrange(project(name), "b n (h d) -> b h n d", h=self.heads) for name in ("to_q", "to_k", "to_v"))
        init = nn.initializers.constant(self.dim_head**0.25)
        scale = lambda name: self.param(name, init, (self.heads, 1, self.dim_head))[None]
        q, k = l2_normalize(q) * scale("q_scale"), l2_normalize(k) * scale("k_scale")
        out = attend(self, q, k, v, scale=1.0, dropout=self.dropout, train=train)
        return NormDense(x.shape[-1], norm_in=True, name="to_out")(out)


class FeedForward(nn.Module):
    """Gated feed-forward (SwiGLU), two thirds of `mlp_dim` wide, without the residual."""

    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        dim, hidden_dim = x.shape[-1], int(self.mlp_dim * 2 / 3)
        scale = lambda name: self.param(name, nn.initializers.ones, (hidden_dim,))[None, None]
        hidden = NormDense(hidden_dim, name="to_hidden")(x) * scale("hidden_scale")
        gate = NormDense(hidden_dim, name="to_gate")(x) * scale("gate_scale") * dim**0.5
        x = nn.Dropout(self.dropout)(nn.silu(gate) * hidden, deterministic=not train)
        return NormDense(dim, norm_in=True, name="to_out")(x)


class Transformer(Blocks):
    """Blocks; each branch moves a token towards its output by a learned rate per feature, initially `lerp_init`."""

    lerp_init: float

    def add(self, x: Tokens, out: Tokens, part: str, i: int, drop_path: DropPath) -> Tokens:
        scale = x.shape[-1] ** 0.5
        rate = self.param(f"{part}_lerp_{i}", nn.initializers.constant(self.lerp_init / scale), x.shape[-1:]) * scale
        return l2_normalize(x + drop_path(rate[None, None] * (l2_normalize(out) - x)))


class NormalizedViT(BaseSimpleViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward, of which two thirds are used.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        residual_lerp_scale_init: initial rate at which a branch moves tokens; by default 1 /
            `depth`.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `mlp_dim` is below 2.
    """

    dropout: float = 0.0
    residual_lerp_scale_init: float | None = None

    def __post_init__(self):
        at_least(self, mlp_dim=2)
        super().__post_init__()

    def setup(self):
        self.to_patch_embedding = PatchNormDense(self.dim, True, pair("patch_size", self.patch_size))
        shape = (math.prod(patch_grid(self.image_size, self.patch_size)), self.dim)
        self.abs_pos_emb = self.param("abs_pos_emb", nn.initializers.normal(0.02), shape)
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout)
        init = 1 / max(1, self.depth) if self.residual_lerp_scale_init is None else self.residual_lerp_scale_init
        self.transformer = Transformer(self.depth, attention, feed_forward, init, drop_path=self.drop_path)
        if self.num_classes:
            self.to_pred = NormDense(self.num_classes)
            self.logit_scale = self.param("logit_scale", nn.initializers.ones, (self.num_classes,))

    def embed(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer, of length 1: the patches with positions, and the extra tokens."""
        self.check_positions(images)
        patch_grid(images.shape[1:3], self.patch_size)
        x = self.to_patch_embedding(images) if patches is None else patches
        x = add_positions(x, l2_normalize(self.abs_pos_emb))
        return l2_normalize(x if extra_tokens is None else append(x, extra_tokens))

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, without the extra ones."""
        return self.to_pred(tokens.mean(axis=1)) * self.logit_scale[None] * self.dim**0.5

    def constrain(self, params: Mapping) -> dict:
        """Parameters after an optimizer step, with normalised weights; see `normalize_weights`."""
        return normalize_weights(params)

    torch_rules = (
        ("to_patch_embedding/kernel", "to_patch_embedding.1.linear.parametrizations.weight.original"),
        ("abs_pos_emb", "abs_pos_emb.linear.parametrizations.weight.original"),
        ("kernel", "linear.parametrizations.weight.original"),
        (r"transformer/attn_lerp_(\d+)", r"residual_lerp_scales.\1.0"),
        (r"transformer/ff_lerp_(\d+)", r"residual_lerp_scales.\1.1"),
        (r"transformer/attn_(\d+)", r"layers.\1.0"),
        (r"transformer/ff_(\d+)", r"layers.\1.1"),
    )


def normalize_weights(params: Mapping) -> dict:
    """`params`, or some of them, with every kernel normalised as the model reads it: upstream's `norm_weights_`."""
    leaves = flatten_dict(params, sep="/")
    for path, leaf in leaves.items():
        if path.endswith(("abs_pos_emb", "to_out/kernel", "to_patch_embedding/kernel")):
            leaves[path] = l2_normalize(leaf)
        elif path.endswith("kernel"):
            leaves[path] = unit_columns(leaf)
    return unflatten_dict(leaves, sep="/")


PRESETS = {"tiny": TINY, "ti16": vit_sizes(192), "s16": vit_sizes(384), "b16": vit_sizes(768)}
