"""Weight decay and layer-wise learning rates of real models' parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim.updates import flat, with_
from train.build import make_network
from train.optim import decay_mask, layer_scales, make_optimizer


def tree(*paths):
    """Nested dicts with an abstract leaf at each of these paths."""
    root = {}
    for path in paths:
        *parents, leaf = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    return root


def test_decay_reaches_kernels_only():
    decayed = {
        "to_patch_embedding/proj/kernel",
        "patch_transformer/attn_0/to_qkv/kernel",
        "pool_0/depthwise/kernel",
        "mlp_head/fc/kernel",
    }
    spared = {
        "to_patch_embedding/proj/bias",
        "to_patch_embedding/norm/scale",
        "cls_token",
        "distillation_token",
        "pos_embedding",
        "patch_transformer/attn_0/mix_heads_pre_attn",
        "patch_transformer/attn_scale_0",
        "patch_transformer/norm/bias",
    }
    mask = flat(decay_mask(tree(*decayed, *spared)))
    assert {path for path, on in mask.items() if on} == decayed
    assert {path for path, on in mask.items() if not on} == spared


# Each model's parameters by layer, first to last.
MODELS = {
    "vit": [
        {"to_patch_embedding/proj/kernel", "to_patch_embedding/norm_1/scale", "cls_token", "pos_embedding"},
        *(
            {
                f"transformer/attn_{i}/to_qkv/kernel",
                f"transformer/ff_{i}/fc1/bias",
                f"transformer/ff_{i}/norm/scale",
            }
            for i in range(12)  # ten comes after nine, not after one
        ),
        {"transformer/norm/scale", "mlp_head/kernel", "mlp_head/bias"},
    ],
    "t2t, distilled": [
        {
            "student/to_patch_embedding/transformer_1/attn_0/to_qkv/kernel",
            "student/to_patch_embedding/proj/kernel",
            "student/cls_token",
            "distillation_token",
        },
        {"student/transformer/attn_0/to_qkv/kernel", "student/transformer/ff_0/fc2/kernel"},
        {"student/transformer/attn_1/to_qkv/kernel"},
        {"student/mlp_head/kernel", "distill_mlp/fc/kernel"},
    ],
    "pit": [
        {"to_patch_embedding/kernel", "pos_embedding"},
        {"stage_0/attn_0/to_qkv/kernel", "stage_0/ff_0/fc1/kernel"},
        {"stage_0/attn_1/to_qkv/kernel"},
        {"pool_0/depthwise/kernel", "pool_0/cls_ff/kernel"},
        {"stage_1/attn_0/to_qkv/kernel"},
        {"mlp_head/fc/kernel"},
    ],
    "cait": [
        {"to_patch_embedding/proj/kernel", "cls_token"},
        {"patch_transformer/attn_0/to_q/kernel", "patch_transformer/attn_scale_0"},
        {"patch_transformer/attn_1/to_q/kernel", "patch_transformer/ff_scale_1"},
        {"cls_transformer/attn_0/to_q/kernel", "cls_transformer/attn_scale_0"},
        {"cls_transformer/ff_1/fc1/kernel"},
        {"mlp_head/norm/scale"},
    ],
    "levit": [
        {"stem_3/kernel"},
        {"attn_0_0/to_q/kernel", "ff_0_0/fc1/kernel"},
        {"attn_0_1/to_q/kernel"},
        {"attn_1_0/to_q/kernel"},
        {"mlp_head/kernel"},
    ],
    "twins": [
        {"embed_0/proj/kernel"},
        {"first_0/local_attn_0/to_q/kernel", "first_0/global_ff_0/fc1/kernel"},
        {"peg_0/kernel"},
        {"embed_1/proj/kernel"},
        {"first_1/local_attn_0/to_q/kernel"},
        {"head/kernel"},
    ],
}


@pytest.mark.parametrize("model", MODELS)
def test_layer_scales_shrink_from_the_head_to_the_embedding(model):
    layers = MODELS[model]
    scales = flat(layer_scales(tree(*set().union(*layers)), 0.5))
    expected = {path: 0.5 ** (len(layers) - 1 - i) for i, layer in enumerate(layers) for path in layer}
    assert scales == expected


# Layers of published networks, first to last: a pattern of the parameters of each.
TIMM = [
    r"to_patch_embedding/.*|(cls|reg|distillation)_token|pos_embedding|norm_pre/.*",
    *(rf"transformer/block_{i}/.*" for i in range(12)),
    r"(norm|classifier|classifier_dist)/.*",
]
SWIN = enumerate((2, 1, 2, 1, 6, 1, 2), 1)  # stages, and the patch merging between them
LAYERS = {
    "timm/vit_base_patch16_clip_224": TIMM,  # has norm_pre
    "timm/deit_tiny_distilled_patch16_224": TIMM,
    "timm/vit_small_patch14_reg4_dinov2": TIMM,
    "timm/pit_s_distilled_224": [
        r"patch_embed/.*|pos_embed|cls_token",
        *(rf"stage_0/block_{i}/.*" for i in range(2)),
        r"down_1/.*",
        *(rf"stage_1/block_{i}/.*" for i in range(6)),
        r"down_2/.*",
        *(rf"stage_2/block_{i}/.*" for i in range(4)),
        r"(norm|head|head_dist)/.*",
    ],
    "timm/levit_128s": [
        r"stem_.*",
        *(rf"(attn|ff)_{stage}_{i}/.*" for stage, depth in enumerate((2, 1, 3, 1, 4)) for i in range(depth)),
        r"(mlp_head|distill_head)(_norm)?/.*",
    ],
    "vit_b_16": [
        "class_token|conv_proj/.*|pos_embedding",
        *(rf"encoder_layer_{i}/.*" for i in range(12)),
        r"(ln|head)/.*",
    ],
    "swin_t": [
        r"features_0_[02]/.*",
        *(rf"features_{i}_{j}/.*" if n > 1 else rf"features_{i}/.*" for i, n in SWIN for j in range(n)),
        r"(norm|head)/.*",
    ],
    "convnext_tiny": [
        r"features_0_[01]/.*",
        *(rf"features_{i}_{j}/.*" for i, n in enumerate((3, 2, 3, 2, 9, 2, 3), 1) for j in range(n)),
        r"(norm|head)/.*",
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_scales_of_published_networks(name):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    scales = flat(layer_scales(jax.eval_shape(make_network(name).init, jax.random.key(0), images)["params"], 0.5))
    layers = LAYERS[name]
    for path, scale in scales.items():
        assert [0.5 ** (len(layers) - 1 - i) for i, layer in enumerate(layers) if re.fullmatch(layer, path)] == [scale]


def test_layer_decay_scales_the_whole_update():
    params = {name: {"kernel": jnp.full((2,), 4.0)} for name in ("to_patch_embedding", "attn_0", "attn_1", "mlp_head")}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = make_optimizer(with_(name="sgd", layer_decay=0.5), lambda step: 0.1, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    whole = -0.1 * (1 + 0.8 + 0.3 * 4)
    for name, share in (("mlp_head", 1), ("attn_1", 1 / 2), ("attn_0", 1 / 4), ("to_patch_embedding", 1 / 8)):
        np.testing.assert_allclose(updates[name]["kernel"], whole * share, rtol=1e-6)
