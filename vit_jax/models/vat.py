"""VAT: actions from images; action tokens read layer by layer what the layers of a ViT made of every view and frame.

Source: "VAT: Vision Action Transformer by Unlocking Full Representation of ViT", submitted anonymously in 2025,
openreview.net/forum?id=TalHOvvLZu. Upstream: vit_pytorch/vat.py.
Differs from upstream: the axis of views may be left out where there is one view (upstream: raises), and that of frames
be kept where there is one frame; advantages without `num_advantage_bins` raise (upstream: says nothing), and numbers
beyond a table give NaN (upstream: raises); FiLM starts as the identity (upstream: it starts by erasing the tokens);
for ViT, `num_classes=0` gives tokens, and images may be smaller than `image_size`; the class token and positions start
at a deviation of 0.02, advantages at 0.01 (upstream: 1).
Differs from the paper: action tokens also attend to one another, unless `add_self_attn=False`; a layer may read any
layer of the ViT; gates of attention, registers and advantages are upstream's own.
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
from vit_jax.frames.actions import Actions, Extra, Video, no_registers, take_module, with_hiddens
from vit_jax.frames.presets import TINY
from vit_jax.frames.rules import feed_forward_rules
from vit_jax.layers import Dense, LayerNorm, ToHeads, add_positions, append, attend, pool_tokens, prepend
from vit_jax.layers.check import expect
from vit_jax.layers.shapes import ExtraTokens, Images, Output, Patches, Tokens


class Attention(nn.Module):
    """Attention of x over itself, or over a context with a norm of its own; x gates what each head gives.

    Source of the gates: Qiu et al. 2025, arXiv:2505.06708. The output projection is left out where it would change
    nothing: one head as wide as the input.
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
    """The concatenated outputs of the heads, each multiplied by the sigmoid of its gate."""
    heads = rearrange(out, "b n (h d) -> b n h d", h=gates.shape[-1])
    return rearrange(heads * nn.sigmoid(gates)[..., None], "b n h d -> b n (h d)")


class ViT(PlainViT):
    """The plain ViT with gates in its attention, and registers in front of its class token.

    With `return_hiddens` it gives tokens (b, n, d), and what each block reads, (l, b, n, d), instead of logits.
    """

    num_register_tokens: int = 0

    def setup(self):
        super().setup()
        shape = (self.num_register_tokens, self.dim)
        self.register_tokens = self.param("register_tokens", nn.initializers.normal(0.01), shape) if shape[0] else None

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout)

    def make_transformer(self) -> nn.Module:
        return Trajectory(self.depth, self.make_attention(), self.make_feed_forward())

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
        """The input of each block, and last the output of `encode`."""
        tokens = self.transformer(self.embed(images, train=train), train=train)
        if self.is_initializing() and self.num_classes:
            self.head(tokens[-1])  # for its parameters, which upstream has even if nothing reads them
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
    """The `ActionTransformer` of a `vit`, a `vat:ViT` or a dict of its arguments, and with the same attention.

    Raises ValueError for another `depth` than the ViT's without `vit_layer_indices`.
    """

    vit: ViT | Mapping[str, Any]

    def __post_init__(self):
        take_module(self, "vit", ViT, "vat:ViT")
        super().__post_init__()
        self.check_layers("vit_layer_indices", self.vit)

    def make_attention(self, heads: int, dim_head: int) -> Callable[..., nn.Module]:
        return functools.partial(Attention, heads, dim_head, self.dropout)

    def check_layers(self, name: str, encoder: nn.Module) -> None:
        """Raises ValueError unless this is as deep as `encoder`, or its argument `name` says which layers to read."""
        expected = f"{encoder.depth}, the depth of its {type(encoder).__name__}, or {name}"
        expect(self, "depth", getattr(self, name) is not None or self.depth == encoder.depth, expected)
        self.layers_read(name, encoder.depth)


class VAT(ActionViT, kw_only=True):
    """Actions (b, k, a) from images (b, v, h, w, c), or videos (b, v, f, h, w, c) of `time_seq_len` frames.

    A single view may lack its axis; more than one of `num_views` are told apart. Conditions are `extra`, (b, e) or
    (b, n, e), `tasks` (b,), and `advantages`, (b,) or one number, -1 being none in particular. `actions` (b, k, a)
    give the mean absolute error instead, `return_hiddens` also the tokens of all layers, (l + 1, b, n, d);
    `freeze_vit` stops gradients before the ViT. Raises ValueError for inputs that do not fit.
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
