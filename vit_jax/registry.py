"""Table of all models by name. Importing it imports no model."""

import dataclasses
import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax import linen as nn

# Keys: the name of the upstream file, or "file:Class" for further classes of that file. Values: "module:Class".
MODELS = {
    "accept_video_wrapper": "vit_jax.models.accept_video_wrapper:AcceptVideoWrapper",
    "ats_vit": "vit_jax.models.ats_vit:ATSViT",
    "attn_residual_with_dca_simple_vit": "vit_jax.models.attn_residual_with_dca_simple_vit:DCASimpleViT",
    "cait": "vit_jax.models.cait:CaiT",
    "cct": "vit_jax.models.cct:CCT",
    "cct_3d": "vit_jax.models.cct_3d:CCT3D",
    "cross_vit": "vit_jax.models.cross_vit:CrossViT",
    "crossformer": "vit_jax.models.crossformer:CrossFormer",
    "cvt": "vit_jax.models.cvt:CvT",
    "deepvit": "vit_jax.models.deepvit:DeepViT",
    "distill:DistillableViT": "vit_jax.models.distill:DistillableViT",
    "efficient": "vit_jax.models.efficient:EfficientViT",
    "jet_vit": "vit_jax.models.jet_vit:JetViT",
    "jumbo_vit": "vit_jax.models.jumbo_vit:JumboViT",
    "learnable_memory_vit": "vit_jax.models.learnable_memory_vit:LearnableMemoryViT",
    "learnable_memory_vit:Adapter": "vit_jax.models.learnable_memory_vit:Adapter",
    "levit": "vit_jax.models.levit:LeViT",
    "levjepa:VideoTransformer": "vit_jax.models.levjepa:VideoTransformer",
    "levjepa_nd:NDTransformer": "vit_jax.models.levjepa_nd:NDTransformer",
    "local_vit": "vit_jax.models.local_vit:LocalViT",
    "look_vit": "vit_jax.models.look_vit:LookViT",
    "looped_vit": "vit_jax.models.looped_vit:LoopedViT",
    "max_vit": "vit_jax.models.max_vit:MaxViT",
    "max_vit_with_registers": "vit_jax.models.max_vit_with_registers:MaxViTWithRegisters",
    "mobile_vit": "vit_jax.models.mobile_vit:MobileViT",
    "mp3:ViT": "vit_jax.models.mp3:ViT",
    "na_vit": "vit_jax.models.na_vit:NaViT",
    "na_vit_nested_tensor": "vit_jax.models.na_vit_nested_tensor:NaViTNestedTensor",
    "na_vit_nested_tensor_3d": "vit_jax.models.na_vit_nested_tensor_3d:NaViTNestedTensor3D",
    "nest": "vit_jax.models.nest:NesT",
    "normalized_vit": "vit_jax.models.normalized_vit:NormalizedViT",
    "parallel_vit": "vit_jax.models.parallel_vit:ParallelViT",
    "pit": "vit_jax.models.pit:PiT",
    "regionvit": "vit_jax.models.regionvit:RegionViT",
    "rvt": "vit_jax.models.rvt:RvT",
    "scalable_vit": "vit_jax.models.scalable_vit:ScalableViT",
    "sep_vit": "vit_jax.models.sep_vit:SepViT",
    "simple_flash_attn_vit": "vit_jax.models.simple_flash_attn_vit:SimpleFlashAttentionViT",
    "simple_flash_attn_vit_3d": "vit_jax.models.simple_flash_attn_vit_3d:SimpleFlashAttentionViT3D",
    "simple_uvit": "vit_jax.models.simple_uvit:SimpleUViT",
    "simple_vit": "vit_jax.models.simple_vit:SimpleViT",
    "simple_vit_1d": "vit_jax.models.simple_vit_1d:SimpleViT1D",
    "simple_vit_3d": "vit_jax.models.simple_vit_3d:SimpleViT3D",
    "simple_vit_attn_residual": "vit_jax.models.simple_vit_attn_residual:SimpleViTAttnResidual",
    "simple_vit_orthog_residual_update": "vit_jax.models.simple_vit_orthog_residual_update:SimpleViTOrthogonalUpdate",
    "simple_vit_with_fft": "vit_jax.models.simple_vit_with_fft:SimpleViTWithFFT",
    "simple_vit_with_hyper_connections": "vit_jax.models.simple_vit_with_hyper_connections:SimpleViTHyperConnections",
    "simple_vit_with_patch_dropout": "vit_jax.models.simple_vit_with_patch_dropout:SimpleViTWithPatchDropout",
    "simple_vit_with_qk_norm": "vit_jax.models.simple_vit_with_qk_norm:SimpleViTWithQKNorm",
    "simple_vit_with_register_tokens": "vit_jax.models.simple_vit_with_register_tokens:SimpleViTWithRegisterTokens",
    "simple_vit_with_relative_proj_pos_bias": "vit_jax.models.simple_vit_with_relative_proj_pos_bias:RelativeBiasViT",
    "simple_vit_with_sparse_gating": "vit_jax.models.simple_vit_with_sparse_gating:SimpleViTWithSparseGating",
    "simple_vit_with_specialized_cls": "vit_jax.models.simple_vit_with_specialized_cls:SimpleViTWithSpecializedCLS",
    "simple_vit_with_value_residual": "vit_jax.models.simple_vit_with_value_residual:SimpleViTWithValueResidual",
    "t2t": "vit_jax.models.t2t:T2TViT",
    "twins_svt": "vit_jax.models.twins_svt:TwinsSVT",
    "vaat": "vit_jax.models.vaat:VAAT",
    "vaat:AST": "vit_jax.models.vaat:AST",
    "vaat:ViT": "vit_jax.models.vaat:ViT",
    "vat": "vit_jax.models.vat:VAT",
    "vat:ViT": "vit_jax.models.vat:ViT",
    "vat_siglip": "vit_jax.models.vat_siglip:SigLIPVAT",
    "vat_siglip:SigLIP": "vit_jax.models.vat_siglip:SigLIP",
    "vit": "vit_jax.models.vit:ViT",
    "vit:Transformer": "vit_jax.models.vit:Transformer",
    "vit_1d": "vit_jax.models.vit_1d:ViT1D",
    "vit_3d": "vit_jax.models.vit_3d:ViT3D",
    "vit_5": "vit_jax.models.vit_5:ViT5",
    "vit_detpool": "vit_jax.models.vit_detpool:ViTDetPool",
    "vit_for_small_dataset": "vit_jax.models.vit_for_small_dataset:ViTForSmallDataset",
    "vit_nd": "vit_jax.models.vit_nd:ViTND",
    "vit_nd_pope": "vit_jax.models.vit_nd_pope:ViTNDPoPE",
    "vit_nd_rotary": "vit_jax.models.vit_nd_rotary:ViTNDRotary",
    "vit_with_decorr": "vit_jax.models.vit_with_decorr:ViTWithDecorrelation",
    "vit_with_keel_post_ln": "vit_jax.models.vit_with_keel_post_ln:ViTWithKeelPostLN",
    "vit_with_patch_dropout": "vit_jax.models.vit_with_patch_dropout:ViTWithPatchDropout",
    "vit_with_patch_merger": "vit_jax.models.vit_with_patch_merger:ViTWithPatchMerger",
    "vivit": "vit_jax.models.vivit:ViViT",
    "vivit_with_moss": "vit_jax.models.vivit_with_moss:ViViTWithMOSS",
    "vivit_with_moss:MOSS": "vit_jax.layers.moss:MOSS",
    "wwt": "vit_jax.models.wwt:WWT",
    "wwt:AutoencodingHead": "vit_jax.models.wwt:AutoencodingHead",
    "xcit": "vit_jax.models.xcit:XCiT",
}

