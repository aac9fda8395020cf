"""torchvision's ViT: published files with older keys."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.convert import from_torch, to_torch
from vit_jax.pretrained.torchvision.vit import VisionTransformer

torch = pytest.importorskip("torch")
from tests.upstream import shake  # noqa: E402, which makes torchvision importable

torchvision = pytest.importorskip("torchvision")


def test_older_keys_load_as_torchvision_loads_them():
    sizes = dict(image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=4, mlp_dim=6, num_classes=3)
    theirs = torchvision.models.VisionTransformer(**sizes)
    renamed = lambda key: key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
    today = shake(theirs).state_dict()
    former = {renamed(key): value.numpy().copy() for key, value in today.items()}
    assert "encoder.layers.encoder_layer_1.mlp.linear_2.bias" in former.keys() - today.keys()

    shake(theirs).load_state_dict({key: torch.tensor(value) for key, value in former.items()})
    model = VisionTransformer(**sizes)
    ours = to_torch(model, from_torch(model, former, jnp.zeros((1, 16, 16, 3))))
    assert ours.keys() == today.keys()
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
