"""LoopedViT: the middle blocks of a ViT run in a loop, which may end early when a gate predicts no further gain.

Source: Chng et al. 2026 (Looped Diffusion Transformer), arXiv:2609.40305. Upstream: vit_pytorch/looped_vit.py.
Differs from upstream: outputs keep their shape after an early exit, and repeat the output of the last loop (upstream:
fewer loops); tokens and positions have an initial std of 0.02 (upstream: 1).
Differs from the paper: a classifier (paper: a diffusion model).
Axes: l loops, b batch, n tokens, d dim, h heads, i query, j key, q queries of the gate, k classes.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_fits
from vit_jax.frames.rules import TRANSFORMER_RULES, sequential_rules
from vit_jax.layers import (
    Blocks,
    Dense,
    FeedForward,
    LayerNorm,
    add_positions,
    attend,
    gelu,
    l2_normalize,
    prepend,
    stage_rates,
)
from vit_jax.layers.array_patches import ArrayPatchEmbed, array_grid, per_axis
from vit_jax.layers.check import at_least, check_floating, expect
from vit_jax.layers.shapes import Tokens
from vit_jax.layers.to_heads import ToHeads


class Attention(nn.Module):
    """Exclusive self-attention, gated by head.

    Of each token's output, the component along the token's own value is removed.
    """

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        dim, x = x.shape[-1], LayerNorm(name="norm")(x)
        q, k, v = ToHeads(3, self.heads, self.dim_head, name="to_qkv")(x)
        out = attend(self, q, k, v, dropout=self.dropout, train=train)
        out = rearrange(out, "b n (h d) -> b n h d", h=self.heads)
        own = l2_normalize(rearrange(v, "b h n d -> b n h d"))
        out = out - (out * own).sum(axis=-1, keepdims=True) * own
        out = out * nn.sigmoid(Dense(self.heads, use_bias=False, name="to_gate")(x))[..., None]
        out = Dense(dim, use_bias=False, name="to_out")(rearrange(out, "b n h d -> b n (h d)"))
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class ExitGate(nn.Module):
    """Predict the gain of another loop, (b,): four learned queries attend to the tokens."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Float[Array, "b"]:
        dim, shape = x.shape[-1], (self.heads, 4, self.dim_head)
        queries = self.param("queries", nn.initializers.normal(self.dim_head**-0.5), shape)
        k, v = ToHeads(2, self.heads, self.dim_head, name="to_kv")(LayerNorm(name="norm_kv")(x))
        q = jnp.broadcast_to(queries, (x.shape[0], *shape))
        out = attend(self, q, k, v, dropout=self.dropout, train=train)
        out = Dense(dim, use_bias=False, name="to_out")(out).mean(axis=1)
        hidden = gelu(Dense(2 * dim, name="fc1")(LayerNorm(name="norm")(out)))
        return Dense(1, name="fc2")(nn.Dropout(self.dropout)(hidden, deterministic=not train))[:, 0]


