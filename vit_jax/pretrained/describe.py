"""Guesses what a state dict is, for error messages."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.printable import printable


class _Family(NamedTuple):
    """Networks with keys of one form.

    Attributes:
        words: name in a sentence.
        norm: pattern of the key of a norm, once in each block; its last group is the number of the block.
        other: pattern of a key that tells the family from others with the same norms.
        unit: what the number counts.
    """

    words: str
    norm: str
    other: str = ""
    unit: str = "blocks"


_FAMILIES = (  # the first that fits
    _Family("Hugging Face's DINOv2 with registers", r"encoder\.layer\.(\d+)\.norm1\.weight", "register_tokens"),
    _Family("Hugging Face's DINOv2", r"encoder\.layer\.(\d+)\.norm1\.weight"),
    _Family("Hugging Face's DINOv3", r"layer\.(\d+)\.norm1\.weight", "o_proj"),
    _Family("Hugging Face's MAE", r"encoder\.layer\.(\d+)\.layernorm_before\.weight", "decoder_pred"),
    _Family("Hugging Face's BEiT", r"encoder\.layer\.(\d+)\.layernorm_before\.weight", "lambda_1"),
    _Family("Hugging Face's distilled DeiT", r"encoder\.layer\.(\d+)\.layernorm_before\.weight", "distillation_token"),
    _Family("Hugging Face's ViT", r"encoder\.layer\.(\d+)\.layernorm_before\.weight"),
    _Family("Hugging Face's CLIP", r"encoder\.layers\.(\d+)\.layer_norm1\.weight", "pre_layrnorm"),
    _Family("Hugging Face's SigLIP", r"encoder\.layers\.(\d+)\.layer_norm1\.weight"),
    _Family("Hugging Face's Swin", r"encoder\.layers\.(\d+)\.blocks\.\d+\.layernorm_before\.weight", unit="stages"),
    _Family("Hugging Face's ConvNeXt", r"encoder\.stages\.(\d+)\.layers\.\d+\.layernorm\.weight", unit="stages"),
    _Family("OpenAI's or OpenCLIP's CLIP", r"visual\.transformer\.resblocks\.(\d+)\.ln_1\.weight"),
    _Family("torchvision's ViT", r"encoder\.layers\.encoder_layer_(\d+)\.ln_1\.weight"),
    _Family("torchvision's Swin", r"features\.(\d+)\.\d+\.norm1\.weight", unit="stages"),
    _Family("the ViT of Google's vision_transformer", r"Transformer/encoderblock_(\d+)/LayerNorm_0/scale", "posembed"),
    _Family("big_vision's ViT", r"Transformer/encoderblock(?:_(\d+))?/LayerNorm_0/scale"),
    _Family("vit-pytorch's ViT", r"transformer\.layers\.(\d+)\.0\.(?:fn\.)?norm\.weight"),
    _Family("timm's or Microsoft's Swin", r"layers\.(\d+)\.blocks\.\d+\.norm1\.weight", unit="stages"),
    _Family("timm's ConvNeXt", r"stages\.(\d+)\.blocks\.\d+\.norm\.weight", unit="stages"),
    _Family("timm's LeViT", r"stages\.(\d+)\.blocks\.\d+\.attn\.qkv\.bn\.weight", unit="stages"),
    _Family("timm's PiT", r"transformers\.(\d+)\.blocks\.\d+\.norm1\.weight", unit="stages"),
    _Family("Meta's MAE with its decoder", r"blocks\.(\d+)\.norm1\.weight", "decoder_blocks"),
    _Family("Meta's DINOv3", r"blocks\.(\d+)\.norm1\.weight", r"storage_tokens|rope_embed\.periods"),
    _Family("Meta's DINOv2", r"blocks\.(?:\d+\.)?(\d+)\.norm1\.weight", "mask_token"),
    _Family("timm's BEiT", r"blocks\.(\d+)\.norm1\.weight", "relative_position"),
    _Family("timm's EVA", r"blocks\.(\d+)\.norm1\.weight", r"q_proj|fc1_g|q_bias"),
    _Family("timm's ViT or Meta's DeiT, DINO or MAE", r"blocks\.(\d+)\.norm1\.weight"),
    _Family("a ResNet", r"layer(\d+)\.0\.bn1\.weight", unit="stages"),
    _Family("a language model", r"layers\.(\d+)\.input_layernorm\.weight"),
)


def describe(state: Mapping[str, Any] | Iterable[str]) -> str:
    """Return a sentence such as "these look like timm's BEiT (12 blocks, width 384)".

    Args:
        state: arrays by key, or keys alone, which do not show the width.
    """
    keys = [key for key in state if isinstance(key, str)]
    text = "\n".join(keys)
    for family in _FAMILIES:
        found = [match for key in keys if (match := re.fullmatch(rf"(.*[./])?{family.norm}", key))]
        if found and re.search(family.other, text):
            break
    else:
        some = ", ".join(printable(key, 60) for key in keys[:3]) or "none"
        return f"these are {len(keys):,} tensors of an unknown network; the first: {some}"
    first, prefix = found[0][0], found[0][1]
    of_prefix = [match for match in found if match[1] == prefix]
    array = state[first] if isinstance(state, Mapping) else None
    if numbers := {match[2] for match in of_prefix if match[2]}:
        facts = f"{len(numbers)} {family.unit}"
    else:  # all blocks in one array
        facts = f"{array.shape[0]} {family.unit}" if np.ndim(array) > 1 else f"all {family.unit} in one array"
    if array is not None and np.ndim(array) and family.unit == "blocks":
        facts += f", width {array.shape[-1]}"
    return f"these look like {family.words} ({facts})" + (f" behind the prefix {printable(prefix)!r}" if prefix else "")
