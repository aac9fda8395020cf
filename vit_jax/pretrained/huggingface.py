"""The layouts of Hugging Face's transformers, as its `save_pretrained` writes them and the hub has them."""

from vit_jax.pretrained.layouts import Rename
from vit_jax.pretrained.reading import (
    CLASS_POSITION,
    POOL,
    POOL_KEYS_AND_VALUES,
    POSITIONS,
    AddAxes,
    Drop,
    FlatPatches,
    Projection,
    Published,
    Undo,
    join,
    rename,
)

_BLOCK = "encoder.layer.{i}"
_EMBEDDINGS = rename(
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
    ("layernorm.{p}", "norm.{p}"),
    ("classifier.{p}", "head.{p}"),
)
_ATTENTION = (
    *join(tuple(f"{_BLOCK}.attention.attention.{n}" for n in ("query", "key", "value")), "blocks.{i}.attn.qkv"),
    Rename(f"{_BLOCK}.attention.output.dense.{{p}}", "blocks.{i}.attn.proj.{p}"),
)
_VIT = (
    Drop(r"pooler\..*|embeddings\.mask_token|decoder\..*"),
    *_EMBEDDINGS,
    *_ATTENTION,
    *rename(
        (f"{_BLOCK}.layernorm_before.{{p}}", "blocks.{i}.norm1.{p}"),
        (f"{_BLOCK}.layernorm_after.{{p}}", "blocks.{i}.norm2.{p}"),
        (f"{_BLOCK}.intermediate.dense.{{p}}", "blocks.{i}.mlp.fc1.{p}"),
        (f"{_BLOCK}.output.dense.{{p}}", "blocks.{i}.mlp.fc2.{p}"),
    ),
)
_DEIT_TEACHER = (
    *_VIT,
    *rename(
        ("embeddings.distillation_token", "dist_token"),
        ("cls_classifier.{p}", "head.{p}"),
        ("distillation_classifier.{p}", "head_dist.{p}"),
    ),
    POSITIONS,
)
_DINOV2 = (
    Drop(r"embeddings\.mask_token"),
    *_EMBEDDINGS,
    *_ATTENTION,
    *rename(
        ("embeddings.register_tokens", "reg_token"),
        (f"{_BLOCK}.norm{{n}}.{{p}}", "blocks.{i}.norm{n}.{p}"),
        (f"{_BLOCK}.layer_scale{{n}}.lambda1", "blocks.{i}.ls{n}.gamma"),
        (f"{_BLOCK}.mlp.fc{{n}}.{{p}}", "blocks.{i}.mlp.fc{n}.{p}"),
        (f"{_BLOCK}.mlp.weights_in.{{p}}", "blocks.{i}.mlp.fc1.{p}"),
        (f"{_BLOCK}.mlp.weights_out.{{p}}", "blocks.{i}.mlp.fc2.{p}"),
    ),
    CLASS_POSITION,
)
_DINOV3 = (
    Drop(r"embeddings\.mask_token"),
    *join(tuple(f"layer.{{i}}.attention.{n}_proj" for n in "qkv"), "blocks.{i}.attn.qkv"),
    *join(("layer.{i}.mlp.gate_proj", "layer.{i}.mlp.up_proj"), "blocks.{i}.mlp.fc1"),
    *rename(
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.patch_embeddings.{p}", "patch_embed.proj.{p}"),
        ("layer.{i}.attention.q_proj.bias", "blocks.{i}.attn.q_bias"),  # where keys have no bias
        ("layer.{i}.attention.v_proj.bias", "blocks.{i}.attn.v_bias"),
        ("layer.{i}.attention.o_proj.{p}", "blocks.{i}.attn.proj.{p}"),
        ("layer.{i}.norm{n}.{p}", "blocks.{i}.norm{n}.{p}"),
        ("layer.{i}.layer_scale{n}.lambda1", "blocks.{i}.ls{n}.gamma"),
        ("layer.{i}.mlp.up_proj.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("layer.{i}.mlp.down_proj.{p}", "blocks.{i}.mlp.fc2.{p}"),
    ),
)
_TOWER = (  # of CLIP and SigLIP
    Drop(r"embeddings\.position_ids"),
    *join(tuple(f"encoder.layers.{{i}}.self_attn.{n}_proj" for n in "qkv"), "blocks.{i}.attn.qkv"),
    *rename(
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding.weight", "pos_embed"),
        ("embeddings.patch_embedding.{p}", "patch_embed.proj.{p}"),
        ("encoder.layers.{i}.self_attn.out_proj.{p}", "blocks.{i}.attn.proj.{p}"),
        ("encoder.layers.{i}.layer_norm{n}.{p}", "blocks.{i}.norm{n}.{p}"),
        ("encoder.layers.{i}.mlp.{layer}.{p}", "blocks.{i}.mlp.{layer}.{p}"),
        ("pre_layrnorm.{p}", "norm_pre.{p}"),
        ("post_layernorm.{p}", "norm.{p}"),
        ("classifier.{p}", "head.{p}"),
    ),
    AddAxes("cls_token", 3),
    AddAxes("pos_embed", 3),
    FlatPatches("patch_embed.proj.weight"),
)
_CLIP = (*_TOWER, CLASS_POSITION, Projection("visual_projection.weight"))
_SIGLIP = (
    *rename(
        ("head.probe", "attn_pool.latent"),
        ("head.attention.in_proj_weight", "head.attention.in_proj.weight"),
        ("head.attention.in_proj_bias", "head.attention.in_proj.bias"),
        ("head.attention.out_proj.{p}", "attn_pool.proj.{p}"),
        ("head.layernorm.{p}", "attn_pool.norm.{p}"),
        ("head.mlp.{layer}.{p}", "attn_pool.mlp.{layer}.{p}"),
    ),
    *map(Undo, join(POOL, "head.attention.in_proj")),
    *POOL_KEYS_AND_VALUES,
    *_TOWER,
)
_SIGLIP_CLASSIFIER = (Drop(r"head\..*"), *_TOWER)  # it reads the mean, not the attention pooling in its file

_VIT_SIGNS = ("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layernorm_before.weight")
_DISTILLED = "embeddings.distillation_token"
_TOWER_SIGNS = ("embeddings.patch_embedding.weight", "encoder.layers.0.layer_norm1.weight", "post_layernorm.weight")
_CLASSIFIER = ("classifier.weight", "classifier.bias")
_TEACHER = tuple(f"{name}_classifier.{p}" for name in ("cls", "distillation") for p in ("weight", "bias"))
_TOWER_PREFIXES = ("", "vision_model.")

TRANSFORMERS = {
    "transformers_vit": Published(
        _VIT_SIGNS, (*_VIT, POSITIONS), ("", "vit.", "ijepa."), beside=_CLASSIFIER, foreign=(_DISTILLED,)
    ),
    "transformers_deit": Published(
        (*_VIT_SIGNS, _DISTILLED),
        (*_VIT, Rename(_DISTILLED, "reg_token"), POSITIONS),
        ("", "deit."),
        beside=_CLASSIFIER,
        foreign=_TEACHER,
    ),
    "transformers_deit_teacher": Published(
        (*_VIT_SIGNS, _DISTILLED), _DEIT_TEACHER, ("deit.",), beside=_TEACHER, needs=_TEACHER
    ),
    "transformers_dinov2": Published(
        ("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layer_scale1.lambda1"),
        _DINOV2,
        ("", "dinov2.", "dinov2_with_registers."),
    ),
    "transformers_dinov3": Published(
        ("embeddings.patch_embeddings.weight", "layer.0.layer_scale1.lambda1"), _DINOV3, ("", "dinov3_vit.")
    ),
    "transformers_siglip": Published(
        _TOWER_SIGNS, _SIGLIP, _TOWER_PREFIXES, foreign=("embeddings.class_embedding", *_CLASSIFIER)
    ),
    "transformers_siglip_classifier": Published(
        _TOWER_SIGNS,
        _SIGLIP_CLASSIFIER,
        ("vision_model.",),
        beside=_CLASSIFIER,
        needs=_CLASSIFIER,
        foreign=("embeddings.class_embedding",),
    ),
    "transformers_clip": Published(
        (*_TOWER_SIGNS, "pre_layrnorm.weight"), _CLIP, _TOWER_PREFIXES, beside=("visual_projection.weight",)
    ),
}
