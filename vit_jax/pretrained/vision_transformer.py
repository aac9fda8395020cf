"""The vision transformer that timm, Hugging Face, Meta, OpenAI and big_vision publish trained weights for.

Sources: Dosovitskiy et al. 2020, arXiv:2010.11929, and the papers that `architectures.py` names. Reference for the
arithmetic: vision_transformer.py, deit.py and eva.py of timm 1.0.31.
Differs from timm: positions belong to patches alone, as those of the class token and registers are added into these
tokens; the gate and value of SwiGLU are one linear layer; images may have any size that patches divide.
Axes: b batch, n tokens, d dim, h heads, i query, j key, k classes.
"""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_images
from vit_jax.layers import Dense, LayerNorm, LayerScale, ToHeads, append, attend, prepend, run_blocks
from vit_jax.layers.check import pair
from vit_jax.layers.drop_path import DropPath, Rates
from vit_jax.layers.shapes import ExtraTokens, Images, Output, Patches, Tokens
from vit_jax.pretrained.arguments import Arguments
from vit_jax.pretrained.layouts import timm_layout
from vit_jax.pretrained.parts import ACTIVATIONS, AttentionPool, Norm, PatchEmbed, RMSNorm
from vit_jax.pretrained.positions import resample_positions, with_positions
from vit_jax.pretrained.rotary import Rotary


