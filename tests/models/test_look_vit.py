"""Invalid arguments of LookViT."""

import pytest

from tests.cases import FIRST
from tests.cases.case import build


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(highres_patch_size=3), r"image_size=\(16, 16\): expected multiples of highres_patch_size=3"),
        (dict(highres_patch_size=4), "patch_size=4: expected more than highres_patch_size=4"),
        (dict(patch_conv_kernel_size=4), "patch_conv_kernel_size=4: expected an odd number"),
        (dict(dim=26), "dim=26: expected a multiple of 4"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["look_vit"], **kwargs)