class LoopedViT(nn.Module):
    """Classifier: image (b, H, W, c), or array (b, *input_shape, c), to logits (b, k).

    With `num_classes=0` it returns pooled features (b, d). An input may be smaller than the model's
    size; it then gets the first positions.

    Args:
        num_classes: number of classes; 0 for pooled features.
        dim: width of a token.
        ndim: number of axes of an input, if `input_shape` or `image_size` is one number.
        input_shape: sides of an array, in place of `image_size`; one number for all `ndim` axes.
        patch_size: sides of a patch, one number for all axes or one for each.
        image_size: pixels, or (height, width).
        pre_loop_depth: blocks before the loop.
        num_looped_blocks: blocks in the loop.
        post_loop_depth: blocks after the loop.
        loop_depth: number of loops.
        deep_supervision_weighting: weights of the loops for `vit_jax.objectives.deep_supervision`:
            "final", "exponential", "final_mean", or a number for each loop.
        pool: which token the head reads, "cls" for the class token, "mean" for the mean of all
            tokens.
        heads: attention heads in each block.
        dim_head: width of a head.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an image.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        adaptive_loop: have an exit gate.
        exit_threshold: the loop ends once the predicted gain of another one is at most this.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide the sides of an input, `loop_depth` is below 1,
            `deep_supervision_weighting` is unknown, or `pool` is neither "cls" nor "mean".
    """

    num_classes: int
    dim: int
    ndim: int = 2
    input_shape: int | Sequence[int] | None = None
    patch_size: int | Sequence[int] | None = None
    image_size: int | Sequence[int] | None = None
    pre_loop_depth: int = 6
    num_looped_blocks: int = 5
    post_loop_depth: int = 6
    loop_depth: int = 4
    deep_supervision_weighting: str | Sequence[float] = "final_mean"
    pool: str = "cls"
    heads: int = 8
    dim_head: int = 64
    mlp_dim: int = 2048
    channels: int = 3
    dropout: float = 0.0
    emb_dropout: float = 0.0
    adaptive_loop: bool = False
    exit_threshold: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        at_least(self, pre_loop_depth=0, num_looped_blocks=0, post_loop_depth=0, loop_depth=1)
        array_grid("input_shape", *self._shape_and_patch())
        weighting, names = self.deep_supervision_weighting, ("final", "exponential", "final_mean")
        fits = weighting in names if isinstance(weighting, str) else len(weighting) == self.loop_depth
        expect(self, "deep_supervision_weighting", fits, f"one of {names}, or loop_depth={self.loop_depth} numbers")
        super().__post_init__()

    def _shape_and_patch(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape = self.image_size if self.input_shape is None else self.input_shape
        axes = len(shape) if isinstance(shape, Sequence) else self.ndim
        return per_axis("input_shape", shape, axes), per_axis("patch_size", self.patch_size, axes)

    def setup(self):
        shape, patch = self._shape_and_patch()
        init, tokens = nn.initializers.normal(0.02), 1 + math.prod(array_grid("input_shape", shape, patch))
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout)
        self.to_patch_embedding = ArrayPatchEmbed(patch, self.dim)
        self.cls_token = self.param("cls_token", init, (1, 1, self.dim))
        self.pos_embedding = self.param("pos_embedding", init, (1, tokens, self.dim))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        depths = self.pre_loop_depth, self.num_looped_blocks, self.post_loop_depth
        stacks = zip(depths, stage_rates(self.drop_path, depths), strict=True)
        self.pre_loop, self.looped, self.post_loop = (
            Blocks(depth, attention, feed_forward, drop_path=rates) for depth, rates in stacks
        )
        self.norm = LayerNorm()
        if self.num_classes:
            self.mlp_head = Dense(self.num_classes)
        if self.adaptive_loop:
            self.exit_gate = ExitGate(self.heads, self.dim_head, self.dropout)

    def _loop(self, x: Tokens, gated: bool, train: bool) -> tuple[Tokens, Array, Array | None]:
        """Run one loop. Returns the tokens, logits as if it were the last loop, and the gate's prediction."""
        x = self.looped(x, train=train)
        decoded = self.norm(self.post_loop(x, train=train))
        pooled = decoded[:, 1:].mean(axis=1) if self.pool == "mean" else decoded[:, 0]
        logits = self.mlp_head(pooled) if self.num_classes else pooled
        return x, logits, self.exit_gate(decoded, train=train) if gated else None

    def __call__(
        self,
        x: Float[Array, "b *shape c"],
        *,
        loop_depth: int | None = None,
        return_all_logits: bool = False,
        return_exit_benefits: bool = False,
        adaptive_exit: bool = False,
        exit_threshold: float | Float[Array, ""] | None = None,
        train: bool = False,
    ) -> Float[Array, "*out"] | tuple[Float[Array, "*out"], Float[Array, "l b"]]:
        """Logits after the last loop, (b, k).

        Args:
            x: an image (b, H, W, c), or an array (b, *input_shape, c).
            loop_depth: number of loops, in place of the model's.
            return_all_logits: return the logits of every loop, (l, b, k).
            return_exit_benefits: also return the gate's predictions after each loop but the last,
                (l - 1, b).
            adaptive_exit: end the loop once the predicted gain is at most `exit_threshold` for
                every image.
            exit_threshold: in place of the model's.
            train: as for any model.
        """
        shape, _ = self._shape_and_patch()
        if x.ndim != len(shape) + 2 or x.shape[-1] != self.channels:
            axes = "height, width" if len(shape) == 2 else f"*{shape}"
            expected = f"(batch, {axes}, channels) with channels={self.channels}"
            raise ValueError(f"images of shape {x.shape}: expected {expected}")
        check_floating("images", x)
        check_fits("images", x, shape, "image_size" if self.input_shape is None else "input_shape")
        loops = self.loop_depth if loop_depth is None else loop_depth
        gated = adaptive_exit or return_exit_benefits or (self.adaptive_loop and self.is_initializing())
        expect(self, "adaptive_loop", self.adaptive_loop or not gated, "True, as exits need the gate")
        if loops < 1 + (adaptive_exit or return_exit_benefits):
            raise ValueError(f"loop_depth={loops}: expected at least 1, and 2 for a gate")

        x = add_positions(prepend(self.cls_token, self.to_patch_embedding(x)), self.pos_embedding)
        x = self.pre_loop(self.embedding_dropout(x, deterministic=not train), train=train)
        unread = 0 if gated or return_all_logits else loops - 1
        for _ in range(unread):
            x = self.looped(x, train=train)
        stay, step = lambda self, *state: state, lambda self, x, *_: self._loop(x, gated, train)
        states = [step(self, x)]
        threshold = self.exit_threshold if exit_threshold is None else exit_threshold
        for _ in range(loops - 1 - unread):
            if adaptive_exit:
                states.append(nn.cond(states[-1][-1].max() <= threshold, stay, step, self, *states[-1]))
            else:
                states.append(step(self, *states[-1]))
        _, logits, benefits = zip(*states, strict=True)
        out = jnp.stack(logits) if return_all_logits else logits[-1]
        return (out, jnp.stack(benefits[:-1])) if return_exit_benefits else out

    torch_rules = (
        *sequential_rules("to_patch_embedding", "to_patch_embedding", proj=1, norm=2),
        *sequential_rules("exit_gate", "exit_gate.mlp", norm=0, fc1=1, fc2=4),
        *TRANSFORMER_RULES,
    )


_DEPTHS = dict(pre_loop_depth=1, num_looped_blocks=2, post_loop_depth=1, loop_depth=2)
PRESETS = {"tiny": dict(image_size=32, patch_size=4, dim=64, heads=4, dim_head=16, mlp_dim=128, **_DEPTHS)}
