"""Which numbers of its own the model refuses."""

import pytest

from tests.cases import FIRST
from tests.cases.case import build


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(ffn_heads=0), "ffn_heads=0: expected at least 1"),
        (dict(ffn_heads=3), "mlp_dim=40: expected a multiple of ffn_heads=3"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["attn_residual_with_dca_simple_vit"], **kwargs)
