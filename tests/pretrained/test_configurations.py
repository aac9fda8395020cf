"""`VisionTransformer` against Hugging Face's transformers, with the folders that its `save_pretrained` writes."""

import functools
import json

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
from tests.upstream import channels_first, shake, torch

transformers = pytest.importorskip("transformers")
from safetensors.numpy import load_file  # noqa: E402

from vit_jax.convert import from_torch  # noqa: E402
from vit_jax.pretrained.architectures import ARCHITECTURES  # noqa: E402
from vit_jax.pretrained.configurations import FAMILIES, arguments_of  # noqa: E402
from vit_jax.pretrained.publishers import read, recognise  # noqa: E402
from vit_jax.pretrained.vision_transformer import VisionTransformer  # noqa: E402

DIMS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, patch_size=4)
SIZES = DIMS | dict(intermediate_size=48, image_size=8)
WIDE = SIZES | dict(image_size=[8, 12])
DINO = DIMS | dict(mlp_ratio=2, image_size=8)
TEXT = DIMS | dict(intermediate_size=48, vocab_size=9, bos_token_id=1, eos_token_id=2)
DINOV3 = SIZES | dict(num_register_tokens=3)
TOKENS, LOGITS, POOLED = dict(tokens="last_hidden_state"), dict(logits="logits"), dict(pooled="pooler_output")

# Class, arguments of its configuration, and what outputs of ours its outputs are.
ROWS = [
    ("ViTModel", WIDE | dict(hidden_act="gelu_pytorch_tanh"), TOKENS),
    ("ViTForImageClassification", WIDE | dict(num_labels=5, qkv_bias=False), LOGITS),
    ("ViTMAEForPreTraining", SIZES | dict(mask_ratio=0.0), TOKENS),
    ("ViTMSNModel", SIZES, TOKENS),
    ("IJepaForImageClassification", WIDE | dict(num_labels=5), LOGITS),
    ("DeiTModel", WIDE, TOKENS),
    ("DeiTForImageClassification", WIDE, LOGITS),
    ("DeiTForImageClassificationWithTeacher", WIDE | dict(num_labels=5), LOGITS),
    ("Dinov2Model", DINO, TOKENS | POOLED),
    ("Dinov2WithRegistersModel", DINO | dict(use_swiglu_ffn=True, num_register_tokens=3), TOKENS | POOLED),
    ("DINOv3ViTModel", DINOV3, TOKENS | POOLED),
    ("DINOv3ViTModel", DINOV3 | dict(use_gated_mlp=True, hidden_act="silu", key_bias=True), TOKENS | POOLED),
    ("SiglipVisionModel", SIZES, TOKENS | POOLED),
    ("SiglipModel", dict(vision_config=SIZES, text_config=TEXT), POOLED),
    ("SiglipForImageClassification", dict(vision_config=SIZES, num_labels=5), LOGITS),
    ("Siglip2VisionModel", DIMS | dict(intermediate_size=48, num_patches=4), TOKENS | POOLED),
    ("CLIPVisionModel", SIZES, POOLED),
    ("CLIPVisionModelWithProjection", SIZES | dict(projection_dim=16), dict(logits="image_embeds")),
    ("CLIPModel", dict(vision_config=SIZES, text_config=TEXT, projection_dim=16), dict(logits="pooler_output")),
]


def outputs_of(theirs, images):
    pixels, name = channels_first(images), type(theirs).__name__
    if name == "ViTMAEForPreTraining":
        patches = pixels.shape[-1] * pixels.shape[-2] // 16
        return theirs.vit(pixels, noise=torch.arange(patches)[None].expand(2, -1))
    if name == "Siglip2VisionModel":
        patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(2, 4, 48)
        return theirs(patches, torch.ones(2, 4), torch.tensor([[2, 2], [2, 2]]))
    return theirs.get_image_features(pixels) if hasattr(theirs, "get_image_features") else theirs(pixels)


def outputs(model, images):
    tokens = model.encode(images)
    made = {"tokens": tokens, "pooled": model.pooled(tokens)}
    return made | {"logits": model.head(tokens)} if model.num_classes else made


