"""WWT: tokens represent what is in an image, masks represent where; every block updates both.

Source: Yoshihashi et al. 2026, arXiv:2605.12021 (What-Where Transformer). Upstream: vit_pytorch/wwt.py.
Differs from upstream: `num_classes=0` gives `WWTFeatures`; the loss of slots projects them on directions that are
random only when `train` (upstream: always); images may be smaller than `image_size`; slots, registers and positions
have an initial std of 0.02 (upstream: 1).
Differs from the paper: a hierarchy of slots, registers, gates, and losses of slots are upstream's additions; the
presets have the sizes of upstream's example.
Axes: b batch, n patches, t tokens, s slots, m either, g scores of a head, f masks of a head, d dim, h heads, k classes.
"""

import functools
import itertools
import math
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import PATCH_EMBED_RULES
from vit_jax.layers import Dense, FeedForward, LayerNorm, PatchEmbed, PointwiseConv, softmax, sow_block
from vit_jax.layers.check import at_least, expect, pair, patch_grid
from vit_jax.layers.drop_path import DropPath, drop_paths
from vit_jax.layers.shapes import Images
from vit_jax.layers.sigreg import random_directions, sigreg_loss
from vit_jax.layers.tokens import add_positions, prepend

Norm = functools.partial(LayerNorm, use_bias=False)
Tokens, Slots, Mask = Float[Array, "b t d"], Float[Array, "b s d"], Float[Array, "b f h t s"]
Levels, Masks, Pairs = Sequence[Float[Array, "b _ d"]], Sequence[Float[Array, "b ... _ _"]], Sequence[tuple[int, int]]
WWTLogits = namedtuple("WWTLogits", ["slot_logits", "token_logits"])
WWTFeatures = namedtuple("WWTFeatures", ["slots", "tokens", "masks"])


class AutoencodingHead(nn.Module):
    """Carry the features of a level to other levels by the masks between them, then apply `decoder`.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        decoder: a module for the features that arrive, or None.
        pathways: ascending or descending levels, for one output each; by default from each level to the patches.
        patch_pathway_id: level of the patches, which are returned as a map (b, h, w, d); other levels as (b, n, d).
        channel_first: return the map as (b, d, h, w).

    Raises:
        ValueError: if a pathway is not monotonic, or has a step between levels that do not interact.
    """

    image_size: int | Sequence[int]
    patch_size: int | Sequence[int]
    decoder: nn.Module | None = None
    pathways: Sequence[Sequence[int]] | None = None
    patch_pathway_id: int = 0
    channel_first: bool = False

    def __post_init__(self):
        check_arguments(self)
        for pathway in self.pathways or ():
            rising = sorted(set(pathway))
            straight = len(rising) > 0 and list(pathway) in (rising, rising[::-1])
            expect(self, "pathways", straight, "ascending or descending levels in each")
        super().__post_init__()

    @nn.compact
    def __call__(self, hierarchy_features: Levels, masks: Masks, interactions: Pairs, *, train: bool = False) -> Any:
        steps, maps, patches = {}, [], self.patch_pathway_id
        for (i, j), mask in zip(interactions, masks, strict=True):
            mask = mask.mean(axis=tuple(range(1, mask.ndim - 2)))
            steps |= {(j, i): mask, (i, j): mask.swapaxes(1, 2)}
        pathways = self.pathways or [(j, i) for i, j in interactions if i == patches]
        if not pathways:
            raise ValueError(f"interactions={interactions!r}: expected a pair with level {patches}, or pathways")
        for pathway in pathways:
            features = hierarchy_features[pathway[0]]
            for step in itertools.pairwise(pathway):
                if step not in steps:
                    raise ValueError(f"pathways={pathways!r}: expected only steps of interactions={interactions!r}")
                features = jnp.einsum("bts,bsd->btd", softmax(steps[step]), features)
            if pathway[-1] == patches:
                rows, columns = patch_grid(self.image_size, self.patch_size)
                if features.shape[1] != rows * columns:
                    expected = f"{rows * columns} patches, those of image_size={self.image_size!r}"
                    raise ValueError(f"hierarchy_features of {features.shape[1]} patches: expected {expected}")
                layout = "b d h w" if self.channel_first else "b h w d"
                features = rearrange(features, f"b (h w) d -> {layout}", h=rows)
            maps.append(self.decoder(features, train=train) if self.decoder else features)
        return maps[0] if len(maps) == 1 else tuple(maps)


