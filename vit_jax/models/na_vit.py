"""NaViT: images of different sizes and aspect ratios, packed into one sequence at their native resolution.

Source: Dehghani et al. 2023, arXiv:2307.06304. Upstream: vit_pytorch/na_vit.py.
Differs from upstream: also takes packed images, whose shapes do not depend on the sizes of the images, and a batch
(b, H, W, c), with a sequence for each image; images and patches may be non-square; `num_classes=0` gives the pooled
features; positions and the pooling query have an initial std of 0.02 (upstream: 1).
Differs from the paper: one query pools the tokens, by attention as in the blocks; a norm before and after the patch
projection; positions count patches (paper: fractions of the side); the rate of token dropout is not random.
Axes: b rows, n tokens, m context, s images of a row, i images, d dim, h heads, q query, j key, k classes.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import feed_forward_rules, sequential_rules
from vit_jax.layers import Dense, FeedForward, LayerNorm, ToHeads, attend, drop_paths, l2_normalize, packing, sow_block
from vit_jax.layers.check import check_floating, expect, pair, patch_grid
from vit_jax.layers.shapes import Tokens

Mask, Context, Ids = Bool[Array, "b n m"], Float[Array, "b m d"], Int[Array, "b n"]
AnyImages = Float[Array, "b *shape c"] | Sequence | packing.PackedImages
Norm = functools.partial(LayerNorm, use_bias=False)


class RMSNorm(nn.Module):
    """RMS norm of the vectors of each head, with a learned scale for every head."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h n d"]) -> Float[Array, "b h n d"]:
        _, heads, _, dim = x.shape
        return l2_normalize(x) * dim**0.5 * self.param("gamma", nn.initializers.ones, (heads, 1, dim))[None]


class Attention(nn.Module):
    """Attention of `x` over itself, or over a context, where `mask` is True; queries and keys are normalised.

    A query whose mask is False everywhere gets the mean of all values.
    """

    heads: int
    dim_head: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Tokens, mask: Mask, context: Context | None = None, *, train: bool = False) -> Tokens:
        x = Norm(name="norm")(x)
        (q,) = ToHeads(1, self.heads, self.dim_head, name="to_q")(x)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(x if context is None else context)
        q, k = RMSNorm(name="q_norm")(q), RMSNorm(name="k_norm")(k)
        out = attend(self, q, k, v, scale=1.0, mask=mask[:, None], dropout=self.dropout, train=train)
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], use_bias=False, name="to_out")(out), deterministic=not train)


class EmbedPatches(nn.Module):
    """Patches (b, n, p) to tokens (b, n, dim): a linear map between two norms."""

    dim: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "b n p"]) -> Tokens:
        return self.norm(name="norm_out")(Dense(self.dim, name="proj")(self.norm(name="norm_in")(x)))


