"""Features of CrossViT only: arguments for each branch."""

import pytest

from tests.cases import FIRST
from tests.cases.case import build


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=18), "image_size=18: expected multiples of sm_patch_size=4"),
        (dict(lg_patch_size=3), "image_size=16: expected multiples of lg_patch_size=3"),
        (dict(lg_patch_size=(8, 0)), r"lg_patch_size=\(8, 0\): expected a positive integer or a pair"),
        (dict(sm_dim=0), "sm_dim=0: expected at least 1"),
        (dict(lg_enc_heads=0), "lg_enc_heads=0: expected at least 1"),
        (dict(cross_attn_dim_head=-1), "cross_attn_dim_head=-1: expected at least 1"),
        (dict(sm_enc_depth=-1), "sm_enc_depth=-1: expected at least 0"),
        (dict(cross_attn_depth=-1), "cross_attn_depth=-1: expected at least 0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["cross_vit"], **kwargs)
