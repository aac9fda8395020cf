"""ViT of a video: patches of some frames and pixels, read by a plain transformer.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, for images. Upstream: vit_pytorch/vit_3d.py.
Differs from upstream: a video may be shorter than `frames` and smaller than `image_size`; `num_classes=0` gives tokens;
tokens and positions start at a deviation of 0.02 (upstream: 1).
Differs from the paper: as `vit` does; and its norm behind the transformer is only on what is pooled.
Axes: b batch, f frames, n tokens, c channels, d dim, k classes.
"""

from vit_jax.layers import PlainViT
from vit_jax.layers.inputs import VideoInput
from vit_jax.layers.presets import TINY_VIDEO
from vit_jax.layers.rules import HEAD_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES


class ViT3D(VideoInput, PlainViT):
    """Classifier: video (b, f, H, W, c) to logits (b, k); with `num_classes=0` to tokens (b, n, d), frame by frame.

    A shorter or smaller video gets the first positions.
    Raises ValueError when `frame_patch_size` does not divide `frames`, or `image_patch_size` not `image_size`, or for a
    `pool` other than "cls" and "mean".
    """


PRESETS = {"tiny": TINY_VIDEO}

TORCH_RULES = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES, *HEAD_RULES)