# Conversion rules that all NaViTs share; `torch_rules` at the end of each class has the rest.
MODULE_RULES = (
    *sequential_rules("to_patch_embedding", "to_patch_embedding", norm_in=0, proj=1, norm_out=2),
    (r"attn_(\d+)", r"transformer.layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"transformer.layers.\1.1"),
    ("norm_head", "mlp_head.0"),
    ("mlp_head", "mlp_head.1"),
    ("^norm", "transformer.norm"),
)


class NaViT(nn.Module):
    """Classifier: images (h, w, c) of different sizes to logits (i, k); with `num_classes=0` to features (i, d).

    Images are passed as a list, which makes one sequence; as a list of lists, one for each
    sequence; as a batch; or as what `pack` returns, whose shapes are fixed, so that a jitted
    function is traced only once. Then the output is (b, s, k): row b has the logits of the images
    of sequence b, which are valid where `packed.kept` is above 0.

    Args:
        image_size: largest size of an image: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for pooled features.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        token_dropout_prob: share of the patches of an image to drop in training, or a function of
            (height, width) that returns it.
        drop_path: rate of stochastic depth in the last block, for all images of a sequence at once; it
            rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size` or an image, or an image is larger
            than `image_size`.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    token_dropout_prob: float | Callable[[int, int], float] | None = None
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        rate = self.token_dropout_prob
        fits = callable(rate) or 0 <= (rate or 0) < 1
        expect(self, "token_dropout_prob", fits, "at least 0 and below 1, or a function of height and width")
        super().__post_init__()

    def make_attention(self, dropout: float, name: str) -> nn.Module:
        """Make the attention of a block, or of the pooling."""
        return Attention(self.heads, self.dim_head, dropout, name=name)

    def make_patch_embedding(self) -> nn.Module:
        """Make the module that turns patches into tokens."""
        return EmbedPatches(self.dim, Norm, name="to_patch_embedding")

    def patch_sides(self) -> tuple[int, ...]:
        """Sides of a patch, one for each axis of an image."""
        return pair("patch_size", self.patch_size)

    def position_counts(self) -> dict[str, int]:
        """Name and number of the positions along each axis."""
        rows, columns = patch_grid(self.image_size, self.patch_size)
        return {"pos_embed_height": rows, "pos_embed_width": columns}

    def add_tokens(self, x: Tokens, ids: Ids, slots: int) -> tuple[Context, Int[Array, "b m"]]:
        """Append further tokens of each of the `slots` images.

        Returns all tokens of a row, and the index of the image of each.
        """
        return x, ids

    def pool_images(self, queries: Tokens, mask: Mask, x: Context, *, train: bool) -> Tokens:
        """Pool the tokens of each image by attention of its query."""
        return queries + self.make_attention(0.0, "attn_pool")(queries, mask, x, train=train)

    def pack(
        self, images: Sequence, *, rows: int | None = None, seq_len: int | None = None, max_images: int | None = None
    ) -> packing.PackedImages:
        """Pack images into sequences, on the host.

        Args:
            images: a list of images (h, w, c), or a list of lists.
            rows: number of sequences.
            seq_len: tokens of a sequence.
            max_images: images of a sequence.

        Returns:
            Arrays of these sizes; by default they are as large as the images need.

        Raises:
            ValueError: if the images do not fit into these sizes.
        """
        for image in (image for row in images for image in (row if isinstance(row, Sequence) else [row])):
            self._check_image(image)
        sizes = dict(rows=rows, seq_len=seq_len, max_images=max_images)
        return packing.pack_images(images, self.patch_sides(), token_dropout_prob=self.token_dropout_prob, **sizes)

    def _check_batch(self, images: Array) -> None:
        check_images(images, self.channels)
        self._check_image(packing.one_of_batch(images))

    def _check_image(self, image) -> None:
        if image.ndim != 3 or image.shape[-1] != self.channels:
            raise ValueError(f"image of shape {image.shape}: expected (height, width, channels={self.channels})")
        if any(side > limit for side, limit in zip(image.shape, pair("image_size", self.image_size), strict=False)):
            raise ValueError(f"image of shape {image.shape}: expected at most image_size={self.image_size!r}")

    @nn.compact
    def __call__(
        self, images: AnyImages, *, group_images: bool = False, group_max_seq_len: int = 2048, train: bool = False
    ) -> Float[Array, "*out"]:
        """Apply the model.

        Args:
            images: a list, a list of lists, a batch, or packed images.
            group_images: distribute a list over sequences of at most `group_max_seq_len` tokens.
            group_max_seq_len: see `group_images`.
            train: as for any model.
        """
        patch, rate = self.patch_sides(), self.token_dropout_prob if train else None
        if group_images:
            lengths = [packing.count_kept(image, patch, rate) for image in images]
            images = packing.group_images(images, lengths, group_max_seq_len)
        if isinstance(images, Sequence):
            on_host = images if isinstance(images, packing.PackedImages) else self.pack(images)
        else:
            self._check_batch(images)
            on_host = packing.pack_batch(images, patch, self.token_dropout_prob)
        packed = jax.tree.map(jnp.asarray, on_host)
        check_floating("images", packed.patches)
        (_, count), (_, slots) = packed.segment_ids.shape, packed.kept.shape
        if rate:
            length = count if callable(rate) else min(count, int(count * (1 - rate)) + slots)  # at least one an image
            packed = packing.drop_tokens(self.make_rng("dropout"), packed, length)

        init, x = nn.initializers.normal(0.02), self.make_patch_embedding()(packed.patches)
        for axis, (name, positions) in enumerate(self.position_counts().items()):
            x = x + self.param(name, init, (positions, self.dim))[packed.positions[..., axis]]
        x, ids = self.add_tokens(x, packed.segment_ids, slots)
        x = nn.Dropout(self.emb_dropout)(x, deterministic=not train)

        same_image = ids[:, :, None] == ids[:, None, :]
        for i, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            x = x + drop_path(self.make_attention(self.dropout, f"attn_{i}")(x, same_image, train=train))
            x = x + drop_path(FeedForward(self.mlp_dim, self.dropout, Norm, name=f"ff_{i}")(x, train=train))
            sow_block(self, x)
        x = Norm(name="norm")(x)

        query = self.param("attn_pool_queries", init, (self.dim,))
        queries = jnp.broadcast_to(query.reshape(1, 1, self.dim), (x.shape[0], slots, self.dim))
        of_image = jnp.arange(slots).reshape(1, slots, 1) == ids[:, None, :]
        x = self.pool_images(queries, of_image, x, train=train)
        if not isinstance(images, packing.PackedImages):
            x = x[on_host.kept > 0] if isinstance(images, Sequence) else x[:, 0]
        if self.num_classes:
            x = Dense(self.num_classes, use_bias=False, name="mlp_head")(Norm(name="norm_head")(x))
        return x

    torch_rules = (("scale", "gamma"), ("to_out", "to_out.0"), *MODULE_RULES)

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores a bias of zeros beside each norm's scale."""
        blocks = [f"transformer.layers.{i}.{norm}" for i in range(self.depth) for norm in ("0.norm", "1.0")]
        head = ["mlp_head.0"] if self.num_classes else []
        widths = dict.fromkeys(["to_patch_embedding.2", "transformer.norm", "attn_pool.norm", *blocks, *head], self.dim)
        widths["to_patch_embedding.0"] = math.prod(self.patch_sides()) * self.channels
        return {f"{norm}.beta": np.zeros(width, np.float32) for norm, width in widths.items()}


PRESETS = {"tiny": TINY, "b32": vit_sizes(768, patch_size=32), "b16": vit_sizes(768), "l16": vit_sizes(1024, depth=24)}