class MutualAttention(nn.Module):
    """Attention between tokens and slots, in both directions, with the same scores, to which the mask is added.

    It also returns the next mask. With `token_softmax_over_slots` either direction has its own scores (g = 2), both
    normalised over slots; with one mask for both (f = 1), a projection of the scores makes the next one.
    """

    heads: int
    dim_head: int
    mlp_dim: int
    dropout: float
    l1norm_after_tokens_softmax: bool
    token_softmax_over_slots: bool
    gate_attention: bool

    @nn.compact
    def __call__(self, tokens: Tokens, slots: Slots, mask: Mask, *, train: bool = False) -> tuple[Tokens, Slots, Mask]:
        heads, inner_dim, groups = self.heads, self.heads * self.dim_head, 2 if self.token_softmax_over_slots else 1
        split = lambda x: rearrange(x, "b m (p h d) -> p b h m d", h=heads, d=self.dim_head)
        q_v = split(Dense((groups + 1) * inner_dim, use_bias=False, name="to_q_v_tokens")(tokens))
        k, v_slots = split(Dense(2 * inner_dim, use_bias=False, name="to_k_v_slots")(slots))
        scores = mask + jnp.einsum("gbhtd,bhsd->bghts", q_v[:-1], k) * self.dim_head**-0.5

        attn_slots = softmax(scores[:, 0])  # normalised over slots, which compete for each token
        if self.l1norm_after_tokens_softmax:
            attn_slots = attn_slots / jnp.maximum(attn_slots.sum(axis=-2, keepdims=True), 1e-8)
        attn_tokens = softmax(scores[:, 1]) if groups == 2 else softmax(scores[:, 0].swapaxes(-1, -2)).swapaxes(-1, -2)
        self.sow("intermediates", "attn", attn_tokens)
        self.sow("intermediates", "attn", attn_slots)

        def leave(name, out, source):
            if self.gate_attention:
                out = out * nn.sigmoid(Dense(heads, use_bias=False, name=f"{name}_gate")(source))[..., None]
            out = Dense(source.shape[-1], name=f"to_out_{name}")(rearrange(out, "b m h d -> b m (h d)"))
            return nn.Dropout(self.dropout)(out, deterministic=not train)

        tokens_out = leave("tokens", jnp.einsum("bhts,bhsd->bthd", attn_tokens, v_slots), tokens)
        slots_out = leave("slots", jnp.einsum("bhts,bhtd->bshd", attn_slots, q_v[-1]), slots)

        if mask.shape[1] < groups:
            scores = PointwiseConv(heads, name="mask_project")(rearrange(scores, "b g h t s -> b t s (g h)"))
            scores = rearrange(scores, "b t s h -> b 1 h t s")
        where = rearrange(scores, "b f h t s -> b t (f h s)")
        mlp_mask = FeedForward(self.mlp_dim, self.dropout, Norm, features=where.shape[-1], name="mlp_mask")
        next_mask = mlp_mask(jnp.concatenate([where, tokens + tokens_out], axis=-1), train=train)
        return tokens_out, slots_out, rearrange(next_mask, "b t (f h s) -> b f h t s", f=mask.shape[1], h=heads)


