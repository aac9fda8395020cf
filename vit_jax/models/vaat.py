"""VAAT: VAT with sound; each layer of action tokens attends to a ViT's tokens of images, then to an AST's of sound.

`VAAT` derives from `ActionViT` (vit_jax/models/vat.py) and adds attention to an AST.

Source of AST, the audio spectrogram transformer: Gong et al. 2021, arXiv:2104.01778. Upstream: vit_pytorch/vaat.py.
Differs from upstream: the embedding of an audio view is added to that view (upstream: to the sample with its index,
which raises if the batch has another size); `accept_spec_time_first=False` reads a spectrogram as (b, f, t) (upstream
ignores it and always reads (b, t, f)); a spectrogram smaller than a patch raises (upstream: gives NaN); otherwise as
for VAT.
Differs from the paper (AST): patches do not overlap, positions are computed, registers replace the class token, and
logits are computed from the mean of the patches.
Axes: b batch, v views, s samples, t frames of a spectrogram, f frequencies, n tokens, d dim, l layers, k classes or
actions, a numbers of an action, e extra.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.frames import ActionTransformer, Trajectory
from vit_jax.frames.actions import Actions, Contexts, Extra, Video, no_registers, take_module
from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.rules import TRANSFORMER_RULES, feed_forward_rules, sequential_rules
from vit_jax.frames.trajectory import with_hiddens
from vit_jax.layers import Dense, FeedForward, LayerNorm, PatchEmbed, prepend, sincos_2d
from vit_jax.layers.check import at_least, check_floating, expect, one_of, pair
from vit_jax.layers.shapes import Tokens
from vit_jax.models.vat import ActionViT, Attention, ViT

__all__ = ["AST", "PRESETS", "VAAT", "ViT"]

PAD_MODES = {"reflect": "reflect", "constant": "constant", "replicate": "edge", "circular": "wrap"}
Spectrogram, Sound = Float[Array, "b f t"], Float[Array, "b s"] | Float[Array, "b _ _"]


def hann_window(length: int) -> Float[np.ndarray, "{length}"]:
    """Periodic Hann window, as torch computes it."""
    return np.square(np.sin(np.pi * np.arange(length) / length)).astype(np.float32) if length > 1 else np.ones(1, "f4")


class AST(nn.Module):
    """Sound (b, s), or spectrogram (b, t, f), to logits (b, k); without `num_classes` to features (b, d).

    With `return_hiddens` it returns a pair instead: normalised tokens (b, n, d), and the inputs of all blocks (l, b,
    n, d). Rows and columns of the spectrogram that do not fill a patch are cropped.

    Args:
        dim: width of a token, a multiple of 4.
        depth: number of blocks.
        mlp_dim: hidden width of each feed-forward.
        num_classes: number of classes; None or 0 for features.
        patch_size: frequencies and frames of a patch, one number or a pair.
        dim_head: width of a head.
        heads: attention heads in each block.
        dropout: rate within the blocks.
        accept_spec: the input is a spectrogram instead of sound.
        accept_spec_time_first: spectrograms are (b, t, f); False for (b, f, t).
        spec_n_fft: samples of a frame, as in torchaudio's Spectrogram.
        spec_power: exponent of the magnitudes; 2 for power.
        spec_win_length: samples of the window, at most `spec_n_fft`; None for `spec_n_fft`.
        spec_hop_length: samples between frames; by default half of the window.
        spec_pad: zeros added at both ends.
        spec_center: pad the sound so that frames are centred at multiples of the hop.
        spec_pad_mode: how to pad for `spec_center`: "reflect", "constant", "replicate" or "circular".
        num_register_tokens: number of register tokens.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if the arguments are invalid, or an input is too short for a spectrogram of one patch.
    """

    dim: int
    depth: int
    mlp_dim: int
    num_classes: int | None = None
    patch_size: int | Sequence[int] = 16
    dim_head: int = 64
    heads: int = 8
    dropout: float = 0.0
    accept_spec: bool = False
    accept_spec_time_first: bool = True
    spec_n_fft: int = 128
    spec_power: int | float = 2
    spec_win_length: int | None = 24
    spec_hop_length: int | None = None
    spec_pad: int = 0
    spec_center: bool = True
    spec_pad_mode: str = "reflect"
    num_register_tokens: int = 4
    drop_path: float = 0.0

    def __post_init__(self):
        check_arguments(self)
        pair("patch_size", self.patch_size)
        sincos_2d(1, 1, self.dim)  # raises ValueError for an unsuitable dim
        at_least(self, spec_n_fft=1, spec_win_length=1, spec_hop_length=1, spec_pad=0)
        expect(
            self, "spec_win_length", self.window_length() <= self.spec_n_fft, f"at most spec_n_fft={self.spec_n_fft}"
        )
        expect(self, "spec_power", isinstance(self.spec_power, int | float) and self.spec_power > 0, "more than 0")
        one_of("spec_pad_mode", self.spec_pad_mode, tuple(PAD_MODES))
        super().__post_init__()

    def window_length(self) -> int:
        """Number of samples in the window."""
        return self.spec_n_fft if self.spec_win_length is None else self.spec_win_length

    def setup(self):
        self.to_patch_tokens = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout)
        self.transformer = Trajectory(self.depth, attention, feed_forward, drop_path=self.drop_path)
        self.final_norm = LayerNorm()
        if self.num_classes:
            self.mlp_head = Dense(self.num_classes)
        shape = (self.num_register_tokens, self.dim)
        self.register_tokens = self.param("register_tokens", nn.initializers.normal(0.01), shape) if shape[0] else None

    def spectrogram(self, sound: Float[Array, "b s"]) -> Spectrogram:
        """Magnitudes of the short-time Fourier transform to the power of `spec_power`, computed in float32."""
        n_fft, window = self.spec_n_fft, self.window_length()
        x = jnp.pad(sound.astype(jnp.promote_types(sound.dtype, jnp.float32)), ((0, 0), (self.spec_pad,) * 2))
        around = n_fft // 2 if self.spec_center else 0
        least = max(n_fft - 2 * around, around + (self.spec_pad_mode == "reflect"), 1)
        if x.shape[1] < least:
            raise ValueError(f"audio of shape {sound.shape}: expected at least {least - 2 * self.spec_pad} samples")
        x = jnp.pad(x, ((0, 0), (around, around)), mode=PAD_MODES[self.spec_pad_mode])
        starts = jnp.arange(0, x.shape[1] - n_fft + 1, self.spec_hop_length or max(1, window // 2))
        left = (n_fft - window) // 2  # the window is centred in the frame
        weights = np.pad(hann_window(window), (left, n_fft - window - left))
        waves = jnp.fft.rfft(x[:, starts[:, None] + jnp.arange(n_fft)[None]] * weights[None, None])
        power = jnp.square(waves.real) + jnp.square(waves.imag)
        if self.spec_power != 2:  # a root has no gradient at zero, where torch's gradient is zero
            heard = power > 0
            power = jnp.where(heard, jnp.where(heard, power, 1) ** (self.spec_power / 2), 0)
        return power.swapaxes(1, 2).astype(sound.dtype)

    def trajectory(self, audio_or_spec: Sound, *, train: bool = False) -> list[Tokens]:
        """The input of each block, then the normalised tokens: registers, then patches, low frequencies first."""
        if audio_or_spec.ndim != 2 + self.accept_spec:
            layout = "(batch, time, frequency)" if self.accept_spec else "(batch, samples)"
            raise ValueError(
                f"audio of shape {audio_or_spec.shape}: expected {layout}, as accept_spec={self.accept_spec}"
            )
        check_floating("audio", audio_or_spec)
        spec = audio_or_spec if self.accept_spec else self.spectrogram(audio_or_spec)
        if self.accept_spec and self.accept_spec_time_first:
            spec = spec.swapaxes(1, 2)
        patch = pair("patch_size", self.patch_size)
        rows, columns = (side // length for side, length in zip(spec.shape[1:], patch, strict=True))
        if not rows * columns:
            raise ValueError(
                f"audio of shape {audio_or_spec.shape}: its spectrogram has {spec.shape[1]} frequencies and "
                f"{spec.shape[2]} frames, expected at least patch_size={self.patch_size!r}"
            )
        x = self.to_patch_tokens(spec[:, : rows * patch[0], : columns * patch[1], None])
        x = x + jnp.asarray(sincos_2d(rows, columns, self.dim), x.dtype)[None]
        x = x if self.register_tokens is None else prepend(self.register_tokens, x)
        *hiddens, last = self.transformer(x, train=train)
        tokens = [*hiddens, self.final_norm(last)]
        if self.is_initializing():
            self.head(tokens[-1])  # creates its parameters: upstream always has them
        return tokens

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits, or features if there are no classes, from the last tokens of `trajectory`."""
        features = tokens[:, self.num_register_tokens :].mean(axis=1)
        return self.mlp_head(features) if self.num_classes else features

    def __call__(
        self, audio_or_spec: Sound, *, return_hiddens: bool = False, train: bool = False
    ) -> Float[Array, "b k"] | tuple[Tokens, Float[Array, "l b n d"]]:
        tokens = self.trajectory(audio_or_spec, train=train)
        return with_hiddens(tokens) if return_hiddens else self.head(tokens[-1])

    torch_rules = (
        *sequential_rules("to_patch_tokens", "to_patch_tokens", norm_in=1, proj=2, norm_out=3),
        ("to_out_gates", "to_out_gates.0"),
        *TRANSFORMER_RULES,
    )

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Upstream stores the window of the spectrogram, and an array of no register tokens too."""
        return {"spec.window": hann_window(self.window_length())} | no_registers(self)


class VAAT(ActionViT, kw_only=True):
    """Actions (b, k, a) from images or videos, as for `VAT`, and sound (b, v, s).

    If the AST accepts spectrograms, sound is (b, v, t, f). The axis of views may be omitted for one view.

    Args:
        dim: width of a token.
        depth: number of layers of action tokens.
        heads: heads of the attention to images and to sound.
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
        ast: a `vaat:AST` made by `create_model`, or a dict of its arguments.
        num_image_views: number of views of images, each with a learned embedding; None for one view.
        num_audio_views: number of views of sound, each with a learned embedding; None for one view.
        ast_layer_indices: for each layer, the layer of the AST to read, as `vit_layer_indices`.
        drop_path: rate of stochastic depth in the last layer; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `vit_layer_indices` or `ast_layer_indices` does not have a layer of its encoder for each of
            `depth` layers, or an input does not fit.
    """

    ast: AST | Mapping[str, Any]
    num_image_views: int | None = None
    num_audio_views: int | None = None
    ast_layer_indices: Sequence[int] | None = None

    def __post_init__(self):
        take_module(self, "ast", AST, "vaat:AST")
        super().__post_init__()
        self.check_layers("ast_layer_indices", self.ast)

    def listen(self, sound: Float[Array, "b ..."], *, freeze: bool, train: bool) -> Contexts:
        """For each layer of action tokens, the tokens of the AST that it reads."""
        axes = 3 + self.ast.accept_spec
        x = sound[:, None] if sound.ndim == axes - 1 else sound
        if x.ndim != axes:
            layout = "(batch, views, time, frequency)" if self.ast.accept_spec else "(batch, views, samples)"
            raise ValueError(f"audio_or_spec of shape {sound.shape}: expected {layout}, without views if there is one")
        trajectory = self.ast.trajectory(jax.lax.collapse(x, 0, 2), train=train)
        layers = self.layers_read("ast_layer_indices", self.ast.depth)
        return self.place(trajectory, layers, (*x.shape[:2], 1), "audio_view", freeze=freeze)

    @nn.compact
    def __call__(
        self,
        video_or_image: Video,
        audio_or_spec: Float[Array, "b ..."],
        *,
        extra: Extra | None = None,
        tasks: Int[Array, "b"] | None = None,
        advantages: Int[Array, "b"] | int | None = None,
        actions: Float[Array, "b k a"] | None = None,
        return_hiddens: bool = False,
        freeze_vit: bool = False,
        freeze_ast: bool = False,
        train: bool = False,
    ) -> Actions:
        """Predict actions.

        The arguments are those of `VAT.__call__`; `audio_or_spec` is sound or spectrograms, and
        `freeze_ast` stops gradients to the AST.
        """
        contexts = {
            "image_cross_attn": self.look(self.vit, video_or_image, "image_view", freeze=freeze_vit, train=train),
            "audio_cross_attn": self.listen(audio_or_spec, freeze=freeze_ast, train=train),
        }
        given = dict(extra=extra, tasks=tasks, advantages=advantages, actions=actions, return_hiddens=return_hiddens)
        return self.act(contexts, **given, train=train)

    torch_rules = (
        (r"image_cross_attn_(\d+)", r"layers.\1.2"),
        (r"audio_cross_attn_(\d+)", r"layers.\1.3"),
        *feed_forward_rules(r"mlp_(\d+)", r"layers.\1.4.net"),
        *ActionTransformer.torch_rules,
    )


_VIT = dict(image_size=256, patch_size=32, num_classes=1000, dim=384, depth=4, heads=8, mlp_dim=1536)
_AST = dict(dim=384, depth=4, heads=8, num_classes=1000, patch_size=16, mlp_dim=1536)
_SIZES = dict(dim=512, depth=9, heads=8, dim_head=64, mlp_dim=2048, dim_action=20, num_tasks=4, dim_extra_token=33)
_LAYERS = dict(vit_layer_indices=(0, 0, 1, 1, 2, 2, 3, 3, 4), ast_layer_indices=(1, 1, 1, 2, 2, 2, 3, 3, 3))
_VIEWS = dict(time_seq_len=4, num_image_views=2, num_audio_views=2)
PRESETS = {
    "tiny": dict(dim=64, depth=4, heads=4, dim_head=16, mlp_dim=128, patch_size=8),
    "upstream": _SIZES | _LAYERS | _VIEWS | dict(vit=_VIT, ast=_AST),
}
