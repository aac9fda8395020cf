"""VAT: actions from images; each layer of action tokens attends to one layer of a ViT, over all views and frames.

`VAT` derives from the frame `ActionTransformer`; `ViT` derives from the frame `PlainViT` and overrides its
attention.

Source: "VAT: Vision Action Transformer by Unlocking Full Representation of ViT", submitted anonymously in 2025,
openreview.net/forum?id=TalHOvvLZu. Upstream: vit_pytorch/vat.py.
Differs from upstream: the axis of views may be omitted for one view (upstream: raises), and the axis of frames may be
present for one frame; `advantages` without `num_advantage_bins` raises (upstream: ignored), and indices outside of a
table give NaN (upstream: raises); FiLM starts as the identity (upstream: its initial output is zero); for ViT,
`num_classes=0` gives tokens, and images may be smaller than `image_size`; the class token and positions have
an initial std of 0.02, advantages one of 0.01 (upstream: 1).
Differs from the paper: action tokens also attend to each other, unless `add_self_attn=False`; a layer may read any
layer of the ViT; gates of attention, registers and advantages are upstream's additions.
Axes: b batch, v views, f frames, n tokens, m tokens of the context, d dim, h heads, l layers, k classes or actions,
a numbers of an action, e extra.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.frames import ActionTransformer, PlainViT, Trajectory
from vit_jax.frames.actions import Actions, Extra, Video, no_registers, take_module
from vit_jax.frames.presets import TINY
from vit_jax.frames.rules import feed_forward_rules
from vit_jax.frames.trajectory import with_hiddens
from vit_jax.layers import Dense, LayerNorm, ToHeads, add_positions, append, attend, pool_tokens, prepend
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import ExtraTokens, Images, Output, Patches, Tokens


class Attention(nn.Module):
    """Attention of `x` over itself, or over a context with its own norm; `x` gates the output of each head.

    Source of the gates: Qiu et al. 2025, arXiv:2505.06708. There is no output projection for one
    head as wide as the input.
    """

    heads: int
    dim_head: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Tokens, context: Float[Array, "b m e"] | None = None, *, train: bool = False) -> Tokens:
        x = LayerNorm(name="norm")(x)
        source = x if context is None else LayerNorm(name="context_norm")(context)
        (q,) = ToHeads(1, self.heads, self.dim_head, name="to_q")(x)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(source)
        out = gate(attend(self, q, k, v, dropout=self.dropout, train=train), Dense(self.heads, name="to_out_gates")(x))
        if self.heads == 1 and self.dim_head == x.shape[-1]:
            return out
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


def gate(out: Float[Array, "b n hd"], gates: Float[Array, "b n h"]) -> Float[Array, "b n hd"]:
    """Multiply the concatenated outputs of the heads by the sigmoid of their gates."""
    heads = rearrange(out, "b n (h d) -> b n h d", h=gates.shape[-1])
    return rearrange(heads * nn.sigmoid(gates)[..., None], "b n h d -> b n (h d)")


class ViT(PlainViT):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions. With
    `return_hiddens` it returns a pair instead: tokens (b, n, d), and the inputs of all blocks (l,
    b, n, d). Register tokens come before the class token.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for tokens.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        channels: channels of an image.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        num_register_tokens: number of register tokens.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `pool` is neither "cls" nor
            "mean".
    """

    num_register_tokens: int = 0

    def setup(self):
        super().setup()
        shape = (self.num_register_tokens, self.dim)
        self.register_tokens = self.param("register_tokens", nn.initializers.normal(0.01), shape) if shape[0] else None

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout)

    def make_transformer(self) -> nn.Module:
        return Trajectory(self.depth, self.make_attention(), self.make_feed_forward(), drop_path=self.drop_path)

    def make_tokens(self, patches: int) -> tuple[Array, Array]:
        init = nn.initializers.normal(0.02)
        return self.param("cls_token", init, (self.dim,)), self.param("pos_embedding", init, (patches, self.dim))

    def make_head(self) -> nn.Module:
        return Dense(self.num_classes)

    def embed(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the transformer: registers, the class token, patches with positions, the extra tokens."""
        self.check_positions(images)
        x = self.to_patch_embedding(images) if patches is None else patches
        x = prepend(self.cls_token[None], add_positions(x, self.pos_embedding))
        x = x if self.register_tokens is None else prepend(self.register_tokens, x)
        x = x if extra_tokens is None else append(x, extra_tokens)
        return self.embedding_dropout(x, deterministic=not train)

    def trajectory(self, images: Images, *, train: bool = False) -> list[Tokens]:
        """The input of each block, then the output of `encode`."""
        tokens = self.transformer(self.embed(images, train=train), train=train)
        if self.is_initializing() and self.num_classes:
            self.head(tokens[-1])  # creates its parameters: upstream always has them
        return tokens

    def transform(self, tokens: Tokens, *, train: bool = False) -> Tokens:
        return self.transformer(tokens, train=train)[-1]

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        x = tokens[:, self.num_register_tokens :]
        return self.mlp_head(pool_tokens(x[:, 1:] if self.pool == "mean" else x, self.pool))

    def __call__(
        self, images: Images, *, return_hiddens: bool = False, train: bool = False
    ) -> Output | tuple[Tokens, Float[Array, "l b n d"]]:
        tokens = self.trajectory(images, train=train)
        if return_hiddens:
            return with_hiddens(tokens)
        return self.head(tokens[-1]) if self.num_classes else tokens[-1]

    torch_rules = (("to_out_gates", "to_out_gates.0"), *PlainViT.torch_rules)

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores an array of no register tokens too."""
        return no_registers(self)


class ActionViT(ActionTransformer, kw_only=True):
    """Base of the models with a `vit`: an `ActionTransformer` with the attention of that ViT.

    Raises:
        ValueError: if `vit_layer_indices` is not given and `depth` is not that of the ViT.
    """

    vit: ViT | Mapping[str, Any]

    def __post_init__(self):
        take_module(self, "vit", ViT, "vat:ViT")
        super().__post_init__()
        self.check_layers("vit_layer_indices", self.vit)

    def make_attention(self, heads: int, dim_head: int) -> Callable[..., nn.Module]:
        return functools.partial(Attention, heads, dim_head, self.dropout)

    def check_layers(self, name: str, encoder: nn.Module) -> None:
        """Check the argument `name`, the layers of `encoder` to read.

        Raises:
            ValueError: if it is not given and `depth` is not that of `encoder`, or it has an
                unknown layer.
        """
        expected = f"{encoder.depth}, the depth of its {type(encoder).__name__}, or {name}"
        expect(self, "depth", getattr(self, name) is not None or self.depth == encoder.depth, expected)
        self.layers_read(name, encoder.depth)


class VAT(ActionViT, kw_only=True):
    """Actions (b, k, a) from images (b, v, h, w, c), or videos (b, v, f, h, w, c) of `time_seq_len` frames.

    The axis of views may be omitted for one view.

    Args:
        dim: width of a token.
        depth: number of layers of action tokens.
        heads: heads of the attention to images.
        dim_head: width of a head of this attention.
        dim_action: numbers of an action.
        mlp_dim: hidden width of each feed-forward.
        num_tasks: number of tasks that FiLM can condition on; None for no tasks.
        dim_extra_token: width of the input `extra`, which becomes tokens; None for none.
        num_register_tokens: number of register tokens.
        action_chunk_len: number of actions to predict.
        time_seq_len: frames of a video.
        dropout: rate within the layers.
        add_self_attn: let the action tokens attend to each other.
        self_attn_heads: heads of this self-attention.
        self_attn_dim_head: width of a head of this self-attention.
        vit_layer_indices: for each layer, the layer of the ViT to read: i for the input of block i, the ViT's depth
            for its output. By default all in order.
        num_advantage_bins: number of advantages that an extra token can condition on.
        vit: a `vat:ViT` made by `create_model`, or a dict of its arguments.
        num_views: number of views, each with a learned embedding; None for one view.
        drop_path: rate of stochastic depth in the last layer; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `vit_layer_indices` does not have a layer of the ViT for each of `depth` layers, or an input
            does not fit.
    """

    num_views: int | None = None

    @nn.compact
    def __call__(
        self,
        video_or_image: Video,
        *,
        extra: Extra | None = None,
        tasks: Int[Array, "b"] | None = None,
        advantages: Int[Array, "b"] | int | None = None,
        actions: Float[Array, "b k a"] | None = None,
        return_hiddens: bool = False,
        freeze_vit: bool = False,
        train: bool = False,
    ) -> Actions:
        """Predict actions.

        Args:
            video_or_image: images or videos, see the class.
            extra: further input, (b, e) or (b, n, e), if `dim_extra_token` is given.
            tasks: indices (b,), if `num_tasks` is given.
            advantages: indices (b,) or one for all, if `num_advantage_bins` is given; -1 for none in particular.
            actions: targets (b, k, a). If given, the result is the mean absolute error.
            return_hiddens: also return the action tokens before the first layer and after every layer, (l + 1, b, t,
                d).
            freeze_vit: stop gradients to the ViT.
            train: as for any model.
        """
        contexts = {"cross_attn": self.look(self.vit, video_or_image, "view", freeze=freeze_vit, train=train)}
        given = dict(extra=extra, tasks=tasks, advantages=advantages, actions=actions, return_hiddens=return_hiddens)
        return self.act(contexts, **given, train=train)

    torch_rules = (*ActionTransformer.torch_rules, *feed_forward_rules(r"mlp_(\d+)", r"layers.\1.3.net"))


_VIT = dict(image_size=256, patch_size=32, num_classes=1000, dim=256, depth=4, heads=8, mlp_dim=1024)
_SIZES = dict(dim=512, depth=9, heads=8, dim_head=64, mlp_dim=2048, dim_action=20, num_tasks=4, dim_extra_token=33)
PRESETS = {
    "tiny": TINY,
    "upstream": _SIZES | dict(vit=_VIT, time_seq_len=4, num_views=2, vit_layer_indices=(0, 0, 1, 1, 2, 2, 3, 3, 4)),
}
