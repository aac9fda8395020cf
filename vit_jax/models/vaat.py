"""VAAT: VAT that hears as well; each layer reads a ViT's tokens of images, then an AST's of sound.

Source of AST, the audio spectrogram transformer: Gong et al. 2021, arXiv:2104.01778. Upstream: vit_pytorch/vaat.py.
Differs from upstream: the embedding of an audio view goes to that view (upstream: to the member of the batch that has
its number, and it raises if there are not as many); `accept_spec_time_first=False` reads a spectrogram as (b, f, t)
(upstream takes the argument, but always reads (b, t, f)); a spectrogram smaller than a patch raises (upstream: gives
NaN); the rest as for VAT.
Differs from the paper (AST): patches do not overlap, positions are computed, registers stand in for the class token,
and logits come from the mean of the patches.
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
from vit_jax.frames.actions import Actions, Contexts, Extra, Video, no_registers, take_module, with_hiddens
from vit_jax.frames.arguments import check_arguments
from vit_jax.frames.rules import TRANSFORMER_RULES, feed_forward_rules, sequential_rules
from vit_jax.layers import Dense, FeedForward, LayerNorm, PatchEmbed, prepend, sincos_2d
from vit_jax.layers.check import at_least, check_floating, expect, one_of, pair
from vit_jax.layers.shapes import Tokens
from vit_jax.models.vat import ActionViT, Attention, ViT

__all__ = ["AST", "PRESETS", "VAAT", "ViT"]

PAD_MODES = {"reflect": "reflect", "constant": "constant", "replicate": "edge", "circular": "wrap"}
Spectrogram, Sound = Float[Array, "b f t"], Float[Array, "b s"] | Float[Array, "b _ _"]


def hann_window(length: int) -> Float[np.ndarray, "{length}"]:
    """Hann's window, periodic, as torch's is."""
    return np.square(np.sin(np.pi * np.arange(length) / length)).astype(np.float32) if length > 1 else np.ones(1, "f4")


class AST(nn.Module):
    """Sound (b, s), or a spectrogram (b, t, f) if `accept_spec`, to logits (b, k); without classes to features (b, d).

    With `return_hiddens` it gives normed tokens (b, n, d), and what each block reads, (l, b, n, d). Arguments that
    begin with "spec" are those of torchaudio's Spectrogram; what does not fill a patch of it is cropped.
    Raises ValueError for arguments and for sound that give no spectrogram.
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

    def __post_init__(self):
        check_arguments(self)
        pair("patch_size", self.patch_size)
        sincos_2d(1, 1, self.dim)  # which refuses some
        at_least(self, spec_n_fft=1, spec_win_length=1, spec_hop_length=1, spec_pad=0)
        expect(
            self, "spec_win_length", self.window_length() <= self.spec_n_fft, f"at most spec_n_fft={self.spec_n_fft}"
        )
        expect(self, "spec_power", isinstance(self.spec_power, int | float) and self.spec_power > 0, "more than 0")
        one_of("spec_pad_mode", self.spec_pad_mode, tuple(PAD_MODES))
        super().__post_init__()

    def window_length(self) -> int:
        """Samples of the window."""
        return self.spec_n_fft if self.spec_win_length is None else self.spec_win_length

    def setup(self):
        self.to_patch_tokens = PatchEmbed(pair("patch_size", self.patch_size), self.dim)
        attention = functools.partial(Attention, self.heads, self.dim_head, self.dropout)
        feed_forward = functools.partial(FeedForward, self.mlp_dim, self.dropout)
        self.transformer = Trajectory(self.depth, attention, feed_forward)
        self.final_norm = LayerNorm()
        if self.num_classes:
            self.mlp_head = Dense(self.num_classes)
        shape = (self.num_register_tokens, self.dim)
        self.register_tokens = self.param("register_tokens", nn.initializers.normal(0.01), shape) if shape[0] else None

    def spectrogram(self, sound: Float[Array, "b s"]) -> Spectrogram:
        """Magnitudes of the short-time Fourier transform to the `spec_power`, computed in float32."""
        n_fft, window = self.spec_n_fft, self.window_length()
        x = jnp.pad(sound.astype(jnp.promote_types(sound.dtype, jnp.float32)), ((0, 0), (self.spec_pad,) * 2))
        around = n_fft // 2 if self.spec_center else 0
        least = max(n_fft - 2 * around, around + (self.spec_pad_mode == "reflect"), 1)
        if x.shape[1] < least:
            raise ValueError(f"audio of shape {sound.shape}: expected at least {least - 2 * self.spec_pad} samples")
        x = jnp.pad(x, ((0, 0), (around, around)), mode=PAD_MODES[self.spec_pad_mode])
        starts = jnp.arange(0, x.shape[1] - n_fft + 1, self.spec_hop_length or max(1, window // 2))
        left = (n_fft - window) // 2  # the window stands in the middle of a frame
        weights = np.pad(hann_window(window), (left, n_fft - window - left))
        waves = jnp.fft.rfft(x[:, starts[:, None] + jnp.arange(n_fft)[None]] * weights[None, None])
        power = jnp.square(waves.real) + jnp.square(waves.imag)
        if self.spec_power != 2:  # a root has no gradient at silence; torch's is zero there
            heard = power > 0
            power = jnp.where(heard, jnp.where(heard, power, 1) ** (self.spec_power / 2), 0)
        return power.swapaxes(1, 2).astype(sound.dtype)

    def trajectory(self, audio_or_spec: Sound, *, train: bool = False) -> list[Tokens]:
        """The input of each block, and last the normalised tokens: registers, then patches, low frequencies first."""
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
            self.head(tokens[-1])  # for its parameters, which upstream has even if nothing reads them
        return tokens

    def head(self, tokens: Tokens) -> Float[Array, "b k"]:
        """Logits, or features, from the last tokens of `trajectory`."""
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
    """`VAT` with an `ast`, a `vaat:AST` or a dict of its arguments, that `audio_or_spec` is for.

    Sound is (b, v, s), or (b, v, t, f) if the AST accepts spectrograms; a single view may lack its axis. Views to tell
    apart are `num_image_views` and `num_audio_views`, and `freeze_ast` stops gradients before the AST.
    Raises ValueError for an AST as for a ViT.
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
        """For each layer the context that the AST makes of sound."""
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
