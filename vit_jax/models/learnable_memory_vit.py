"""Learnable memory: a trained ViT stays as it is, and every new task adds a token, memories per layer and a head.

Source: Sandler et al. 2022, arXiv:2203.15243. Upstream: vit_pytorch/learnable_memory_vit.py.
Differs from upstream: `num_classes=0` gives tokens; images may be smaller than `image_size`; tokens, memories and
positions start at a deviation of 0.02 (upstream: 1).
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
from vit_jax.layers import Blocks, ContextAttention, NormHead, block_output, prepend
from vit_jax.layers.check import at_least, expect, patch_grid
from vit_jax.layers.shapes import Images, Output, Tokens


class Transformer(Blocks):
    """`Blocks` whose attentions read memories of their own, if there are any: the first token alone does."""

    @nn.compact
    def __call__(self, x: Tokens, memories: Float[Array, "l m d"] | None = None, *, train: bool = False) -> Tokens:
        contexts, mask = [None] * self.depth, None
        if memories is not None:
            contexts = jnp.broadcast_to(memories[:, None], (self.depth, x.shape[0], *memories.shape[1:]))
            mask = jnp.asarray(memory_mask(x.shape[1] - 1, memories.shape[1]))[None, None]
        for i in range(self.depth):
            x = x + self.attention(name=f"attn_{i}")(x, contexts[i], mask, train=train)
            x = x + self.feed_forward(name=f"ff_{i}")(x, train=train)
            block_output(self, x)
        return x


class LearnableMemoryViT(PlainViT):
    """The plain ViT as a trunk for `Adapter`. Logits come from the class token, whatever `pool` says, as upstream's."""

    def make_transformer(self) -> nn.Module:
        attention = functools.partial(ContextAttention, self.heads, self.dim_head, self.dropout)
        return Transformer(self.depth, attention, self.make_feed_forward())

    def encode_with_memories(
        self, images: Images, cls_token: Float[Array, "d"], memories: Float[Array, "l m d"], *, train: bool = False
    ) -> Tokens:
        """Tokens after the transformer: one that reads the memories, then those of `encode`, which do not change."""
        tokens = prepend(cls_token[None], self.embed(images, train=train))
        return self.transformer(tokens, memories, train=train)

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`."""
        return self.mlp_head(tokens[:, 0])


def memory_mask(tokens: int, memories: int) -> Bool[np.ndarray, "n j"]:
    """Who reads whom: the first token reads the tokens and the memories; the others read one another alone."""
    mask = np.zeros((1 + tokens, 1 + tokens + memories), bool)
    mask[0] = True
    mask[1:, 1 : 1 + tokens] = True
    return mask


class Adapter(nn.Module):
    """A task's own head on a frozen `vit`: images (b, H, W, c) to logits (b, k).

    No gradient reaches the parameters of `vit`, a `LearnableMemoryViT`; adapters for several tasks may take the same.
    With `num_classes=0` it gives tokens (b, n, d), the one that reads the memories first.
    Raises ValueError for any other `vit`.
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
            self.vit.head(tokens)  # for the parameters of the trunk's own head, which upstream keeps
        return NormHead(self.num_classes, name="mlp_head")(tokens[:, 0]) if self.num_classes else tokens

    torch_rules = HEAD_RULES

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores the mask."""
        patches = math.prod(patch_grid(self.vit.image_size, self.vit.patch_size))
        return {"attn_mask": memory_mask(patches + 1, self.num_memories_per_layer)}


PRESETS = {"tiny": TINY, "b16": vit_sizes(768), "b32": vit_sizes(768, patch_size=32)}
