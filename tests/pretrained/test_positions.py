"""Positions at another resolution, against timm's."""

import jax
import numpy as np
import pytest

from tests.pretrained.timm_models import timm
from tests.upstream import channels_first, shake, torch
from vit_jax import create_model
from vit_jax.convert import from_torch
from vit_jax.pretrained.positions import resample_positions

GRIDS = [((7, 7), (9, 9)), ((7, 7), (4, 4)), ((8, 8), (5, 13)), ((3, 10), (8, 4)), ((2, 3), (3, 2)), ((5, 5), (5, 5))]


@pytest.mark.parametrize(("old", "new"), GRIDS, ids=str)
def test_positions_equal_timms(old, new):
    positions = np.random.default_rng(0).standard_normal((1, old[0] * old[1], 8), np.float32)
    resample = timm.layers.resample_abs_pos_embed
    expected = resample(torch.from_numpy(positions), new_size=new, old_size=old, num_prefix_tokens=0).numpy()
    ours = resample_positions(positions, old, new)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def test_pixels_that_fill_no_patch_are_left_out_as_in_timm():
    """The images of two published networks have 384 pixels, and patches of 14."""
    name = "vit_so400m_patch14_siglip_384"
    theirs = shake(timm.create_model(name, img_size=(15, 14), patch_size=4, embed_dim=16, depth=1, num_heads=2))
    sizes = dict(image_size=(15, 14), patch_size=4, dim=16, depth=1, heads=2, num_classes=0)
    ours = create_model(f"timm/{name}", mlp_dim=theirs.blocks[0].mlp.fc1.out_features, **sizes)
    assert ours.grid == (3, 3)
    images = np.random.default_rng(0).standard_normal((2, 15, 14, 3), np.float32)
    variables = from_torch(ours, {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}, images)
    with torch.no_grad():
        expected = theirs.forward_features(channels_first(images)).numpy()
    found = jax.jit(ours.apply)(variables, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("old", "new"), GRIDS, ids=str)
def test_positions_without_antialiasing_equal_torchs(old, new):
    positions = np.random.default_rng(0).standard_normal((1, old[0] * old[1], 8), np.float32)
    grid = torch.from_numpy(positions).reshape(1, *old, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 8).numpy()
    ours = resample_positions(positions, old, new, antialias=False)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore:.*trunc_normal_:UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",  # learned positions, with rows for the class token
        "vit_small_patch16_rope_ape_224",  # learned ones, and rotary ones that count patches
        "vit_small_patch16_rope_mixed_224",
        "vit_small_patch16_dinov3_qkvb",
        "eva02_tiny_patch14_224",  # rotary ones rescaled to a reference
    ],
)
def test_images_of_another_size_equal_timms(name):
    sizes = dict(patch_size=4, embed_dim=32, depth=1, num_heads=4, num_classes=5)
    theirs = shake(timm.create_model(name, img_size=(8, 12), dynamic_img_size=True, **sizes))
    mlp_dim = theirs.blocks[0].mlp.fc2.in_features
    sizes = dict(patch_size=4, dim=32, depth=1, heads=4, num_classes=5, mlp_dim=mlp_dim)
    ours = create_model(f"timm/{name}", image_size=(8, 12), **sizes)
    images = np.random.default_rng(0).standard_normal((2, 20, 8, 3), np.float32)
    variables = from_torch(ours, {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}, images)
    with torch.no_grad():
        expected = theirs(channels_first(images)).numpy()
    assert np.abs(jax.jit(ours.apply)(variables, images) - expected).max() <= 1e-5 * np.abs(expected).max()
