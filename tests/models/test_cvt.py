"""Features of CvT only."""

import pytest

from vit_jax import create_model


@pytest.mark.parametrize("kwargs", [dict(s2_proj_kernel=4), dict(s3_emb_dim=0), dict(s1_depth=-1), dict(image_size=0)])
def test_bad_arguments_are_named(kwargs):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        create_model("cvt", num_classes=2, **kwargs)
