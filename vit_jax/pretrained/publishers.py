"""The layouts of publishers' files with a vision transformer, as data, and how a file is recognised by its keys.

    name = recognise(state)
    canonical = read(name, state, model)
    variables = from_torch(model.clone(layout=()), canonical, images)

They are those of timm (Meta's DeiT, DINO and MAE's encoder have it, too), Hugging Face's transformers, Meta's DINOv2,
DINOv3 and MAE with its decoder, OpenAI's and OpenCLIP's CLIP, and Google's vision_transformer and big_vision.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.pretrained.huggingface import TRANSFORMERS
from vit_jax.pretrained.layouts import Join, State, Unstack
from vit_jax.pretrained.reading import (
    CLASS_POSITION,
    POOL_KEYS_AND_VALUES,
    POSITIONS,
    AddAxes,
    Drop,
    FromFlax,
    Projection,
    Published,
    Reader,
    Undo,
    join,
    rename,
)
from vit_jax.pretrained.vision_transformer import VisionTransformer
from vit_jax.printable import printable
from vit_jax.state_dict import nested_names

# Meta.
_DINOV2 = (
    Drop("mask_token"),
    *rename(
        ("register_tokens", "reg_token"),
        ("blocks.{i}.mlp.w12.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("blocks.{i}.mlp.w3.{p}", "blocks.{i}.mlp.fc2.{p}"),
    ),
    CLASS_POSITION,
)
_BIASES = tuple(f"blocks.{{i}}.attn.{n}_bias" for n in "qkv")
_DINOV3 = (
    Drop(r"mask_token|rope_embed\.periods|local_cls_norm\..*|.*\.bias_mask"),
    Undo(Join(_BIASES, "blocks.{i}.attn.qkv.bias")),
    Drop(r".*\.k_bias"),  # the mask makes it zero
    *join(("blocks.{i}.mlp.w1", "blocks.{i}.mlp.w2"), "blocks.{i}.mlp.fc1"),
    *rename(("blocks.{i}.mlp.w3.{p}", "blocks.{i}.mlp.fc2.{p}"), ("storage_tokens", "reg_token")),
)

# OpenAI's CLIP, and OpenCLIP.
_RESBLOCK = "transformer.resblocks.{i}"
_CLIP = (
    *rename(
        ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
        ("conv1.weight", "patch_embed.proj.weight"),
        ("ln_pre.{p}", "norm_pre.{p}"),
        ("ln_post.{p}", "norm.{p}"),
        (f"{_RESBLOCK}.ln_{{n}}.{{p}}", "blocks.{i}.norm{n}.{p}"),
        (f"{_RESBLOCK}.attn.in_proj_{{p}}", "blocks.{i}.attn.qkv.{p}"),
        (f"{_RESBLOCK}.attn.out_proj.{{p}}", "blocks.{i}.attn.proj.{p}"),
        (f"{_RESBLOCK}.mlp.c_fc.{{p}}", "blocks.{i}.mlp.fc1.{p}"),
        (f"{_RESBLOCK}.mlp.c_proj.{{p}}", "blocks.{i}.mlp.fc2.{p}"),
    ),
    AddAxes("cls_token", 3),
    AddAxes("pos_embed", 3),
    CLASS_POSITION,
    Projection("proj", transposed=True),
)


# Google's vision_transformer and big_vision.
def _google(attention: str, norm: str, mlp: str) -> tuple[Reader, ...]:
    block = "Transformer.encoderblock_{i}"
    return (
        FromFlax(),
        *join(tuple(f"{block}.{attention}.{n}" for n in ("query", "key", "value")), "blocks.{i}.attn.qkv"),
        *rename(
            ("cls", "cls_token"),
            ("embedding.{p}", "patch_embed.proj.{p}"),
            ("Transformer.encoder_norm.{p}", "norm.{p}"),
            (f"{block}.{attention}.out.{{p}}", "blocks.{i}.attn.proj.{p}"),
            (f"{block}.LayerNorm_0.{{p}}", "blocks.{i}.norm1.{p}"),
            (f"{block}.{norm}.{{p}}", "blocks.{i}.norm2.{p}"),
            (f"{block}.{mlp}.Dense_0.{{p}}", "blocks.{i}.mlp.fc1.{p}"),
            (f"{block}.{mlp}.Dense_1.{{p}}", "blocks.{i}.mlp.fc2.{p}"),
        ),
    )


_ATTENTION = "MultiHeadDotProductAttention_0"
_LEAVES = (  # of a block
    *(f"{_ATTENTION}/{n}/{p}" for n in ("query", "key", "value", "out") for p in ("kernel", "bias")),
    *(f"LayerNorm_{n}/{p}" for n in (0, 1) for p in ("scale", "bias")),
    *(f"MlpBlock_0/Dense_{n}/{p}" for n in (0, 1) for p in ("kernel", "bias")),
)
_BIG_VISION = (
    *(Unstack(f"Transformer/encoderblock/{leaf}", f"Transformer/encoderblock_{{i}}/{leaf}") for leaf in _LEAVES),
    *_google(_ATTENTION, "LayerNorm_1", "MlpBlock_0"),
    *rename(
        ("pos_embedding", "pos_embed"),
        ("MAPHead_0.probe", "attn_pool.latent"),
        (f"MAPHead_0.{_ATTENTION}.query.{{p}}", "attn_pool.q.{p}"),
        (f"MAPHead_0.{_ATTENTION}.key.{{p}}", "attn_pool.k.{p}"),
        (f"MAPHead_0.{_ATTENTION}.value.{{p}}", "attn_pool.v.{p}"),
        (f"MAPHead_0.{_ATTENTION}.out.{{p}}", "attn_pool.proj.{p}"),
        ("MAPHead_0.LayerNorm_0.{p}", "attn_pool.norm.{p}"),
        ("MAPHead_0.MlpBlock_0.Dense_0.{p}", "attn_pool.mlp.fc1.{p}"),
        ("MAPHead_0.MlpBlock_0.Dense_1.{p}", "attn_pool.mlp.fc2.{p}"),
    ),
    *POOL_KEYS_AND_VALUES,
)
_VISION_TRANSFORMER = (
    *_google("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    *rename(("Transformer.posembed_input.pos_embedding", "pos_embed")),
    POSITIONS,
)

_MOST_PREFIXES = 8  # which bounds the time that a hostile file can take
_ZERO = (".attn.q_bias", ".attn.v_bias")
_TIMM = ("patch_embed.proj.weight", "blocks.0.norm1.weight")
_OPENCLIP_HEAD = "visual.head.proj.weight"
LAYOUTS = TRANSFORMERS | {
    "timm": Published(
        _TIMM, foreign=("decoder_pos_embed", "mask_token", "register_tokens", "storage_tokens"), as_timm=True
    ),
    "openclip_timm": Published(
        _TIMM, (Projection(_OPENCLIP_HEAD),), ("visual.trunk.",), beside=(_OPENCLIP_HEAD,), as_timm=True
    ),
    "meta_mae": Published((*_TIMM, "decoder_pos_embed"), (Drop("mask_token|decoder_.*"),), as_timm=True),
    "meta_dinov2": Published((*_TIMM, "mask_token", "pos_embed", "blocks.0.ls1.gamma"), _DINOV2),
    "meta_dinov3": Published((*_TIMM, "storage_tokens", "blocks.0.ls1.gamma"), _DINOV3),
    "openai_clip": Published(
        ("class_embedding", "conv1.weight", "ln_pre.weight", "transformer.resblocks.0.ln_1.weight"),
        _CLIP,
        ("visual.", ""),
    ),
    "vision_transformer": Published(
        ("embedding/kernel", "Transformer/posembed_input/pos_embedding"), _VISION_TRANSFORMER, ("", "opt/target/")
    ),
    "big_vision": Published(
        ("embedding/kernel", "pos_embedding"), _BIG_VISION, ("", "params/", "params/img/", "opt/target/")
    ),
}


def recognise(state: Mapping[str, Any]) -> str:
    """Return the name of the layout of `state`, one of `LAYOUTS`.

    Raises:
        ValueError: unless exactly one layout fits. The message says below which prefix one does.
    """
    found = [name for name, layout in LAYOUTS.items() if layout.prefix_in(state) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        which = f"these fit several layouts: {' and '.join(found)}"
    elif below := layouts_below(state):
        places = " and ".join(f"{printable(prefix)!r} ({name})" for prefix, name in below.items())
        which = f"a network is below {places}: pass vit_jax.convert.select(state, {printable(next(iter(below)))!r})"
    else:
        which = f"no layout of a vision transformer has these: {', '.join(LAYOUTS)}"
    some = ", ".join(repr(printable(key, 60)) for key in list(state)[:3]) or "none"
    raise ValueError(f"names of weights {some}, ...: {which}")


def layouts_below(state: Mapping[str, Any]) -> dict[str, str]:
    """The layouts that fit below a prefix such as "module." or "model.", by the prefix.

    The names of nested dicts are joined by dots, as `vit_jax.convert.select` does, which removes a prefix.
    """
    names, found = list(nested_names(state)), {}
    for name, layout in LAYOUTS.items():
        signs = [f".{prefix}{layout.signs[0]}" for prefix in layout.prefixes]
        prefixes = {key.removesuffix(sign) + "." for key in names for sign in signs if key.endswith(sign)}
        for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix))[:_MOST_PREFIXES]:
            inside = {key.removeprefix(prefix) for key in names if key.startswith(prefix)}
            if layout.prefix_in(inside) is not None and not any(prefix.startswith(other) for other in found):
                found[prefix] = name
    return found


def read(name: str, state: Mapping[str, np.ndarray], model: VisionTransformer) -> State:
    """Bring a state dict to the canonical form, which `model.clone(layout=())` takes.

    Args:
        name: the layout of `state`, as `recognise` returns it.
        state: the contents of a file.
        model: the network, whose own layout is that of timm's files.
    """
    layout = LAYOUTS[name]
    state = layout.below_prefix(state)
    for operation in layout.operations:
        state = operation.read(state)
    if layout.as_timm:
        state = model.torch_layout.read(state)
    if not model.qkv_bias:  # timm leaves out those of DINOv3, which are zero
        state = {key: value for key, value in state.items() if not key.endswith(_ZERO) or value.any()}
    return state
