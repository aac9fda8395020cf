"""Wrapper that applies an image model to every frame of a video; embeddings may get temporal positions and MOSS.

Upstream: vit_pytorch/accept_video_wrapper.py (no paper; MOSS: Kim, Kwon et al. 2026, arXiv:2604.20760).
Differs from upstream: in place of an `Extractor`, `forward_function="encode"` gives the tokens of a model that has the
method, and `num_classes=0` the features of any model; outputs in dicts are numbered in the order of their sorted keys;
an output without a leading axis of frames is returned as it is (upstream: only a single number); embeddings with
channels first are projected over channels (upstream: over the last axis); MOSS also takes maps (b, t, h, w, d);
`eval_with_no_grad` affects one call (upstream: the model stays in evaluation).
Axes: b batch, t time, n tokens of a frame, h rows, w columns, d dim.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.frames.arguments import check_arguments, check_video
from vit_jax.layers import MOSS, Dense
from vit_jax.layers.check import at_least, expect, pair, patch_grid
from vit_jax.layers.shapes import Videos

Embedding = Float[Array, "b t *n d"]


class AcceptVideoWrapper(nn.Module):
    """Video (b, t, H, W, c) to the outputs of `image_net` for its frames, with axes (b, t) in place of b.

    One output, the embedding, may be changed: it is projected to `proj_embed_to_dim` features, gets
    temporal positions with `add_time_pos_emb`, and goes through `moss`. MOSS reads the last tokens
    of each frame, those of the patches, as a grid; it needs to know `patch_size`.

    Args:
        image_net: a module made by `create_model`.
        forward_function: name of the method of `image_net` to call; "forward" for its `__call__`.
        add_time_pos_emb: add learned temporal positions to the embedding; needs `dim_emb` and
            `time_seq_len`.
        dim_emb: features of the embedding.
        time_seq_len: largest number of frames, for the temporal positions.
        embed_is_channel_first: the features are the first axis of the embedding instead of the last
            one. Maps of this library are channels-last.
        output_pos_add_pos_emb: index of the embedding among the outputs.
        proj_embed_to_dim: features to project the embedding to; needs `dim_emb`.
        patch_size: pixels, or (height, width); by default that of `image_net`.
        moss: a module made by `create_model("vivit_with_moss:MOSS", ...)`, or a dict of its
            arguments.

    Raises:
        ValueError: if arguments or outputs do not fit each other, or a video has more than
            `time_seq_len` frames.
    """

    image_net: nn.Module
    forward_function: str = "forward"
    add_time_pos_emb: bool = False
    dim_emb: int | None = None
    time_seq_len: int | None = None
    embed_is_channel_first: bool = False
    output_pos_add_pos_emb: int = 0
    proj_embed_to_dim: int | None = None
    patch_size: int | tuple[int, int] | None = None
    moss: MOSS | Mapping[str, Any] | None = None

    def __post_init__(self):
        expect(self, "image_net", isinstance(self.image_net, nn.Module), "a module, as create_model makes them")
        method = getattr(self.image_net, self.method, None)
        fits = callable(method) and "train" in inspect.signature(method).parameters
        expect(self, "forward_function", fits, f"a method of {type(self.image_net).__name__} that takes `train`")
        at_least(self, dim_emb=1, time_seq_len=1, proj_embed_to_dim=1)
        if self.patch_size is not None:
            pair("patch_size", self.patch_size)
        if self.add_time_pos_emb or self.proj_embed_to_dim:
            expect(self, "dim_emb", self.dim_emb is not None, "the number of features of the embedding")
        if self.add_time_pos_emb:
            expect(self, "time_seq_len", self.time_seq_len is not None, "a number, for add_time_pos_emb")
        moss = self.moss
        named = isinstance(moss, Mapping) and {"dim"} <= moss.keys() <= MOSS.__dataclass_fields__.keys()
        expect(self, "moss", named or moss is None or isinstance(moss, MOSS), "a vivit_with_moss:MOSS or its arguments")
        if named:
            self.moss = MOSS(**moss, parent=None)
        check_arguments(self)
        super().__post_init__()

    @property
    def method(self) -> str:
        """Name of the Flax method that `forward_function` selects."""
        return "__call__" if self.forward_function == "forward" else self.forward_function

    @nn.compact
    def __call__(
        self,
        video: Videos,
        *,
        eval_with_no_grad: bool = False,
        forward_kwargs: Mapping[str, Any] | None = None,
        train: bool = False,
    ) -> Any:
        """Apply `image_net` to all frames.

        Args:
            video: frames (b, t, H, W, c).
            eval_with_no_grad: run `image_net` in evaluation mode and without gradient, whatever
                `train` is.
            forward_kwargs: further arguments of the method of `image_net`.
            train: as for any model.
        """
        check_video(video)
        images = rearrange(video, "b t ... -> (b t) ...")
        if self.is_initializing() and self.method != "__call__":
            self.image_net(images)  # creates the parameters that the method does not read: upstream has them
        forward = getattr(self.image_net, self.method)
        outputs = forward(images, **(forward_kwargs or {}), train=train and not eval_with_no_grad)
        if eval_with_no_grad:
            outputs = jax.lax.stop_gradient(outputs)

        leaves, tree = jax.tree.flatten(outputs, is_leaf=lambda leaf: leaf is None)  # None is numbered too, as in torch
        framed = [isinstance(leaf, jax.Array) and leaf.shape[:1] == images.shape[:1] for leaf in leaves]
        for i, leaf in enumerate(leaves):
            leaves[i] = leaf.reshape(*video.shape[:2], *leaf.shape[1:]) if framed[i] else leaf
        if self.add_time_pos_emb or self.proj_embed_to_dim or self.moss:
            i = self.output_pos_add_pos_emb
            fits = -len(leaves) <= i < len(leaves) and framed[i] and leaves[i].ndim > 2
            expect(self, "output_pos_add_pos_emb", fits, f"the index of an output with features, out of {len(leaves)}")
            leaves[i] = self.change(leaves[i], video, train=train)
        return jax.tree.unflatten(tree, leaves)

    def change(self, x: Embedding, video: Array, *, train: bool) -> Float[Array, "b t *m e"]:
        """Project the embedding, add temporal positions, apply MOSS."""
        x = jnp.moveaxis(x, 2, -1) if self.embed_is_channel_first else x
        if self.dim_emb not in (None, x.shape[-1]):
            raise ValueError(f"dim_emb={self.dim_emb}: expected {x.shape[-1]}, the features of the embedding")
        if self.proj_embed_to_dim:
            x = Dense(self.proj_embed_to_dim, name="embed_proj")(x)
        if self.add_time_pos_emb:
            time = x.shape[1]
            if time > self.time_seq_len:
                raise ValueError(f"video of {time} frames: expected at most time_seq_len={self.time_seq_len}")
            pos_emb = self.param("pos_emb", nn.initializers.normal(0.01), (self.time_seq_len, x.shape[-1]))
            x = x + jnp.expand_dims(pos_emb[:time], (0, *range(2, x.ndim - 1)))
        if self.moss:
            x = self.moss(x, train=train) if x.ndim == 5 else self.join_tokens(x, video, train=train)
        return jnp.moveaxis(x, -1, 2) if self.embed_is_channel_first else x

    def join_tokens(self, x: Embedding, video: Array, *, train: bool) -> Embedding:
        """Apply `moss` to the last tokens of each frame, which are the patches."""
        nets = (self, self.image_net, getattr(self.image_net, "vit", None))
        patch_size = next((net.patch_size for net in nets if getattr(net, "patch_size", None)), None)
        expect(self, "patch_size", patch_size is not None, "a number, as moss needs it and image_net has none")
        rows, columns = patch_grid(video.shape[2:4], patch_size)
        others = x.shape[2] - rows * columns if x.ndim == 4 else -1
        if others < 0:
            raise ValueError(f"embedding of shape {x.shape}: expected {rows * columns} or more tokens a frame for moss")
        patches = self.moss(rearrange(x[:, :, others:], "b t (h w) d -> b t h w d", h=rows), train=train)
        return jnp.concatenate([x[:, :, :others], rearrange(patches, "b t h w d -> b t (h w) d")], axis=2)