class Attention(nn.Module):
    """Multi-head self-attention, without norm and residual: tokens (b, n, d) to the same shape."""

    heads: int
    qkv_bias: str  # "qkv", "qv" or "": which of queries, keys and values have a bias
    proj_bias: bool
    norm: Norm
    qk_norm: bool  # of every query and key
    out_norm: bool  # of the output, before the last linear layer
    rotary: Rotary | None
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, coordinates: np.ndarray | None, *, train: bool = False) -> Tokens:
        dim = x.shape[-1]
        dim_head = dim // self.heads
        q, k, v = ToHeads(3, self.heads, dim_head, use_bias=self.qkv_bias == "qkv", name="qkv")(x)
        if self.qkv_bias == "qv":
            bias = lambda name: self.param(name, nn.initializers.zeros, (dim,)).reshape(1, self.heads, 1, dim_head)
            q, v = q + bias("q_bias"), v + bias("v_bias")
        if self.qk_norm:
            q, k = self.norm(name="q_norm")(q), self.norm(name="k_norm")(k)
        if self.rotary is not None:
            frequencies = self.rotary.frequencies(dim_head)
            if self.rotary.form == "mixed":
                learned = self.param("freqs", self.rotary.init_frequencies, (2, self.heads, dim_head // 2))
                frequencies = learned.astype(jnp.float32)[:, :, None]
            angles = (coordinates * frequencies).sum(axis=0)  # not a matrix product, which a TPU rounds to bfloat16
            q, k = self.rotary.rotate(q, angles), self.rotary.rotate(k, angles)
        # softmax(q kᵀ / sqrt(dim_head)) v, heads concatenated; its map is for vit_jax.capture.attention
        out = attend(self, q, k, v)
        if self.out_norm:
            out = self.norm(name="norm")(out)
        out = Dense(dim, use_bias=self.proj_bias, name="proj")(out)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class FeedForward(nn.Module):
    """Two linear layers around an activation, without norm and residual: (..., d) to the same shape."""

    hidden_dim: int
    activation: str
    use_bias: bool = True
    norm: Norm | None = None  # after the activation
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"], *, train: bool = False) -> Float[Array, "*batch d"]:
        width = self.hidden_dim * (2 if self.activation == "swiglu" else 1)  # SwiGLU: gate, then value
        hidden = ACTIVATIONS[self.activation](Dense(width, use_bias=self.use_bias, name="fc1")(x))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        if self.norm is not None:
            hidden = self.norm(name="norm")(hidden)
        out = Dense(x.shape[-1], use_bias=self.use_bias, name="fc2")(hidden)
        return nn.Dropout(self.dropout)(out, deterministic=not train)


class Block(nn.Module):
    """Attention and feed-forward with residual connections: tokens (b, n, d) to the same shape."""

    attention: Callable[..., nn.Module]
    feed_forward: Callable[..., nn.Module]
    norm: Norm
    post_norm: bool
    layer_scale: tuple[float | None, float | None]

    @nn.compact
    def __call__(
        self, x: Tokens, drop_path: DropPath, coordinates: np.ndarray | None, *, train: bool = False
    ) -> Tokens:
        def branch(x, number, part):
            norm, init = self.norm(name=f"norm{number}"), self.layer_scale[number - 1]
            y = norm(part(x)) if self.post_norm else part(norm(x))
            if init is not None:
                y = LayerScale(init, name=f"ls{number}")(y)
            return drop_path(y)

        attention, feed_forward = self.attention(name="attn"), self.feed_forward(name="mlp")
        x = x + branch(x, 1, lambda x: attention(x, coordinates, train=train))
        return x + branch(x, 2, lambda x: feed_forward(x, train=train))


class Transformer(nn.Module):
    """`depth` blocks, made by `block(name=...)`: tokens (b, n, d) to the same shape."""

    depth: int
    block: Callable[..., nn.Module]
    drop_path: Rates

    @nn.compact
    def __call__(self, x: Tokens, coordinates: np.ndarray | None, *, train: bool = False) -> Tokens:
        def block(i, x, drop_path):
            return self.block(name=f"block_{i}")(x, drop_path, coordinates, train=train)

        return run_blocks(
            self, self.depth, block, x, rate=self.drop_path, train=train
        )  # for each i: x = block(i, x, ...)


class VisionTransformer(Arguments):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d) after the last norm.

    The tokens are the class token, registers and patches. The positions of an image of another size than `image_size`
    are resampled.

    The arguments, for all that published weights differ in, are those of its base class.
    """

    def setup(self):
        norm = functools.partial(RMSNorm if self.rms_norm else LayerNorm, self.epsilon)
        attention = functools.partial(
            Attention,
            heads=self.heads,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            norm=norm,
            qk_norm=self.qk_norm,
            out_norm=self.attention_norm,
            rotary=self.rotary,
            dropout=self.dropout,
        )
        feed_forward = functools.partial(
            FeedForward,
            hidden_dim=self.mlp_dim,
            activation=self.activation,
            use_bias=self.proj_bias,
            norm=norm if self.mlp_norm else None,
            dropout=self.dropout,
        )
        block = functools.partial(Block, attention, feed_forward, norm, self.post_norm, self.layer_scale)
        init = nn.initializers.truncated_normal(0.02)
        token = lambda name, count: self.param(name, init, (1, count, self.dim)) if count else None
        patch = pair("patch_size", self.patch_size)
        self.to_patch_embedding = PatchEmbed(patch, self.dim, not self.pre_norm, norm if self.patch_norm else None)
        self.cls_token = token("cls_token", int(self.class_token))
        self.distillation_token = token("distillation_token", int(self.distilled))
        self.reg_token = token("reg_token", self.registers)
        self.pos_embedding = token("pos_embedding", math.prod(self.grid) if self.positions else 0)
        self.embedding_dropout = nn.Dropout(self.dropout)
        if self.pre_norm:
            self.norm_pre = norm()
        self.transformer = Transformer(self.depth, block, self.drop_path)
        if self.last_norm == "tokens":
            self.norm = norm()
        if self.pool == "map":
            mlp = functools.partial(FeedForward, self.pool_mlp_dim or self.mlp_dim, self.activation)
            self.attn_pool = AttentionPool(self.pool_heads or self.heads, mlp, norm)
        if self.last_norm == "pooled":
            self.fc_norm = norm()
        if self.num_classes:
            self.classifier = Dense(self.num_classes)
        if self.num_classes and self.distilled:
            self.classifier_dist = Dense(self.num_classes)

    def __call__(self, images: Images, *, train: bool = False) -> Output:
        tokens = self.encode(images, train=train)
        if self.num_classes:
            return self.head(tokens)
        if self.is_initializing():
            self.pooled(tokens)  # published weights have the parameters of pooling without classes, too
        return tokens

    def encode(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens after the last norm, in the order and with the arguments of `embed`."""
        tokens = self.embed(images, extra_tokens, patches=patches, train=train)
        return self.transform(tokens, grid=self.grid_of(images.shape[1:3]), train=train)

    def embed(
        self,
        images: Images,
        extra_tokens: ExtraTokens | None = None,
        *,
        patches: Patches | None = None,
        train: bool = False,
    ) -> Tokens:
        """Tokens before the blocks: class token, registers, patches with positions, then `extra_tokens` without.

        `extra_tokens` (e, d) are the same for every image. `patches` (b, p, d) replace the embedded patches of `images`
        one for one, as objectives need that put a mask token in place of some.
        """
        check_images(images, self.channels)
        x = self.to_patch_embedding(images) if patches is None else patches
        if self.pos_embedding is not None:
            grid = self.grid_of(images.shape[1:3])
            x = x + resample_positions(self.pos_embedding, self.grid, grid, antialias=self.antialias)
        for tokens in (self.reg_token, self.distillation_token, self.cls_token):
            x = x if tokens is None else prepend(tokens, x)
        if extra_tokens is not None:
            x = append(x, extra_tokens)
        x = self.embedding_dropout(x, deterministic=not train)
        return self.norm_pre(x) if self.pre_norm else x

    def transform(self, tokens: Tokens, *, grid: tuple[int, int] | None = None, train: bool = False) -> Tokens:
        """Apply blocks and last norm to the tokens of `embed` for an image of `grid` patches, by default `image_size`.

        With rotary positions all patches of the image are needed, without them any number.
        """
        coordinates = None
        if self.rotary is not None:
            rows, columns = grid or self.grid
            after = tokens.shape[1] - self.tokens_before - rows * columns
            if after < 0:
                raise ValueError(f"{tokens.shape[1]} tokens: rotary positions need all {rows} x {columns} patches")
            coordinates = self.rotary.coordinates((rows, columns), self.tokens_before, after)
        x = self.transformer(tokens, coordinates, train=train)
        return self.norm(x) if self.last_norm == "tokens" else x

    def pooled(self, tokens: Tokens) -> Float[Array, "b d"]:
        """The input of the linear head, from the tokens of `encode` without the extra ones.

        With two heads it is the mean of their inputs.
        """
        if self.distilled:
            x = tokens[:, :2].mean(axis=1)
        elif self.pool == "map":
            x = self.attn_pool(tokens)
        else:
            x = tokens[:, 0] if self.pool == "cls" else tokens[:, self.tokens_before :].mean(axis=1)
        return self.fc_norm(x) if self.last_norm == "pooled" else x

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits from the tokens of `encode`, after the extra ones are cut off."""
        if self.distilled:
            return (self.classifier(tokens[:, 0]) + self.classifier_dist(tokens[:, 1])) / 2
        return self.classifier(self.pooled(tokens))

    # Flax paths to timm's names, in canonical form; `layout` says how a file differs from it.
    torch_rules = (
        ("to_patch_embedding", "patch_embed"),
        ("pos_embedding", "pos_embed"),
        ("distillation_token", "dist_token"),
        (r"transformer/block_(\d+)", r"blocks.\1"),
        ("classifier", "head"),
        ("classifier_dist", "head_dist"),
    )

    @property
    def torch_layout(self):
        """Between state dicts of timm and the canonical form."""
        return timm_layout(self.layout)

    @property
    def timm_heads(self) -> tuple[str, ...]:
        return ("head", "head_dist") if self.distilled else ("head",)

    @property
    def timm_pool(self) -> str:
        return {"cls": "token", "mean": "avg", "map": "map"}[self.pool]

    @property
    def num_features(self) -> int:
        return self.dim

    def adapted(self, state, published, notify):
        """The state dict with positions for this network's grid of patches."""
        return with_positions(state, published.grid, self.grid, notify, antialias=self.antialias)
