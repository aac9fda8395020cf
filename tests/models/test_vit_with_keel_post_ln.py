"""Arguments of Keel only."""

import pytest

from vit_jax import create_model


def test_a_single_block_is_too_few():
    with pytest.raises(ValueError, match="depth=1: expected at least 2"):
        create_model("vit_with_keel_post_ln/tiny", num_classes=2, depth=1)
