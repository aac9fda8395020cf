"""ShuffleNet V2: its arguments."""

import pytest

from vit_jax import create_model


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(stages_repeats=(4, 8)), r"stages_out_channels=\(24, 48, 96, 192, 1024\): expected 4 numbers"),
        (dict(stages_repeats=(4, 0, 4)), r"stages_repeats=\(4, 0, 4\): expected at least 1"),
        (dict(stages_out_channels=(3, 8, 9, 8, 5)), "expected even numbers between the first and the last"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("shufflenet_v2_x0_5", **kwargs)
