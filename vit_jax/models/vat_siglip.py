"""VAT on SigLIP: each layer of action tokens attends to one layer of SigLIP's vision tower.

`SigLIPVAT` derives from the frame `ActionTransformer`.

Source of the tower: Zhai et al. 2023, arXiv:2303.15343. Upstream: vit_pytorch/vat_siglip.py.
Differs from upstream: another number of views than `num_views` raises (upstream: repeats a single view);
SigLIP accepts non-square images and patches, any number of `channels`, and images smaller than `image_size`; its
positions have an initial std of 0.02 (upstream: 1); `siglip_weights` renames weights that the caller has
(upstream: `load_siglip` downloads them); otherwise as for VAT.
Differs from the paper: only the vision tower, without its attention pooling, and without text.
Axes: b batch, v views, f frames, n tokens, m tokens of the context, d dim, h heads, l layers, k actions, a numbers of
an action, e extra.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.frames import ActionTransformer, Trajectory
from vit_jax.frames.actions import Actions, Extra, Video
from vit_jax.frames.arguments import check_arguments, check_images
from vit_jax.frames.rules import attention_rules, sequential_rules
from vit_jax.frames.trajectory import with_hiddens
from vit_jax.layers import Dense, FeedForward, LayerNorm, PatchProjection, ToHeads, add_positions, attend
from vit_jax.layers.check import expect, pair, patch_grid
from vit_jax.layers.shapes import Images, Tokens
from vit_jax.models import vat


def gelu_tanh(x: Array) -> Array:
    """Tanh approximation of GELU, computed in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


class Attention(nn.Module):
    """Attention of `x` over itself, or over a context with its own norm, with biases.

    Over a context, `x` gates the output of each head.
    """

    heads: int
    dim_head: int
    dropout: float = 0.0
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Tokens, context: Float[Array, "b m e"] | None = None, *, train: bool = False) -> Tokens:
        x = LayerNorm(self.epsilon, name="norm")(x)
        source = x if context is None else LayerNorm(self.epsilon, name="norm_context")(context)
        (q,) = ToHeads(1, self.heads, self.dim_head, use_bias=True, name="to_q")(x)
        k, v = ToHeads(2, self.heads, self.dim_head, use_bias=True, name="to_kv")(source)
        out = attend(self, q, k, v)
        if context is not None:
            out = vat.gate(out, Dense(self.heads, name="to_out_gates")(x))
        return nn.Dropout(self.dropout)(Dense(x.shape[-1], name="to_out")(out), deterministic=not train)


class SigLIP(nn.Module):
    """SigLIP's vision tower: image (b, H, W, c) to tokens (b, n, d).

    An image may be smaller than `image_size`; it then gets the first positions. With
    `return_hiddens` it returns a pair: the tokens, and the inputs of all blocks (l, b, n, d).

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        norm_eps: epsilon of the norms.
        channels: channels of an image.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `heads` is above `dim`.
    """

    image_size: int | Sequence[int] = 224
    patch_size: int | Sequence[int] = 14
    dim: int = 1152
    depth: int = 27
    heads: int = 16
    mlp_dim: int = 4304
    norm_eps: float = 1e-6
    channels: int = 3
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        expect(self, "heads", self.heads <= self.dim, f"at most dim={self.dim}")
        super().__post_init__()

    @nn.compact
    def trajectory(self, images: Images, *, train: bool = False) -> list[Tokens]:
        """The input of each block, then the output tokens."""
        check_images(images, self.channels, self.image_size)
        norm = functools.partial(LayerNorm, self.norm_eps)
        attention = functools.partial(Attention, self.heads, self.dim // self.heads, 0.0, self.norm_eps)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, norm=norm, activation=gelu_tanh)
        shape = (math.prod(patch_grid(self.image_size, self.patch_size)), self.dim)
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape)
        x = PatchProjection(pair("patch_size", self.patch_size), self.dim, name="to_patch_embed")(images)
        x = add_positions(x, positions)
        sizes = self.depth, attention, feed_forward, norm
        return Trajectory(*sizes, drop_path=self.drop_path, name="transformer")(x, train=train)

    def __call__(
        self, images: Images, *, return_hiddens: bool = False, train: bool = False
    ) -> Tokens | tuple[Tokens, Float[Array, "l b n d"]]:
        tokens = self.trajectory(images, train=train)
        return with_hiddens(tokens) if return_hiddens else tokens[-1]

    torch_rules = (
        ("to_patch_embed/proj", "to_patch_embed.1"),
        ("transformer/norm", "norm"),
        *attention_rules(r"transformer/attn_(\d+)", r"layers.\1.0"),
        *sequential_rules(r"transformer/ff_(\d+)", r"layers.\1.1", norm=0, fc1=1, fc2=3),
    )


