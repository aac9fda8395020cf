"""Files in the layouts of Meta, OpenAI, OpenCLIP and Google, read by us and by timm into the same network."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained.timm_models import eva, timm, vision_transformer
from tests.upstream import torch
from vit_jax import create_model
from vit_jax.convert import from_torch
from vit_jax.pretrained.publishers import read, recognise

D, M, HEADS, POSITIONS, CLASSES = 32, 48, 4, 4, 6  # POSITIONS: patches of an 8x8 image
SWIGLU = 64  # a multiple of what timm rounds up to


def linear(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norms(*names):
    return {f"{name}.{p}": (D,) for name in names for p in ("weight", "bias")}


def blocks(block, depth=2):
    """The shapes of `block`, with the names of each block."""
    return {f"{name}".format(i=i): shape for i in range(depth) for name, shape in block.items()}


def tower(**others):
    """The shapes of a vision transformer by timm, and `others`."""
    block = norms("blocks.{i}.norm1", "blocks.{i}.norm2") | linear("blocks.{i}.attn.qkv", 3 * D, D)
    block |= linear("blocks.{i}.attn.proj", D, D) | linear("blocks.{i}.mlp.fc1", M, D)
    block |= linear("blocks.{i}.mlp.fc2", D, M)
    return linear("patch_embed.proj", D, 3, 4, 4) | norms("norm") | blocks(block) | others


CLASS_TOKEN = dict(cls_token=(1, 1, D), pos_embed=(1, 1 + POSITIONS, D))
SCALES = blocks({"blocks.{i}.ls1.gamma": (D,), "blocks.{i}.ls2.gamma": (D,)})
DINO = tower(**SCALES, cls_token=(1, 1, D), mask_token=(1, D))
DINOV2 = DINO | dict(pos_embed=(1, 1 + POSITIONS, D))
MASKS = blocks({"blocks.{i}.attn.qkv.bias_mask": (3 * D,)})
DINOV3 = DINO | MASKS | {"storage_tokens": (1, 4, D), "rope_embed.periods": (2,)}
DINOV3 |= norms("local_cls_norm")


def below(prefix, shapes):
    return {prefix + key: shape for key, shape in shapes.items()}


def without(shapes, *parts):
    return {key: shape for key, shape in shapes.items() if not any(part in key for part in parts)}


def packed(shapes):
    """With the packed SwiGLU of DINOv2."""
    block = linear("blocks.{i}.mlp.w12", 2 * SWIGLU, D) | linear("blocks.{i}.mlp.w3", D, SWIGLU)
    return without(shapes, ".mlp.") | blocks(block)


def gated(shapes):
    """With the SwiGLU of DINOv3."""
    block = linear("blocks.{i}.mlp.w1", SWIGLU, D) | linear("blocks.{i}.mlp.w2", SWIGLU, D)
    return without(shapes, ".mlp.") | blocks(block | linear("blocks.{i}.mlp.w3", D, SWIGLU))


def clip():
    block = norms("ln_1", "ln_2") | linear("attn.out_proj", D, D)
    block |= {"attn.in_proj_weight": (3 * D, D), "attn.in_proj_bias": (3 * D,)}
    block |= linear("mlp.c_fc", M, D) | linear("mlp.c_proj", D, M)
    shapes = blocks({f"transformer.resblocks.{{i}}.{key}": shape for key, shape in block.items()})
    shapes |= dict(class_embedding=(D,), positional_embedding=(1 + POSITIONS, D), proj=(D, CLASSES))
    shapes |= norms("ln_pre", "ln_post") | {"conv1.weight": (D, 3, 4, 4)}
    text = {"logit_scale": (), "positional_embedding": (7, 8), "transformer.resblocks.0.ln_1.weight": (8,)}
    return below("visual.", shapes) | text


def flax_attention(name, heads=HEADS):
    maps = {f"{name}/{n}/kernel": (D, heads, D // heads) for n in ("query", "key", "value")}
    maps |= {f"{name}/{n}/bias": (heads, D // heads) for n in ("query", "key", "value")}
    return maps | {f"{name}/out/kernel": (heads, D // heads, D), f"{name}/out/bias": (D,)}


def flax_norm(name):
    return {f"{name}/scale": (D,), f"{name}/bias": (D,)}


def flax_mlp(name):
    return {
        f"{name}/Dense_0/kernel": (D, M),
        f"{name}/Dense_0/bias": (M,),
        f"{name}/Dense_1/kernel": (M, D),
        f"{name}/Dense_1/bias": (D,),
    }


def flax_tower(attention, norm, mlp, scanned=False, **others):
    block = flax_attention(attention) | flax_norm("LayerNorm_0") | flax_norm(norm) | flax_mlp(mlp)
    shapes = {"embedding/kernel": (4, 4, 3, D), "embedding/bias": (D,)} | flax_norm("Transformer/encoder_norm") | others
    if scanned:
        return shapes | {f"Transformer/encoderblock/{key}": (2, *shape) for key, shape in block.items()}
    return shapes | blocks({f"Transformer/encoderblock_{{i}}/{key}": shape for key, shape in block.items()})


HEAD = {"head/kernel": (D, CLASSES), "head/bias": (CLASSES,)}
OLD = flax_tower("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3", cls=(1, 1, D)) | HEAD
OLD |= {"Transformer/posembed_input/pos_embedding": (1, 1 + POSITIONS, D)}
MAP = flax_attention("MAPHead_0/MultiHeadDotProductAttention_0") | flax_norm("MAPHead_0/LayerNorm_0")
MAP |= flax_mlp("MAPHead_0/MlpBlock_0") | {"MAPHead_0/probe": (1, 1, D)}
PATCHES = dict(pos_embedding=(1, POSITIONS, D))
NEW = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
FLEXI = flax_tower(*NEW, cls=(1, 1, D), **PATCHES) | HEAD
TEXT = {"params/t": (1,), "params/txt/head/bias": (7,)}
TRUNK = below("visual.trunk.", tower(**CLASS_TOKEN) | norms("norm_pre"))
TRUNK = without(TRUNK, "patch_embed.proj.bias") | {
    "visual.head.proj.weight": (CLASSES, D),
    "text.ln_final.weight": (8,),
}

# Layout, timm's network, and the shapes in the file.
ROWS = [
    ("timm", "deit_small_patch16_224", tower(**CLASS_TOKEN) | linear("head", CLASSES, D)),
    ("meta_mae", "vit_base_patch16_224", tower(**CLASS_TOKEN, mask_token=(1, 1, 8), decoder_pos_embed=(1, 5, 8))),
    ("meta_dinov2", "vit_small_patch14_dinov2", DINOV2),
    ("meta_dinov2", "vit_giant_patch14_dinov2", packed(DINOV2)),
    ("meta_dinov2", "vit_small_patch14_reg4_dinov2", DINOV2 | dict(register_tokens=(1, 4, D))),
    ("meta_dinov3", "vit_small_patch16_dinov3_qkvb", DINOV3),
    ("meta_dinov3", "vit_huge_plus_patch16_dinov3_qkvb", gated(DINOV3)),
    ("meta_dinov3", "vit_7b_patch16_dinov3", without(gated(DINOV3), "qkv.bias")),
    ("openai_clip", "vit_base_patch32_clip_quickgelu_224", clip()),
    ("openclip_timm", "vit_xsmall_patch16_clip_224", TRUNK),
    ("vision_transformer", "vit_small_patch16_224", OLD),
    ("vision_transformer", "vit_small_patch16_224", below("opt/target/", OLD)),
    ("big_vision", "flexivit_small", below("params/", FLEXI)),
    ("big_vision", "vit_base_patch16_siglip_224", below("params/img/", flax_tower(*NEW, **PATCHES) | MAP) | TEXT),
    ("big_vision", "vit_base_patch16_siglip_224", below("params/img/", flax_tower(*NEW, True, **PATCHES) | MAP) | TEXT),
]


def random(shapes):
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}


@pytest.mark.filterwarnings("ignore:.*trunc_normal_:UserWarning")
@pytest.mark.parametrize(("layout", "name", "shapes"), ROWS)
def test_files_are_read_as_timm_reads_them(layout, name, shapes, tmp_path):
    state = random(shapes)
    assert recognise(state) == layout
    classes = CLASSES if any(CLASSES in shape for shape in shapes.values()) else 0
    width = SWIGLU if any("mlp.w3" in key for key in shapes) else M
    ratio = width / D * (2 if "mlp.w12" in str(shapes) else 1)  # of the packed layer
    sizes = dict(img_size=8, patch_size=4, embed_dim=D, depth=2, num_heads=HEADS, num_classes=classes)
    theirs = timm.create_model(name, **sizes, mlp_ratio=ratio)
    read_by_timm(theirs, state, tmp_path)

    sizes = dict(image_size=8, patch_size=4, dim=D, depth=2, heads=HEADS, mlp_dim=width, num_classes=classes)
    ours = create_model(f"timm/{name}", **sizes)
    canonical = read(layout, state, ours)
    expected = ours.torch_layout.read({key: tensor.numpy() for key, tensor in theirs.state_dict().items()})
    assert canonical.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(canonical[key], value, err_msg=key)
    from_torch(ours.clone(layout=()), canonical, np.zeros((1, 8, 8, 3), np.float32))


def read_by_timm(model, state, folder):
    if "/" in min(state):
        np.savez(folder / "file.npz", **state)
        model.load_pretrained(folder / "file.npz")
        return
    file = eva if isinstance(model, eva.Eva) else vision_transformer
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    missing, left = model.load_state_dict(file.checkpoint_filter_fn(tensors, model), strict=False)
    assert not missing
    assert all(key.startswith(("decoder_", "visual.head.")) for key in left)


def test_bfloat16_in_numpys_files_is_read():
    """big_vision saves SigLIP 2 in bfloat16, which numpy reads back as two bytes without a type."""
    model = create_model("timm/vit_base_patch16_siglip_224", num_classes=0)
    state = {key: value.astype(jnp.bfloat16) for key, value in random(FLEXI).items()}
    untyped = {key: value.view("V2") for key, value in state.items()}
    expected, canonical = read("big_vision", state, model), read("big_vision", untyped, model)
    for key, value in expected.items():
        assert canonical[key].dtype == jnp.bfloat16
        np.testing.assert_array_equal(canonical[key], value)


def test_biases_of_dinov3_are_left_out_only_where_they_are_zero():
    biases = [f"blocks.{i}.attn.{n}_bias" for i in range(2) for n in "qv"]
    model = create_model("timm/vit_small_patch16_dinov3")
    zeros = {key: value * ("qkv.bias" not in key) for key, value in random(DINOV3).items()}
    canonical = read("meta_dinov3", zeros, model)
    assert not canonical.keys() & set(biases)
    assert read("meta_dinov3", random(DINOV3), model).keys() - canonical.keys() == set(biases)


BACKBONE = below("backbone.", tower(**CLASS_TOKEN))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            dict.fromkeys(["conv1.weight", "layer1.0.bn1.bias"]),
            "'conv1.weight', 'layer1.0.bn1.bias', ...: no layout of",
        ),
        ({}, r"none, ...: no layout of a vision transformer has these: transformers_vit, .*big_vision$"),
        (DINOV2 | clip(), "these fit several layouts: meta_dinov2 and openai_clip"),
        (below("module.", clip()), r"below 'module\.' \(openai_clip\): .*select\(state, 'module\.'\)"),
        ({"model": DINOV2, "epoch": 3}, r"below 'model\.' \(meta_dinov2\): .*select\(state, 'model\.'\)"),
        (
            {"student": below("module.", BACKBONE), "teacher": BACKBONE},
            r"below 'teacher\.backbone\.' \(timm\) and 'student\.module\.backbone\.' \(timm\): .*'teacher\.backbone\.'",
        ),
    ],
)
def test_what_is_not_recognised_is_refused_in_one_line(state, message):
    with pytest.raises(ValueError, match=message) as error:
        recognise(state)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused_in_a_few_lines():
    model = create_model("timm/vit_small_patch14_dinov2", num_classes=0)
    canonical = read("meta_dinov2", random(DINOV2), model)
    with pytest.raises(ValueError, match="does not fit VisionTransformer") as error:
        from_torch(model.clone(layout=()), canonical, np.zeros((1, 518, 518, 3), np.float32))
    assert len(str(error.value).splitlines()) <= 20