@pytest.mark.parametrize(("name", "config", "compared"), ROWS)
def test_saved_folders_give_the_same_features(name, config, compared, tmp_path):
    model_class = getattr(transformers, name)
    theirs = model_class(model_class.config_class(**config))
    ours = run = None
    for scale in (1.0, 0.1):
        shake(theirs, scale=scale).save_pretrained(tmp_path)
        arguments, layout = arguments_of(json.loads((tmp_path / "config.json").read_text()))
        state = load_file(tmp_path / "model.safetensors")
        assert recognise(state) == layout

        ours = ours or VisionTransformer(**arguments)
        run = run or jax.jit(functools.partial(ours.apply, method=outputs))
        sides = (8, 12) if "rope_theta" in vars(theirs.config) or config.get("image_size") == [8, 12] else (8, 8)
        images = np.random.default_rng(0).standard_normal((2, *sides, 3), np.float32) * np.float32(scale)
        made = run(from_torch(ours, read(layout, state, ours), images), images)
        with torch.no_grad():
            expected = outputs_of(theirs, images)
        for what, attribute in compared.items():
            value = getattr(expected, attribute).numpy()
            error = np.abs(np.asarray(made[what]) - value).max() / np.abs(value).max()
            assert made[what].shape == value.shape
            assert error <= 1e-5, f"{what}, {scale=}: relative error {error:.2g}"


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_are_those_of_transformers(kind):
    theirs = transformers.AutoConfig.for_model(kind)
    tower = getattr(theirs, "vision_config", theirs).to_dict() | dict(
        projection_dim=getattr(theirs, "projection_dim", 0)
    )
    ours = FAMILIES[kind].defaults
    assert {key: value for key, value in ours.items() if key in tower} == {
        key: tower[key] for key in ours if key in tower
    }
    assert arguments_of({"model_type": kind}) == arguments_of(json.loads(theirs.to_json_string(use_diff=False)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "swin"}, "model_type='swin': expected one of vit, vit_mae, .*clip_vision_model$"),
        ({}, "model_type=None: expected one of vit"),
        ({"model_type": "vit", "hidden_act": "relu"}, "hidden_act='relu': expected 'gelu' or 'gelu_pytorch_tanh' or"),
        ({"model_type": "vit", "hidden_size": "768"}, "hidden_size='768': expected an integer"),
        ({"model_type": "vit", "image_size": 224.5}, "image_size=224.5: expected an integer"),
        ({"model_type": "vit", "layer_norm_eps": None}, "layer_norm_eps=None: expected a number"),
        ({"model_type": "vit", "qkv_bias": "no"}, "qkv_bias='no': expected True or False"),
        ({"model_type": "clip", "vision_config": [1]}, r"vision_config=\[1\]: expected an object"),
        (
            {"model_type": "dinov2", "architectures": ["Dinov2ForImageClassification"]},
            "architectures=.*: expected one of",
        ),
        ({"model_type": "dinov3_vit", "value_bias": False}, "query_bias, key_bias, value_bias='q': expected those of"),
        ({"model_type": "dinov3_vit", "mlp_bias": False}, "mlp_bias=False: expected True"),
    ],
)
def test_what_is_not_supported_is_refused(config, message):
    with pytest.raises(ValueError, match=f"^config.json: {message}"):
        arguments_of(config)


def test_older_configurations_have_a_second_one_of_the_tower():
    """As OpenAI's CLIP on the hub: the values of `vision_config_dict` hold."""
    config = {"model_type": "clip", "vision_config": {"hidden_size": 768}, "vision_config_dict": {"hidden_size": 1024}}
    assert arguments_of(config)[0]["dim"] == 1024


def test_the_giant_of_dinov2_is_that_of_timm():
    """Its width of SwiGLU is computed from a ratio."""
    giant = dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, use_swiglu_ffn=True, image_size=518)
    arguments, _ = arguments_of({"model_type": "dinov2", **giant})
    theirs = ARCHITECTURES["vit_giant_patch14_dinov2"]
    assert arguments["mlp_dim"] == theirs["mlp_dim"] == 4096
    alike = theirs.keys() & arguments.keys() - {"layer_scale"}  # whose initial value is another
    assert {key: arguments[key] for key in alike} == {key: theirs[key] for key in alike}
