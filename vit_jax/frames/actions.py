"""Vision-action transformers: in every layer, action tokens cross-attend to a layer of a vision transformer.

Source: "VAT: Vision Action Transformer by Unlocking Full Representation of ViT", submitted anonymously in 2025,
openreview.net/forum?id=TalHOvvLZu. Upstream: vit_pytorch/vat.py, vaat.py and vat_siglip.py, which repeat this code.
Axes: b batch, v views, f frames, n tokens of an image, m tokens of a context, w width of a context, t action and other
tokens, d dim, l layers, k actions, a numbers of an action, e numbers of the extra token.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.frames.arguments import check_arguments
from vit_jax.layers.check import at_least, expect
from vit_jax.layers.dense import Dense
from vit_jax.layers.drop_path import drop_paths
from vit_jax.layers.feed_forward import FeedForward
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.shapes import Tokens

Video = Float[Array, "b v f H W c"] | Float[Array, "b _ H W c"] | Float[Array, "b H W c"]
Extra = Float[Array, "b e"] | Float[Array, "b _ e"]
Contexts = Sequence[Float[Array, "b m w"]]
Actions = Float[Array, "b k a"] | Float[Array, ""] | tuple[Float[Array, "b k a"], Float[Array, "l b t d"]]
_learned = nn.initializers.normal(0.01)


class FiLM(nn.Module):
    """Scale and shift tokens (b, n, d) by a linear map of a condition (b, d), initially the identity.

    Without a condition tokens are unchanged. Source: Perez et al. 2017, arXiv:1709.07871.
    """

    @nn.compact
    def __call__(self, tokens: Tokens, condition: Float[Array, "b d"] | None) -> Tokens:
        dim = tokens.shape[-1]
        identity = lambda key, shape, dtype=jnp.float32: jnp.repeat(jnp.array([1, 0], dtype), dim)
        kernel = self.param("kernel", nn.initializers.zeros, (dim, 2 * dim))
        bias = self.param("bias", identity, (2 * dim,))
        if condition is None:
            return tokens
        gamma, beta = jnp.split(condition @ kernel + bias[None], 2, axis=-1)
        return tokens * gamma[:, None] + beta[:, None]


class ActionTransformer(nn.Module, kw_only=True):
    """Base of models whose action tokens cross-attend to contexts, then predict `dim_action` numbers for each action.

    A subclass computes the contexts with `look`, passes them to `act`, and defines its attention in `make_attention`.
    The model can be conditioned on a task (`num_tasks`; by `FiLM`), on a vector (`dim_extra_token`; a token) and on an
    advantage (`num_advantage_bins`; a token). `vit_layer_indices` has, for each layer, the index of the layer of the
    vision transformer that it reads: i is the input of layer i, and the depth is the output. `drop_path` is the rate of
    stochastic depth in the last layer, which rises linearly from 0 in the first; the vision transformer has its own.
    """

    dim: int
    depth: int
    heads: int
    dim_head: int
    dim_action: int
    mlp_dim: int
    num_tasks: int | None = None
    dim_extra_token: int | None = None
    num_register_tokens: int = 4
    action_chunk_len: int = 7
    time_seq_len: int = 1
    dropout: float = 0.0
    add_self_attn: bool = True
    self_attn_heads: int = 4
    self_attn_dim_head: int = 32
    vit_layer_indices: Sequence[int] | None = None
    num_advantage_bins: int = 0
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        at_least(self, depth=1, dim_action=1, num_tasks=1, dim_extra_token=1, action_chunk_len=1, time_seq_len=1)
        at_least(self, self_attn_heads=1, self_attn_dim_head=1, num_advantage_bins=0)
        at_least(self, num_views=1, num_image_views=1, num_audio_views=1)
        super().__post_init__()

    def make_attention(self, heads: int, dim_head: int) -> Callable[..., nn.Module]:
        """A factory of attention modules, called with the name: for self-attention or attention over a context."""
        raise NotImplementedError

    def make_feed_forward(self) -> Callable[..., nn.Module]:
        """A factory of a layer's feed-forward module, called with the name."""
        return functools.partial(FeedForward, self.mlp_dim, self.dropout)

    def layers_read(self, name: str, depth: int) -> tuple[int, ...]:
        """The argument `name`: for each layer, the layer of a transformer of this `depth` that it reads.

        The default is 0, 1, 2, ... Raises ValueError unless there is an existing layer for each of `self.depth` layers.
        """
        given = getattr(self, name)
        layers = tuple(range(self.depth) if given is None else given)
        exist = all(-depth - 1 <= layer <= depth for layer in layers)
        expected = f"for each of depth={self.depth} layers one of {-depth - 1} to {depth}"
        expect(self, name, len(layers) == self.depth and exist, expected)
        return layers

    def with_axes(self, video: Video) -> Float[Array, "b v f H W c"]:
        """Images or videos with axes for views and frames, added where they are missing.

        Raises ValueError for another number of axes or of frames.
        """
        x = video
        if x.ndim == 4 or (x.ndim == 5 and self.time_seq_len > 1):
            x = x[:, None]
        if x.ndim == 5:
            x = x[:, :, None]
        if x.ndim != 6 or x.shape[2] != self.time_seq_len:
            raise ValueError(
                f"video_or_image of shape {video.shape}: expected (batch, views, frames, height, width, channels) with "
                f"time_seq_len={self.time_seq_len} frames, without frames if it is 1, or without views if there is one"
            )
        return x

    def place(
        self,
        trajectory: Sequence[Float[Array, "bvf n w"]],
        layers: Sequence[int],
        shape: tuple[int, int, int],
        views: str,
        *,
        freeze: bool,
    ) -> Contexts:
        """For each of `layers`, the tokens of all views and frames, concatenated, with embeddings of view and frame.

        Args:
            trajectory: inputs of a transformer's layers, and its output.
            layers: indices of `trajectory`.
            shape: (b, v, f).
            views: "view" or the like: the argument `num_{views}s` is the number of views, `{views}_emb` the parameter.
            freeze: stop the gradient into `trajectory`.

        Raises:
            ValueError: for another number of views.
        """
        _, count, frames = shape
        dim, place = trajectory[0].shape[-1], 0.0
        if frames > 1:
            place = self.param("time_pos_emb", _learned, (frames, dim))[None, None, :, None]
        if (expected := getattr(self, f"num_{views}s") or 1) > 1:
            if count != expected:
                raise ValueError(f"{count} views: expected num_{views}s={expected}")
            place = place + self.param(f"{views}_emb", _learned, (count, dim))[None, :, None, None]
        contexts = [trajectory[layer] for layer in layers]
        contexts = jax.lax.stop_gradient(contexts) if freeze else contexts
        apart = [x.reshape(*shape, *x.shape[1:]) + place for x in contexts]
        return [jax.lax.collapse(x, 1, 4) for x in apart]

    def look(self, vit: nn.Module, video: Video, views: str, *, freeze: bool, train: bool) -> Contexts:
        """The context of each layer: the tokens that `vit`, a model with a method `trajectory`, makes of images."""
        video = self.with_axes(video)
        trajectory = vit.trajectory(jax.lax.collapse(video, 0, 3), train=train)
        layers = self.layers_read("vit_layer_indices", len(trajectory) - 1)
        return self.place(trajectory, layers, video.shape[:3], views, freeze=freeze)

    def act(
        self,
        contexts: dict[str, Contexts],
        *,
        extra: Extra | None,
        tasks: Int[Array, "b"] | None,
        advantages: Int[Array, "b"] | int | None,
        actions: Float[Array, "b k a"] | None,
        return_hiddens: bool,
        train: bool,
    ) -> Actions:
        """Predict actions (b, k, a) from contexts.

        Args:
            contexts: by kind, a context for each layer. A layer attends to its context of each kind in turn.
            extra: vectors to condition on, one or more for each example.
            tasks: index of the task. An index outside `num_tasks` gives NaN.
            advantages: -1 to `num_advantage_bins` - 1. In an array, other values give NaN.
            actions: the true actions, to compute the loss.
            return_hiddens: also return the input of the first layer and the output of every layer, (l + 1, b, t, d).
            train: apply dropout.

        Returns:
            The actions, with `return_hiddens` a pair; or, if `actions` are given, their mean absolute error alone.

        Raises:
            ValueError: for inputs of another shape, or that the model was not built to be conditioned on.
        """
        first = next(iter(contexts.values()))[0]
        batch, dtype = first.shape[0], first.dtype
        learned = lambda name, count: self.param(name, _learned, (count, self.dim))
        everywhere = lambda tokens: jnp.broadcast_to(tokens, (batch, *tokens.shape))
        parts = [everywhere(learned("register_tokens", self.num_register_tokens))] if self.num_register_tokens else []

        self._check_given("advantages", advantages, "num_advantage_bins", self.num_advantage_bins or None)
        if self.num_advantage_bins:
            table = learned("advantage_emb", self.num_advantage_bins + 1)
            if isinstance(advantages, int):
                if not -1 <= advantages < self.num_advantage_bins:
                    raise ValueError(f"advantages={advantages}: expected -1 to {self.num_advantage_bins - 1}")
                advantages = jnp.full(batch, advantages)
            if advantages is not None:
                _check_shape("advantages", advantages, (batch,))
                number = jnp.where(advantages < -1, len(table), advantages + 1)
                parts.append(jnp.take(table, number, axis=0)[:, None])

        start = sum(part.shape[1] for part in parts)
        parts.append(everywhere(learned("action_pos_emb", self.action_chunk_len)))

        self._check_given("extra", extra, "dim_extra_token", self.dim_extra_token)
        if self.dim_extra_token is not None:
            extra = jnp.zeros((batch, 0, self.dim_extra_token), dtype) if extra is None else extra
            _check_shape("extra", extra, (batch, *extra.shape[1:-1], self.dim_extra_token))
            extra = extra[:, None] if extra.ndim == 2 else extra
            parts.append(Dense(self.dim, name="to_extra_token")(extra))

        self._check_given("tasks", tasks, "num_tasks", self.num_tasks)
        condition = None
        if self.num_tasks is not None:
            table = learned("task_emb", self.num_tasks)
            if tasks is not None:
                _check_shape("tasks", tasks, (batch,))
                condition = jnp.take(table, tasks, axis=0)

        hiddens = [jnp.concatenate(parts, axis=1)]
        for i, drop_path in enumerate(drop_paths(self, self.drop_path, self.depth, train)):
            x = hiddens[-1]
            if self.num_tasks is not None:
                x = FiLM(name=f"film_{i}")(x, condition)
            for name, context in contexts.items():
                attention = self.make_attention(self.heads, self.dim_head)(name=f"{name}_{i}")
                x = x + drop_path(attention(x, context[i], train=train))
            if self.add_self_attn:
                attention = self.make_attention(self.self_attn_heads, self.self_attn_dim_head)(name=f"self_attn_{i}")
                x = x + drop_path(attention(x, train=train))
            hiddens.append(x + drop_path(self.make_feed_forward()(name=f"mlp_{i}")(x, train=train)))

        x = LayerNorm(name="final_norm")(hiddens[-1][:, start : start + self.action_chunk_len])
        predicted = Dense(self.dim_action, use_bias=False, name="to_pred_action")(x)
        if actions is not None:
            _check_shape("actions", actions, predicted.shape)
            return jnp.abs(predicted - actions).mean()
        return (predicted, jnp.stack(hiddens)) if return_hiddens else predicted

    def _check_given(self, name: str, value: Any, argument: str, size: int | None) -> None:
        if value is not None and size is None:
            raise ValueError(f"{name} given: expected none, as {argument}={getattr(self, argument)!r}")

    torch_rules = (
        ("to_out", "to_out.0"),
        ("to_out_gates", "to_out_gates.0"),
        (r"film_(\d+)", r"layers.\1.0.to_gamma_beta.0"),
        (r"self_attn_(\d+)", r"layers.\1.1"),
        (r"cross_attn_(\d+)", r"layers.\1.2"),
        ("advantage_emb", "advantage_emb.weight"),
    )

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores an array of no register tokens too."""
        return no_registers(self)


def _check_shape(name: str, value: Array, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ValueError(f"{name} of shape {value.shape}: expected {shape}")


def take_module(model: nn.Module, name: str, kind: type[nn.Module], known_as: str) -> None:
    """If the argument `name` of `model` is a dict, replace it by a `kind` with these arguments.

    Raises ValueError for arguments that `kind` does not take, and unless the value is a dict or a `kind`. `known_as` is
    the name of `kind` in the registry.
    """
    value = getattr(model, name)
    if isinstance(value, Mapping):
        try:
            object.__setattr__(model, name, kind(**value, parent=None))
        except TypeError as error:
            raise ValueError(f"{name}={dict(value)!r}: expected arguments of {known_as!r}; {error}") from None
    expected = f"a model made by create_model({known_as!r}, ...), or a dict of its arguments"
    expect(model, name, isinstance(getattr(model, name), kind), expected)


def no_registers(model: nn.Module) -> dict[str, np.ndarray]:
    """Upstream's state dict has `register_tokens` even if there are none."""
    return {} if model.num_register_tokens else {"register_tokens": np.zeros((0, model.dim), np.float32)}