# Networks of torchvision in "file:Class", which are created by NAME, not by NAME/PRESET. Tests always run the first
# name of a class.
FAMILIES = {
    "alexnet:AlexNet": "alexnet",
    "convnext:ConvNeXt": "convnext_tiny convnext_small convnext_base convnext_large",
    "densenet:DenseNet": "densenet121 densenet161 densenet169 densenet201",
    "efficientnet:EfficientNet": (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 "
        "efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l"
    ),
    "googlenet:GoogLeNet": "googlenet",
    "inception:InceptionV3": "inception_v3",
    "maxvit:MaxVit": "maxvit_t",
    "mnasnet:MNASNet": "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    "mobilenet_v2:MobileNetV2": "mobilenet_v2",
    "mobilenet_v3:MobileNetV3": "mobilenet_v3_small mobilenet_v3_large",
    "regnet:RegNet": (
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf "
        "regnet_y_128gf regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf "
        "regnet_x_32gf"
    ),
    "resnet:ResNet": (
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d "
        "wide_resnet50_2 wide_resnet101_2"
    ),
    "shufflenet_v2:ShuffleNetV2": "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    "squeezenet:SqueezeNet": "squeezenet1_1 squeezenet1_0",
    "swin:SwinTransformer": "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
    "vgg:VGG": "vgg11_bn vgg13_bn vgg16_bn vgg19_bn vgg11 vgg13 vgg16 vgg19",
    "vit:VisionTransformer": "vit_b_32 vit_b_16 vit_l_16 vit_l_32 vit_h_14",
}
TORCHVISION = {
    name: f"vit_jax.pretrained.torchvision.{target}" for target, names in FAMILIES.items() for name in names.split()
}

# The model "timm", whose presets are timm's names of networks with published weights. Most are of this class; the
# module knows the classes of the others.
TIMM = "vit_jax.pretrained.vision_transformer:VisionTransformer"
TIMM_NETWORKS = "vit_jax.pretrained.networks"


