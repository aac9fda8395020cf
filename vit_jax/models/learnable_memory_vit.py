"""Learnable memory: a frozen ViT; every new task adds a class token, memory tokens for each layer and a head.

`LearnableMemoryViT` derives from the frame `PlainViT` and overrides the transformer, which can read memories.

Source: Sandler et al. 2022, arXiv:2203.15243. Upstream: vit_pytorch/learnable_memory_vit.py.
Differs from upstream: `num_classes=0` gives tokens; images may be smaller than `image_size`; tokens, memories and
positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, l layers, m memories, d dim, h heads, i query, j key, k classes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.frames import PlainViT
from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.presets import TINY, vit_sizes
from vit_jax.frames.rules import HEAD_RULES
from vit_jax.layers import Blocks, ContextAttention, NormHead, prepend, sow_block
from vit_jax.layers.check import at_least, expect, patch_grid
from vit_jax.layers.shapes import Images, Output, Tokens


class Transformer(Blocks):
    """`Blocks` whose attentions can read memory tokens; only the first token reads them."""

    @nn.compact
    def __call__(self, x: Tokens, memories: Float[Array, "l m d"] | None = None, *, train: bool = False) -> Tokens:
        contexts, mask = [None] * self.depth, None
        if memories is not None:
            contexts = jnp.broadcast_to(memories[:, None], (self.depth, x.shape[0], *memories.shape[1:]))
            mask = jnp.asarray(memory_mask(x.shape[1] - 1, memories.shape[1]))[None, None]
        for i, drop_path in enumerate(self.drop_paths(train)):
            x = x + drop_path(self.attention(name=f"attn_{i}")(x, contexts[i], mask, train=train))
            x = x + drop_path(self.feed_forward(name=f"ff_{i}")(x, train=train))
            sow_block(self, x)
        return x


class LearnableMemoryViT(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    The frozen model for `Adapter`. An image may be smaller than `image_size`; it then gets the
    first positions.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: ignored: the head always reads the class token, as in upstream.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `pool` is neither "cls" nor
            "mean".
    """

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(ContextAttention, self.heads, self.dim_head, self.dropout)
        return Transformer(self.depth, attention, self.make_feed_forward(), drop_path=self.drop_path)

    def encode_with_memories(
        self, images: Images, cls_token: Float[Array, "d"], memories: Float[Array, "l m d"], *, train: bool = False
    ) -> Tokens:
        """Tokens after the transformer: one that reads the memories, then the tokens of `encode`.

        The latter are the same as without memories.
        """
        tokens = prepend(cls_token[None], self.embed(images, train=train))
        return self.transformer(tokens, memories, train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`."""
        return self.mlp_head(tokens[:, 0])


def memory_mask(tokens: int, memories: int) -> Bool[np.ndarray, "n j"]:
    """Mask of the keys that each query reads.

    The first token reads all tokens and the memories; the other tokens read each other only.
    """
    mask = np.zeros((1 + tokens, 1 + tokens + memories), bool)
    mask[0] = True
    mask[1:, 1 : 1 + tokens] = True
    return mask


class Adapter(nn.Module):
    """A task's head on a frozen ViT: image (b, H, W, c) to logits (b, k).

    With `num_classes=0` it returns tokens (b, n, d), the one that reads the memories first. No
    gradient reaches the parameters of `vit`, which adapters for several tasks may share.

    Args:
        vit: a model made by `create_model("learnable_memory_vit", ...)`.
        num_memories_per_layer: number of memory tokens in each block.
        num_classes: number of classes; 0 for tokens.

    Raises:
        ValueError: if `vit` is another model.
    """

    vit: LearnableMemoryViT
    num_memories_per_layer: int = 10
    num_classes: int = 2

    def __post_init__(self):
        expected = "a model made by create_model('learnable_memory_vit', ...)"
        expect(self, "vit", isinstance(self.vit, LearnableMemoryViT), expected)
        at_least(self, num_memories_per_layer=0)
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Output:
        init, dim = nn.initializers.normal(0.02), self.vit.dim
        memory_cls_token = self.param("memory_cls_token", init, (dim,))
        memories = self.param("memories_per_layer", init, (self.vit.depth, self.num_memories_per_layer, dim))

        stop = lambda variables: jax.tree.map(jax.lax.stop_gradient, variables)
        encode = nn.map_variables(LearnableMemoryViT.encode_with_memories, "params", stop, init=self.is_initializing())
        tokens = encode(self.vit, images, memory_cls_token, memories, train=train)
        if self.is_initializing() and self.vit.num_classes:
            self.vit.head(tokens)  # creates the parameters of the ViT's own head: upstream keeps them
        return NormHead(self.num_classes, name="mlp_head")(tokens[:, 0]) if self.num_classes else tokens

    torch_rules = HEAD_RULES

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores the mask."""
        patches = math.prod(patch_grid(self.vit.image_size, self.vit.patch_size))
        return {"attn_mask": memory_mask(patches + 1, self.num_memories_per_layer)}


PRESETS = {"tiny": TINY, "b16": vit_sizes(768), "b32": vit_sizes(768, patch_size=32)}
