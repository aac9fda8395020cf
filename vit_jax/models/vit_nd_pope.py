"""ViTND with polar positions: the magnitude of a feature is its content, its angle is only its position.

Derives from `EncodedViTND` (vit_jax/models/vit_nd_rotary.py) with another encoding of positions.

Source: Gopalakrishnan et al. 2025, arXiv:2509.10534 (PoPE), along the directions of Jerry Xiong's "Golden Gate RoPE",
jerryxio.ng/posts/nd-rope. Upstream: vit_pytorch/vit_nd_pope.py.
Differs from upstream: `pope_init_learned_bias_uniform` works (upstream: raises); otherwise as for ViTNDRotary: any
number of axes, `num_classes=0`, a mask for the grid of the input, no `muon_parameters`.
Differs from the paper: any number of axes (paper: text, with one axis).
Axes: b batch, n patches, h heads, f features of a head.
"""

import functools
from collections.abc import Callable, Sequence
from math import pi

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers import golden_gate
from vit_jax.models import vit_nd_rotary
from vit_jax.models.vit_nd_rotary import Attention, EncodedViTND, Heads, check_frequencies


def polar(x: Heads, sin_cos: Float[Array, "2 h n f"]) -> Float[Array, "b h n 2*f"]:
    """Each feature, after a softplus, as the length of a vector at its angle; in float32, as upstream does."""
    (sin, cos), length = sin_cos[:, None], jax.nn.softplus(x.astype(jnp.float32))
    return jnp.concatenate([length * cos, length * sin], axis=-1).astype(x.dtype)


class ViTNDPoPE(EncodedViTND):
    """Classifier: array (b, *shape, c) to logits (b, k); with `num_classes=0` to tokens (b, *grid, d).

    An array may have any size that patches fill. The head reads the mean of all patches. A learned
    bias in [-2 pi, 0] for each feature is added to the angles of the keys.

    Args:
        ndim: number of axes, without batch and channels.
        input_shape: sides of an array, one number for each axis, or one for all; only checked
            against `patch_size`.
        patch_size: sides of a patch, one number for each axis, or one for all.
        num_classes: number of classes; 0 for tokens, as a grid.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        channels: channels of an array.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the tokens before the first block.
        causal_dims: axis or axes along which no patch attends to later ones.
        pope_min_freq: smallest frequency, in radians per patch.
        pope_max_freq: largest frequency, in radians per patch.
        pope_p_zero_freqs: share of the frequencies that are zero.
        pope_init_learned_bias_uniform: draw the initial bias uniformly instead of starting at 0.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `input_shape` or the sides of an array,
            `causal_dims` has an unknown axis, a frequency is not above 0, or `pope_p_zero_freqs` is
            not in [0, 1].
    """

    pope_min_freq: float = 1.0
    pope_max_freq: float = 10000.0
    pope_p_zero_freqs: float = 0.0
    pope_init_learned_bias_uniform: bool = False

    def __post_init__(self):
        check_frequencies(self, "pope")
        super().__post_init__()

    def make_attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, self.heads, self.dim_head, self.dropout, polar)

    def frequencies(self) -> np.ndarray:
        """Radians per patch along each axis, (h, f, axes)."""
        of_lengths = (self.pope_min_freq, self.pope_max_freq, self.pope_p_zero_freqs)
        return golden_gate.frequencies(self.heads, self.dim_head, self.ndim, *of_lengths)

    def positions(self, grid: tuple[int, ...]) -> Sequence[Float[Array, "2 h n f"]]:
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-2 * pi, maxval=0.0)
        init = uniform if self.pope_init_learned_bias_uniform else nn.initializers.zeros
        bias = self.param("learned_bias", init, (self.heads, self.dim_head)).astype(jnp.float32)
        # At 0, where the bias starts, the gradient of jnp.clip is one half; torch's is 1, as it is here.
        inside = (bias >= -2 * pi) & (bias <= 0)
        bias = jnp.where(inside, bias, jnp.clip(bias, -2 * pi, 0.0))
        angles = golden_gate.angles(self.frequencies(), grid)
        of_keys = jnp.asarray(angles) + bias[:, None]
        return jnp.asarray(golden_gate.sin_cos(angles)), jnp.stack([jnp.sin(of_keys), jnp.cos(of_keys)])

    torch_rules = (("learned_bias", "polar_emb.learned_bias"), *EncodedViTND.torch_rules)
    torch_aliases = ((r"polar_emb\.learned_bias", "transformer.polar_emb.learned_bias"),)

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Frequencies, which upstream stores with the model and with its transformer."""
        return {f"{name}.freqs": self.frequencies() for name in ("polar_emb", "transformer.polar_emb")}


PRESETS = vit_nd_rotary.PRESETS
