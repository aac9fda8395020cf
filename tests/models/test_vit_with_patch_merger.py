"""The block after which tokens are merged, and the number of merged tokens."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import create_model

SIZES = dict(image_size=8, patch_size=2, dim=8, heads=1, mlp_dim=8, num_classes=0)


@pytest.mark.parametrize(
    ("depth", "layer", "keys"),
    [(3, None, [16, 5, 5]), (4, None, [16, 16, 5, 5]), (2, 2, [16, 16]), (2, 0, [16, 16]), (1, None, [16])],
)
def test_tokens_are_merged_behind_one_block(depth, layer, keys):
    model = create_model(
        "vit_with_patch_merger", depth=depth, patch_merge_layer=layer, patch_merge_num_tokens=5, **SIZES
    )
    images = jnp.ones((2, 8, 8, 3))

    def collect():
        variables = model.init(jax.random.key(0), images)
        return model.apply({"params": variables["params"]}, images, mutable=["intermediates"])

    tokens, collected = jax.eval_shape(collect)
    maps = collected["intermediates"]["transformer"]
    assert [maps[f"attn_{i}"]["attn"][0].shape[-1] for i in range(depth)] == keys
    merges = layer != 0 and depth > 1
    assert ("patch_merger" in maps) == merges
    assert tokens.shape == (2, 5 if merges else 16, 8)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("patch_merge_layer", 5, "patch_merge_layer=5: expected 0 to depth=4"),
        ("patch_merge_layer", -1, "patch_merge_layer=-1: expected 0 to depth=4"),
        ("patch_merge_num_tokens", 0, "patch_merge_num_tokens=0: expected at least 1"),
    ],
)
def test_bad_merges_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        create_model("vit_with_patch_merger/tiny", num_classes=2, **{argument: value})