class SigLIPVAT(ActionTransformer, kw_only=True):
    """Actions (b, k, a) from images (b, v, h, w, c), or videos (b, v, f, h, w, c) of `time_seq_len` frames.

    The model is `VAT` with a `SigLIP` as its ViT, whose arguments begin with siglip_.

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
        vit_layer_indices: for each layer, the layer of the tower to read: i for the input of block i, the tower's
            depth for its output. By default the first ones in order.
        num_advantage_bins: number of advantages that an extra token can condition on.
        num_views: number of views, each with a learned embedding if there are several.
        channels: channels of an image.
        siglip_image_size: pixels, or (height, width).
        siglip_patch_size: pixels, or (height, width).
        siglip_dim: width of a token of the tower.
        siglip_depth: number of blocks of the tower.
        siglip_heads: attention heads in each block of the tower.
        siglip_mlp_dim: hidden width of each feed-forward of the tower.
        siglip_norm_eps: epsilon of the norms of the tower.
        drop_path: rate of stochastic depth in the last layer; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `vit_layer_indices` does not have a layer of the tower for each of `depth` layers, an argument
            of the tower is invalid, or an input does not fit.
    """

    dim: int = 512
    depth: int = 27
    heads: int = 8
    dim_head: int = 64
    dim_action: int = 32
    mlp_dim: int = 2048
    num_views: int | None = 1
    action_chunk_len: int = 50
    channels: int = 3
    siglip_image_size: int | Sequence[int] = 224
    siglip_patch_size: int | Sequence[int] = 14
    siglip_dim: int = 1152
    siglip_depth: int = 27
    siglip_heads: int = 16
    siglip_mlp_dim: int = 4304
    siglip_norm_eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        try:
            self.make_vit(parent=None)
        except ValueError as error:
            raise ValueError(f"siglip_{error}") from None
        self.layers_read("vit_layer_indices", self.siglip_depth)

    def make_vit(self, **module: Any) -> SigLIP:
        """Make the vision tower."""
        names = ("image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "norm_eps")
        return SigLIP(**{name: getattr(self, f"siglip_{name}") for name in names}, channels=self.channels, **module)

    def make_attention(self, heads: int, dim_head: int) -> Callable[..., nn.Module]:
        return functools.partial(Attention, heads, dim_head, self.dropout)

    def make_feed_forward(self) -> Callable[..., nn.Module]:
        norm = functools.partial(LayerNorm, 1e-6)
        return functools.partial(FeedForward, self.mlp_dim, norm=norm, activation=gelu_tanh)

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
        """Predict actions. The arguments are those of `VAT.__call__`."""
        vit = self.make_vit(name="vit")
        contexts = {"cross_attn": self.look(vit, video_or_image, "view", freeze=freeze_vit, train=train)}
        given = dict(extra=extra, tasks=tasks, advantages=advantages, actions=actions, return_hiddens=return_hiddens)
        return self.act(contexts, **given, train=train)

    torch_rules = (
        *SigLIP.torch_rules,
        *ActionTransformer.torch_rules,
        *sequential_rules(r"mlp_(\d+)", r"layers.\1.3", norm=0, fc1=1, fc2=3),
    )


def siglip_weights(weights: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Rename the weights of a published SigLIP to the keys that `from_torch` takes.

    Args:
        weights: arrays under the keys of Hugging Face's SigLIP; other keys, such as those of the text tower, are
            ignored.
        prefix: put before every new key; "vit." for the keys of `SigLIPVAT`.

    Returns:
        The weights of the vision tower.

    Raises:
        ValueError: if there is no vision tower in `weights`.
    """
    ending = "embeddings.patch_embedding.weight"
    roots = sorted((key.removesuffix(ending) for key in weights if key.endswith(ending)), key=len)
    if not roots:
        raise ValueError(f"weights: expected a key that ends in {ending!r}, as SigLIP's vision tower has one")
    tower = {key.removeprefix(roots[0]): np.asarray(weights[key]) for key in weights if key.startswith(roots[0])}
    depth = sum(key.endswith("layer_norm1.weight") for key in tower)

    renamed = {
        "to_patch_embed.1.weight": rearrange(tower[ending], "d c h w -> d (h w c)"),
        "to_patch_embed.1.bias": tower["embeddings.patch_embedding.bias"],
        "pos_embed": tower["embeddings.position_embedding.weight"],
    }
    modules = {"norm": ("post_layernorm",)}
    for i in range(depth):
        names = {"0.norm": "layer_norm1", "0.to_q": "self_attn.q_proj", "0.to_out.0": "self_attn.out_proj"}
        names |= {"1.0": "layer_norm2", "1.1": "mlp.fc1", "1.3": "mlp.fc2"}
        modules |= {f"layers.{i}.{ours}": (f"encoder.layers.{i}.{theirs}",) for ours, theirs in names.items()}
        modules[f"layers.{i}.0.to_kv"] = tuple(f"encoder.layers.{i}.self_attn.{name}_proj" for name in "kv")
    for ours, theirs in modules.items():
        for leaf in ("weight", "bias"):
            renamed[f"{ours}.{leaf}"] = np.concatenate([tower[f"{name}.{leaf}"] for name in theirs])
    return {f"{prefix}{key}": value for key, value in renamed.items()}


_TOWER = dict(image_size=224, patch_size=14, dim=1152, depth=27, heads=16, mlp_dim=4304)
PRESETS = {
    "so400m14": _TOWER,
    "upstream": dict(
        depth=4, num_tasks=4, dim_extra_token=32, time_seq_len=2, num_views=2, vit_layer_indices=(0, 1, 26, 27)
    ),
}
