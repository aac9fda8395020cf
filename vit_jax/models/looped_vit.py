"""LoopedViT: the middle blocks of a ViT run several times over, and may stop once a gate expects no more of it.

Source: Chng et al. 2026 (Looped Diffusion Transformer), arXiv:2609.40305. Upstream: vit_pytorch/looped_vit.py.
Differs from upstream: outputs keep their shape after an early exit, and repeat what the last loop gave (upstream:
fewer loops); tokens and positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: a classifier, no diffusion model.
Axes: l loops, b batch, n tokens, d dim, h heads, i query, j key, q queries of the gate, k classes.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.layers import Dense, FeedForward, LayerNorm, add_positions, gelu, l2_normalize, prepend, softmax
from vit_jax.layers.check import check_arguments, check_images, one_of
from vit_jax.layers.rules import feed_forward_rules


class Attention(nn.Module):
    """Exclusive self-attention: of what a token gathers, only what its own value does not say; gated by head."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        dim, inner_dim = x.shape[-1], self.heads * self.dim_head
        x = LayerNorm(name="norm")(x)
        qkv = Dense(3 * inner_dim, use_bias=False, name="to_qkv")(x)
        q, k, v = rearrange(qkv, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        attn = softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5)
        self.sow("intermediates", "attn", attn)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = jnp.einsum("bhij,bhjd->bhid", attn, v)
        own = l2_normalize(v)
        out = out - (out * own).sum(axis=-1, keepdims=True) * own
        gate = nn.sigmoid(Dense(self.heads, use_bias=False, name="to_gate")(x))
        out = rearrange(out * rearrange(gate, "b n h -> b h n 1"), "b h n d -> b n (h d)")
        return nn.Dropout(self.dropout)(Dense(dim, use_bias=False, name="to_out")(out), deterministic=not train)


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward, each with its residual; no last norm."""

    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        for i in range(self.depth):
            x = x + Attention(self.heads, self.dim_head, self.dropout, name=f"attn_{i}")(x, train=train)
            x = x + FeedForward(self.mlp_dim, self.dropout, name=f"ff_{i}")(x, train=train)
        return x


class ExitGate(nn.Module):
    """What another loop is expected to bring, (b,): four learned queries read the tokens."""

    heads: int
    dim_head: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b"]:
        dim = x.shape[-1]
        init = nn.initializers.normal(self.dim_head**-0.5)
        queries = self.param("queries", init, (self.heads, 4, self.dim_head))
        kv = Dense(2 * self.heads * self.dim_head, use_bias=False, name="to_kv")(LayerNorm(name="norm_kv")(x))
        k, v = rearrange(kv, "b n (kv h d) -> kv b h n d", kv=2, h=self.heads)
        attn = softmax(jnp.einsum("hqd,bhjd->bhqj", queries, k) * self.dim_head**-0.5)
        attn = nn.Dropout(self.dropout)(attn, deterministic=not train)
        out = rearrange(jnp.einsum("bhqj,bhjd->bhqd", attn, v), "b h q d -> b q (h d)")
        out = Dense(dim, use_bias=False, name="to_out")(out).mean(axis=1)
        hidden = gelu(Dense(2 * dim, name="fc1")(LayerNorm(name="norm")(out)))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return Dense(1, name="fc2")(hidden)[:, 0]


class PatchEmbed(nn.Module):
    """Patches of an array with any number of axes, projected and normalised: (b, *shape, c) to (b, n, dim)."""

    patch_size: tuple[int, ...]
    dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *shape c"]) -> Float[Array, "b n d"]:
        batch, *shape, channels = x.shape
        check_patches("image_size", tuple(shape), self.patch_size)
        split = [side for size, patch in zip(shape, self.patch_size, strict=True) for side in (size // patch, patch)]
        last = 2 * len(shape) + 1
        x = x.reshape(batch, *split, channels).transpose(0, *range(1, last, 2), *range(2, last, 2), last)
        x = x.reshape(batch, -1, math.prod(self.patch_size) * channels)
        return LayerNorm(name="norm")(Dense(self.dim, name="proj")(x))


def check_patches(name: str, shape: tuple[int, ...], patch_size: tuple[int, ...]) -> None:
    """Raises ValueError unless each side of a patch divides its side of `shape`."""
    if any(size < 1 or patch < 1 or size % patch for size, patch in zip(shape, patch_size, strict=True)):
        raise ValueError(f"{name}={shape}: expected multiples of patch_size={patch_size}, side by side")


class LoopedViT(nn.Module):
    """Classifier: image (b, H, W, c), or an array of `input_shape`, (b, *shape, c), to logits (b, k).

    With `num_classes=0` to pooled features (b, d). `input_shape` stands for `image_size` where there are not two axes;
    as a single number it has `ndim` of them. `deep_supervision_weighting` is for `deep_supervision_loss`.
    Raises ValueError when patches do not fit, for depths below 0 and a `loop_depth` below 1, and for an unknown
    weighting or `pool`.
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

    def __post_init__(self):
        check_arguments(self)
        for name, minimum in dict(pre_loop_depth=0, num_looped_blocks=0, post_loop_depth=0, loop_depth=1).items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {minimum}")
        if self.input_shape is not None:
            check_patches("input_shape", *self._shape_and_patch())
        loop_weights(self.loop_depth, self.deep_supervision_weighting)
        super().__post_init__()

    def _shape_and_patch(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape = self.image_size if self.input_shape is None else self.input_shape
        axes = len(shape) if isinstance(shape, Sequence) else self.ndim
        sizes = dict(input_shape=shape, patch_size=self.patch_size)
        for name, value in sizes.items():
            sizes[name] = tuple(value) if isinstance(value, Sequence) else (value,) * axes
            if len(sizes[name]) != axes or not all(isinstance(side, int) for side in sizes[name]):
                raise ValueError(f"{name}={value!r}: expected an integer or {axes} of them")
        return sizes["input_shape"], sizes["patch_size"]

    def setup(self):
        shape, patch = self._shape_and_patch()
        init = nn.initializers.normal(0.02)
        count = math.prod(size // side for size, side in zip(shape, patch, strict=True))
        blocks = (self.heads, self.dim_head, self.mlp_dim, self.dropout)
        self.to_patch_embedding = PatchEmbed(patch, self.dim)
        self.cls_token = self.param("cls_token", init, (1, 1, self.dim))
        self.pos_embedding = self.param("pos_embedding", init, (1, count + 1, self.dim))
        self.embedding_dropout = nn.Dropout(self.emb_dropout)
        self.pre_loop = Transformer(self.pre_loop_depth, *blocks)
        self.looped = Transformer(self.num_looped_blocks, *blocks)
        self.post_loop = Transformer(self.post_loop_depth, *blocks)
        self.norm = LayerNorm()
        if self.num_classes:
            self.mlp_head = Dense(self.num_classes)
        if self.adaptive_loop:
            self.exit_gate = ExitGate(self.heads, self.dim_head, self.dropout)

    def _loop(self, x: Float[Array, "b n d"], gated: bool, train: bool) -> tuple[Array, Array, Array | None]:
        """Tokens after one more loop, logits as if it were the last, and what the gate expects of another."""
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
        """Logits after `loop_depth` loops; of every loop, (l, b, k), with `return_all_logits`.

        With `return_exit_benefits` a pair of these and the gate's expectations after each loop but the last. With
        `adaptive_exit` loops end once the gate expects at most `exit_threshold` of the next for every image.
        """
        loops = self.loop_depth if loop_depth is None else loop_depth
        gated = adaptive_exit or return_exit_benefits or (self.adaptive_loop and self.is_initializing())
        if gated and not self.adaptive_loop:
            raise ValueError("adaptive_loop=False: expected True, as there is no gate to ask otherwise")
        if loops < 1 + (adaptive_exit or return_exit_benefits):
            raise ValueError(f"loop_depth={loops}: expected at least 1, and 2 for a gate")

        x = self.pre_loop(self._embed(x, train), train=train)
        logits, benefits = [], []
        for loop in range(loops):
            if not (gated or return_all_logits or loop == loops - 1):
                x = self.looped(x, train=train)
                continue
            step = lambda self, x, *_: self._loop(x, gated, train)
            if adaptive_exit and loop > 0:
                state = (x, logits[-1], benefits[-1])
                done = benefits[-1].max() <= (self.exit_threshold if exit_threshold is None else exit_threshold)
                x, new_logits, benefit = nn.cond(done, lambda self, *state: state, step, self, *state)
            else:
                x, new_logits, benefit = step(self, x)
            logits.append(new_logits)
            benefits.append(benefit)
        out = jnp.stack(logits) if return_all_logits else logits[-1]
        return (out, jnp.stack(benefits[:-1])) if return_exit_benefits else out

    def _embed(self, x: Float[Array, "b *shape c"], train: bool) -> Float[Array, "b n d"]:
        shape, _ = self._shape_and_patch()
        if len(shape) == 2:
            check_images(x, self.channels)
        elif x.ndim != len(shape) + 2 or x.shape[-1] != self.channels:
            raise ValueError(
                f"input of shape {x.shape}: expected (batch, *{shape}, channels) with channels={self.channels}"
            )
        x = add_positions(prepend(self.cls_token, self.to_patch_embedding(x)), self.pos_embedding)
        return self.embedding_dropout(x, deterministic=not train)


def loop_weights(loops: int, weighting: str | Sequence[float] = "final_mean") -> np.ndarray:
    """What the loss of each loop counts: by the name of a weighting, or as given, one number for each."""
    before = loops - 1
    if not isinstance(weighting, str):
        if len(weighting) != loops:
            raise ValueError(f"deep_supervision_weighting={weighting!r}: expected {loops} numbers, as loop_depth says")
        return np.asarray(weighting, np.float32)
    one_of("deep_supervision_weighting", weighting, ("final", "exponential", "final_mean"))
    if weighting == "exponential":
        return 2.0 ** np.arange(-before, 1, dtype=np.float32)
    others = 1 / max(before, 1) if weighting == "final_mean" else 0
    return np.asarray([others] * before + [1], np.float32)


def loop_losses(logits: Float[Array, "l b k"], labels: Int[Array, "b"], label_smoothing: float) -> Float[Array, "l b"]:
    """Cross-entropy of every loop and image."""
    classes = logits.shape[-1]
    targets = (1 - label_smoothing) * jax.nn.one_hot(labels, classes) + label_smoothing / classes
    return -(targets[None] * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1)


def deep_supervision_loss(
    logits: Float[Array, "l b k"],
    labels: Int[Array, "b"],
    weighting: str | Sequence[float] = "final_mean",
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Cross-entropy of all loops, weighted by `loop_weights`, summed over loops and meaned over images."""
    losses = loop_losses(logits, labels, label_smoothing)
    return (losses * loop_weights(len(logits), weighting)[:, None]).sum(axis=0).mean()


def exit_targets(
    logits: Float[Array, "l b k"], labels: Int[Array, "b"], label_smoothing: float = 0.0
) -> Float[Array, "l-1 b"]:
    """What the gate should learn to expect after each loop but the last: the largest gain per further loop, or 0."""
    losses = jax.lax.stop_gradient(loop_losses(logits, labels, label_smoothing))
    loop = jnp.arange(len(losses))
    ahead = (loop[None] - loop[:, None])[..., None]
    gains = (losses[:, None] - losses[None]) / jnp.maximum(ahead, 1)
    return jnp.where(ahead > 0, jnp.maximum(gains, 0), 0).max(axis=1)[:-1]


_DEPTHS = dict(pre_loop_depth=1, num_looped_blocks=2, post_loop_depth=1, loop_depth=2)
PRESETS = {"tiny": dict(image_size=32, patch_size=4, dim=64, heads=4, dim_head=16, mlp_dim=128, **_DEPTHS)}

TORCH_RULES = (
    ("to_patch_embedding/proj", "to_patch_embedding.1"),
    ("to_patch_embedding/norm", "to_patch_embedding.2"),
    ("exit_gate/norm", "exit_gate.mlp.0"),
    ("exit_gate/fc1", "exit_gate.mlp.1"),
    ("exit_gate/fc2", "exit_gate.mlp.4"),
    (r"attn_(\d+)/to_out", r"layers.\1.0.to_out.0"),
    (r"attn_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net"),
)
