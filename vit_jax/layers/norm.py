"""Layer normalisation as torch has it."""

from flax import linen as nn


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` with torch's epsilon and a variance taken around the mean.

    Flax's faster E[x^2] - E[x]^2 loses half of float32's digits once the mean exceeds the deviation.
    Statistics are float32 whatever the input's dtype. Source: Ba et al. 2016, arXiv:1607.06450.
    """

    epsilon: float = 1e-5
    use_fast_variance: bool = False
