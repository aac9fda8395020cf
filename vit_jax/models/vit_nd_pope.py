"""ViTND with polar positions: a feature's size says what, its angle says where, and no more than that.

Source: Gopalakrishnan et al. 2025, arXiv:2509.10534 (PoPE), along the directions of Jerry Xiong's "Golden Gate RoPE",
jerryxio.ng/posts/nd-rope. Upstream: vit_pytorch/vit_nd_pope.py.
Differs from upstream: `pope_init_learned_bias_uniform` works (upstream: raises); all else as for ViTNDRotary: any
number of axes, `num_classes=0`, a mask of the input's grid, no `muon_parameters`.
Differs from the paper: any number of axes, where text has one.
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
    """Each feature, made positive, as the length of an arrow at its angle; in float32, as upstream does."""
    (sin, cos), length = sin_cos[:, None], jax.nn.softplus(x.astype(jnp.float32))
    return jnp.concatenate([length * cos, length * sin], axis=-1).astype(x.dtype)


class ViTNDPoPE(EncodedViTND):
    """Classifier: array (b, *shape, c) to logits (b, k); with `num_classes=0` to tokens (b, *grid, d).

    Keys stand at angles less than those of queries, by a learned bias of 0 to a whole turn for each feature, which
    starts at 0, or drawn from all of them with `pope_init_learned_bias_uniform`. Else as `ViTNDRotary`, for any
    `dim_head`.
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
        """Radians a patch along each axis, (h, f, axes)."""
        of_lengths = (self.pope_min_freq, self.pope_max_freq, self.pope_p_zero_freqs)
        return golden_gate.frequencies(self.heads, self.dim_head, self.ndim, *of_lengths)

    def positions(self, grid: tuple[int, ...]) -> Sequence[Float[Array, "2 h n f"]]:
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-2 * pi, maxval=0.0)
        init = uniform if self.pope_init_learned_bias_uniform else nn.initializers.zeros
        bias = self.param("learned_bias", init, (self.heads, self.dim_head)).astype(jnp.float32)
        # Clipped so that the gradient at 0, where the bias starts, is whole, as in torch: jnp.clip would halve it.
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