def list_models() -> list[str]:
    """Names of vit-pytorch's models in alphabetical order; `create_model` takes those in `TORCHVISION`, too."""
    return sorted(MODELS)


def list_presets(name: str) -> list[str]:
    """Presets of the model `name`, for `create_model("name/preset")`. Raises ValueError for an unknown name."""
    return list(_presets(name))


def model_arguments(name: str) -> list[str]:
    """Names of the arguments that the model `name` takes. Raises ValueError for an unknown name or preset."""
    return argument_names(_find(name)[0])


def create_model(name: str, /, **kwargs: Any) -> "nn.Module":
    """Build a model by name.

    Args:
        name: a model ("vit"), a model and one of its presets ("vit/tiny"), a network of torchvision ("resnet50"), or
            "timm/" and timm's name of a network with published weights ("timm/vit_small_patch16_224").
        **kwargs: arguments of the model, with the names of the upstream constructor. They override the preset.

    Raises:
        ValueError: for an unknown model, preset or argument (the message lists similar names), a missing argument, or
            an invalid value.
    """
    model_class, preset = _find(name)
    kwargs = {**preset, **kwargs}
    check_keywords(name.partition("/")[0], model_class, kwargs)
    return model_class(**kwargs)


def _find(name: str) -> tuple[type, dict[str, Any]]:
    """The class of a model, and the arguments of its preset."""
    model, slash, preset = name.partition("/")
    if model == "timm" and slash:
        return importlib.import_module(TIMM_NETWORKS).find_network(preset)
    model_class = _model_class(model)
    if not slash:
        return model_class, _presets_of_file(model_class)[model] if model in TORCHVISION else {}
    presets = _presets(model)
    if preset not in presets:
        raise ValueError(unknown(f"preset of model {model!r}", preset, list(presets)))
    return model_class, presets[preset]


def _model_class(name: str) -> type:
    targets = MODELS | TORCHVISION | {"timm": TIMM}
    if name not in targets:
        raise ValueError(unknown("model", name, [*list_models(), *TORCHVISION]))
    file, _, class_name = targets[name].partition(":")
    return getattr(importlib.import_module(file), class_name)


def argument_names(model_class: type) -> list[str]:
    """Names of the arguments that a model's class takes."""
    return [field.name for field in _arguments(model_class)]


def _arguments(model_class: type) -> list[dataclasses.Field]:
    """The fields that are arguments of the constructor, without Flax's own."""
    return [field for field in dataclasses.fields(model_class) if field.init and field.name not in ("parent", "name")]


def _presets(name: str) -> dict[str, dict]:
    """The presets of the model `name`: those of its file that fit its class, as a file can have several classes."""
    if name == "timm":
        return importlib.import_module(TIMM_NETWORKS).PRESETS
    model_class = _model_class(name)
    if name in TORCHVISION:
        return {}
    arguments = {f.name for f in dataclasses.fields(model_class)}
    return {key: kwargs for key, kwargs in _presets_of_file(model_class).items() if kwargs.keys() <= arguments}


def _presets_of_file(model_class: type) -> dict[str, dict]:
    return getattr(importlib.import_module(model_class.__module__), "PRESETS", {})


def check_keywords(name: str, model_class: type, kwargs: dict[str, Any], kind: str = "model") -> None:
    """Raise ValueError for unknown or missing arguments, and for a wrong type where an int, float or str is expected.

    Args:
        name: name of the model in error messages.
        model_class: class whose constructor is to be called with `kwargs`.
        kwargs: the arguments.
        kind: noun for `name` in error messages, such as "model" or "objective".
    """
    fields = _arguments(model_class)
    for key in kwargs:
        if key not in [f.name for f in fields]:
            raise ValueError(unknown(f"argument of {kind} {name!r}", key, [f.name for f in fields]))
    for f in fields:
        accepted = {int: int, float: int | float, str: str}.get(f.type)  # the model checks other types itself
        if f.name in kwargs and accepted and not isinstance(kwargs[f.name], accepted):
            raise ValueError(f"{f.name}={kwargs[f.name]!r}: expected {f.type.__name__}")
    missing = [
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in kwargs
    ]
    if missing:
        preset = f" or a preset ({name}/PRESET)" if kind == "model" else ""
        raise ValueError(f"{kind} {name!r} needs {', '.join(missing)}: pass values{preset}")


_LISTED = 90  # names in an error message


def unknown(what: str, given: str, known: list[str]) -> str:
    """Error message for the unknown name `given`, with the most similar of the `known` names."""
    spelt = {name.lower(): name for name in known}
    near = [spelt[match] for match in difflib.get_close_matches(given.lower()[:100], spelt, n=3, cutoff=0.5)]
    given = given if len(given) <= 100 else f"{given[:100]}..."
    more = [f"and {len(known) - _LISTED} others"] if len(known) > _LISTED else []
    some = ", ".join([*known[:_LISTED], *more]) or "(none)"
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {some}"
    return f"unknown {what}: {given!r}; {hint}"