class WWT(nn.Module):
    """Classifier: image (b, H, W, c) to logits (b, k); with `num_classes=0` or `return_embeddings` to `WWTFeatures`.

    With `task_heads` or a loss of slots, a call returns a tuple: the logits, the output of each head, and the loss.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        num_classes: number of classes; 0 for features.
        dim: width of a token.
        depth: number of blocks.
        num_slots: slots of each level from 1 on, one number or a descending sequence; level 0 are the patches.
        sigreg_slots: add a loss of the slots of a level, one value per level or one for all.
        interactions: pairs (lower, higher) of levels that attend to each other; by default 0 and each other level.
        heads: attention heads in each block.
        dim_head: width of a head.
        mlp_dim: hidden width of each feed-forward; by default 4 * `dim`.
        channels: channels of an image.
        dropout: rate within the blocks.
        return_tokens: return `WWTLogits`, with logits from the patches too.
        l1norm_after_tokens_softmax: normalise the weights of each slot over tokens.
        token_softmax_over_slots: use separate scores for tokens, also normalised over slots.
        project_mask_groups: have one mask for both directions with `token_softmax_over_slots`.
        gate_attention: gate the output of each head.
        num_register_tokens: register tokens beside the patches.
        num_register_slots: register tokens beside the slots, one value per level or one for all.
        task_heads: a module, or several, called like `AutoencodingHead`.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or for invalid `num_slots` or `interactions`.
    """

    image_size: int | Sequence[int]
    patch_size: int | Sequence[int]
    num_classes: int
    dim: int
    depth: int
    num_slots: int | Sequence[int]
    sigreg_slots: bool | Sequence[bool] | None = None
    interactions: Sequence[Sequence[int]] | None = None
    heads: int = 8
    dim_head: int = 64
    mlp_dim: int | None = None
    channels: int = 3
    dropout: float = 0.0
    return_tokens: bool = False
    l1norm_after_tokens_softmax: bool = False
    token_softmax_over_slots: bool = False
    project_mask_groups: bool = False
    gate_attention: bool = True
    num_register_tokens: int = 0
    num_register_slots: int | Sequence[int] = 0
    task_heads: nn.Module | Sequence[nn.Module] = ()
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        at_least(self, num_slots=1, num_register_slots=0)
        slots, *_ = map(self.per_level, ("num_slots", "num_register_slots", "sigreg_slots"))
        falling = len(slots) > 0 and list(slots) == sorted(set(slots), reverse=True)
        expect(self, "num_slots", falling, "one or more numbers, in descending order")
        pairs = self.pairs()
        distinct = len(set(pairs)) == len(pairs) and all(0 <= i < j <= len(slots) for i, j in pairs)
        expect(self, "interactions", distinct, f"distinct pairs (lower, higher) of levels 0 to {len(slots)}")
        super().__post_init__()

    def per_level(self, name: str) -> tuple:
        """The argument `name` as one value for each level of slots; a single value applies to all."""
        value, levels = getattr(self, name), len(self.num_slots) if isinstance(self.num_slots, Sequence) else 1
        values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
        expect(self, name, len(values) == levels, f"one value, or {levels}, as many as num_slots={self.num_slots!r}")
        return values

    def pairs(self) -> Pairs:
        """Pairs of levels that interact."""
        levels = range(1, 1 + len(self.per_level("num_slots")))
        return tuple((0, i) for i in levels) if self.interactions is None else tuple(map(tuple, self.interactions))

    def block(self, layer: int, levels: Levels, masks: Masks, drop_path: DropPath, *, train: bool) -> tuple[list, list]:
        """Apply the attention of each interaction to the same norms, add the outputs, then apply the feed-forwards."""
        mlp_dim, x, next_masks = self.mlp_dim or 4 * self.dim, list(levels), []
        flags = (self.l1norm_after_tokens_softmax, self.token_softmax_over_slots, self.gate_attention)
        normed = [Norm(name=f"layer_{layer}_norm_{i}")(level) for i, level in enumerate(levels)]
        for a, ((i, j), mask) in enumerate(zip(self.pairs(), masks, strict=True)):
            sizes, name = (self.heads, self.dim_head, mlp_dim, self.dropout), f"layer_{layer}_attn_{a}"
            outs = MutualAttention(*sizes, *flags, name=name)(normed[i], normed[j], mask, train=train)
            x[i], x[j] = x[i] + drop_path(outs[0]), x[j] + drop_path(outs[1])
            next_masks.append(outs[2])
        mlp = lambda i: FeedForward(mlp_dim, self.dropout, Norm, name=f"layer_{layer}_mlp_{i}")
        return [level + drop_path(mlp(i)(level, train=train)) for i, level in enumerate(x)], next_masks

    @nn.compact
    def __call__(self, images: Images, *, return_embeddings: bool = False, train: bool = False) -> Any:
        check_images(images, self.channels, self.image_size)
        registers = (self.num_register_tokens, *self.per_level("num_register_slots"))
        learned = lambda name, count: self.param(name, nn.initializers.normal(0.02), (count, self.dim))
        embed = PatchEmbed(pair("patch_size", self.patch_size), self.dim, Norm, name="to_patch_embedding")
        positions = learned("pos_embedding", math.prod(patch_grid(self.image_size, self.patch_size)))
        x = [add_positions(embed(images), positions)]
        x += [prepend(learned(f"slots_{i}", n), x[0][:, :0]) for i, n in enumerate(self.per_level("num_slots"))]
        for i, count in enumerate(registers):
            if count:
                name = f"register_slots_{i - 1}" if i else "register_tokens"
                x[i] = prepend(learned(name, count), x[i])
        pairs, groups = self.pairs(), 2 if self.token_softmax_over_slots and not self.project_mask_groups else 1
        shape = lambda i, j: (images.shape[0], groups, self.heads, x[i].shape[1], x[j].shape[1])
        masks = [jnp.zeros(shape(i, j), x[0].dtype) for i, j in pairs]
        for layer, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            x, masks = self.block(layer, x, masks, drop_path, train=train)
            sow_block(self, tuple(x))

        tokens, *slots = levels = tuple(level[:, count:] for level, count in zip(x, registers, strict=True))
        group = 0 if groups == 1 else slice(None)
        masks = [mask[:, group, :, registers[i] :, registers[j] :] for mask, (i, j) in zip(masks, pairs, strict=True)]
        if not self.num_classes or (return_embeddings and not self.is_initializing()):  # upstream always has its head
            return WWTFeatures(tuple(slots), tokens if self.return_tokens else None, tuple(masks))

        def classify(name, levels):
            norm, fc = Norm(name=f"{name}_norm"), Dense(self.num_classes, name=f"{name}_fc")
            return sum(fc(norm(level)).mean(axis=1) for level in levels) / len(levels)

        logits = classify("mlp_head", slots)
        if self.return_tokens:
            logits = WWTLogits(logits, classify("mlp_head_tokens", [tokens]))
        heads = (self.task_heads,) if isinstance(self.task_heads, nn.Module) else self.task_heads
        outputs = [logits, *(head(levels, masks, pairs, train=train) for head in heads)]
        if chosen := list(itertools.compress(slots, self.per_level("sigreg_slots"))):
            draw = lambda: random_directions(self.make_rng("dropout") if train else jax.random.key(0), self.dim)
            outputs.append(sum(sigreg_loss(level, draw()) for level in chosen))
        return tuple(outputs) if len(outputs) > 1 else logits

    torch_rules = (
        *PATCH_EMBED_RULES,
        (r"((?:register_)?slots)_(\d+)", r"\1.\2"),
        (r"layer_(\d+)_(norm|attn|mlp)_(\d+)", r"layers.\1.\2s.\3"),
        (r"(to_out_\w+|\w+_gate)", r"\1.0"),
        (r"(mlp_head\w*)_norm", r"\1.0"),
        (r"(mlp_head\w*)_fc", r"\1.1"),
        *dict(norm="0", fc1="1", fc2="4").items(),
        (r"task_heads_(\d+)", r"task_heads.\1"),
        ("task_heads", "task_heads.0"),
    )

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores empty registers where there are none."""
        names = ["register_tokens", *(f"register_slots.{i}" for i in range(len(self.per_level("num_slots"))))]
        counts = (self.num_register_tokens, *self.per_level("num_register_slots"))
        return {name: np.zeros((0, self.dim), np.float32) for name, n in zip(names, counts, strict=True) if not n}


PRESETS = {
    "tiny": dict(image_size=32, patch_size=4, dim=64, depth=2, num_slots=(16, 8), heads=4, dim_head=16, mlp_dim=128),
    "upstream": dict(image_size=256, patch_size=32, dim=256, depth=2, num_slots=(64, 32, 16), heads=4, mlp_dim=512),
}
