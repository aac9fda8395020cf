"""Arguments of `simple_vit_with_fft`."""

import jax
import jax.numpy as jnp
import pytest

from tests.cases import FIRST
from tests.cases.case import build

CASE = FIRST["simple_vit_with_fft"]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("size", "message"),
    [
        (5, "freq_patch_size=5: expected sides that divide image_size=16"),
        ((4, 6), r"freq_patch_size=\(4, 6\): expected sides that divide image_size=16"),
        (0, "freq_patch_size=0: expected a positive integer or a pair"),
    ],
)
def test_bad_patches_of_the_spectrum_are_named(size, message):
    with pytest.raises(ValueError, match=message):
        build(CASE, freq_patch_size=size)


def test_extra_tokens_stay_and_the_spectrums_go():
    images, extra = jnp.ones((2, 16, 16, 3)), jnp.ones((1, 24))
    tokens, _ = build(CASE, freq_patch_size=8).init_with_output(jax.random.key(0), images, extra, method="encode")
    assert tokens.shape == (2, 16 + 1, 24)
