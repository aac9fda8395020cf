"""Arguments that only this model has, and invalid values."""

import pytest

from tests.cases import FIRST
from tests.cases.case import build


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(head_groups=0), "head_groups=0: expected at least 1"),
        (dict(head_groups=2), "head_groups=2: expected a divisor of heads=3"),
        (dict(heads=2, head_groups=4), "head_groups=4: expected a divisor of heads=2"),
        (dict(ffn_heads=0), "ffn_heads=0: expected at least 1"),
        (dict(ffn_heads=3), "mlp_dim=40: expected a multiple of ffn_heads=3"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["attn_residual_with_dca_simple_vit"], **kwargs)
