"""Learnable memory: a trained ViT stays as it is, and every new task adds a token, memories per layer and a head.

Source: Sandler et al. 2022, arXiv:2203.15243. Upstream: vit_pytorch/learnable_memory_vit.py.
Differs from upstream: `num_classes=0` gives tokens; images may be smaller than `image_size`; tokens, memories and
positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: a norm before and after the patch projection, no bias in query, key and value.
Axes: b batch, n tokens, l layers, m memories, d dim, h heads, i query, j key, k classes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.layers import Dense, FeedForward, LayerNorm, NormHead, PlainViT, append, prepend, softmax
from vit_jax.layers.check import check_arguments, patch_grid
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES


class Attention(nn.Module):
    """Attention of x over itself, or over [x, memories] where `mask` is true; memories are not normed."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        memories: Float[Array, "m d"] | None = None,
        mask: Bool[np.ndarray, "n j"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        source = x if memories is None else append(x, memories)
        q = Dense(inner_dim, use_bias=False, name="to_q")(x)
        kv = Dense(2 * inner_dim, use_bias=False, name="to_kv")(source)
        q = rearrange(q, "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(kv, "b n (kv h d) -> kv b h n d", kv=2, h=self.heads)
        scores = jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        if mask is not None:
            scores = jnp.where(mask[None, None], scores, jnp.finfo(scores.dtype).min)
        attn = softmax(scores)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attn, v), "b h n d -> b n (h d)")
        out = Dense(dim, name="to_out")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class Transformer(nn.Module):
    """`depth` blocks of attention, each over memories of its own if there are any, and feed-forward; no last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        memories: Float[Array, "l m d"] | None = None,
        mask: Bool[np.ndarray, "n j"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        for i in range(self.depth):
            own = None if memories is None else memories[i]
            attn = Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")
            x = x + attn(x, own, mask, train=train)
            x = x + FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
        return x


class LearnableMemoryViT(PlainViT):
    """The plain ViT as a trunk for `Adapter`. Logits come from the class token, whatever `pool` says, as upstream's."""

    def make_transformer(self) -> nn.Module:
        return Transformer(self.depth, self.heads, self.dim_head, self.mlp_dim, self.dropout)

    def encode_with_memories(
        self,
        images: Float[Array, "b H W c"],
        memory_cls_token: Float[Array, "d"],
        memories: Float[Array, "l m d"],
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        """Tokens after the transformer: one that reads the memories, then those of `encode`, which do not change."""
        tokens = self.embed(images, train=train)
        mask = memory_mask(tokens.shape[1], memories.shape[1])
        return self.transformer(prepend(memory_cls_token[None], tokens), memories, mask, train=train)

    def head(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
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
        if not isinstance(self.vit, LearnableMemoryViT):
            raise ValueError(f"vit={self.vit!r}: expected a model made by create_model('learnable_memory_vit', ...)")
        if self.num_memories_per_layer < 0:
            raise ValueError(f"num_memories_per_layer={self.num_memories_per_layer!r}: expected at least 0")
        check_arguments(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b *out"]:
        init, dim = nn.initializers.normal(0.02), self.vit.dim
        memory_cls_token = self.param("memory_cls_token", init, (dim,))
        memories = self.param("memories_per_layer", init, (self.vit.depth, self.num_memories_per_layer, dim))

        stop = lambda variables: jax.tree.map(jax.lax.stop_gradient, variables)
        encode = nn.map_variables(LearnableMemoryViT.encode_with_memories, "params", stop, init=self.is_initializing())
        tokens = encode(self.vit, images, memory_cls_token, memories, train=train)
        if self.is_initializing() and self.vit.num_classes:
            self.vit.head(tokens)  # for the parameters of the trunk's own head, which upstream keeps
        return NormHead(self.num_classes, name="mlp_head")(tokens[:, 0]) if self.num_classes else tokens


def _paper(patch_size):
    return dict(image_size=224, patch_size=patch_size, dim=768, depth=12, heads=12, mlp_dim=3072)


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128),
    "b16": _paper(16),
    "b32": _paper(32),
}

TORCH_RULES = (
    *PATCH_EMBED_RULES,
    *TRANSFORMER_RULES,
    *HEAD_RULES,
)


def torch_constants(model: LearnableMemoryViT | Adapter) -> dict[str, np.ndarray]:
    """Upstream's adapter stores its mask."""
    if not isinstance(model, Adapter):
        return {}
    patches = math.prod(patch_grid(model.vit.image_size, model.vit.patch_size))
    return {"attn_mask": memory_mask(patches + 1, model.num_memories_per_layer)}
