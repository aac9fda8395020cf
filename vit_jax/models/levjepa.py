"""The encoder of LeVJEPA for video: patches attend to those of their own frame and of earlier frames.

Derives from `CausalTrunk` (vit_jax/models/levjepa_nd.py), along frames, rows and columns.

Source: Kuhn et al., arXiv:2608.27395. Upstream: vit_pytorch/levjepa.py.
Differs from upstream: images (b, h, w, c) are videos of one frame; `kept` can select the patches that are read
(upstream: always drawn); the class token has an initial std of 0.02 (upstream: 1); the training method is the
objective vit_jax/objectives/levjepa.py.
Differs from the paper: not known, as upstream was not compared with the paper.
Axes: b batch, f frames, H W height and width, c channels, n tokens (the class token first), d dim.
"""

from jaxtyping import Array, Float, Int

from vit_jax.frames.presets import TINY
from vit_jax.layers.check import pair
from vit_jax.layers.shapes import Tokens
from vit_jax.models import levjepa_nd


class VideoTransformer(levjepa_nd.CausalTrunk):
    """Video (b, frames, H, W, c), or images (b, H, W, c), to tokens (b, n, d), the class token first.

    When `train`, the call reads only some patches: those with the indices `kept` (b, k), or a
    random share of 1 - `drop_ratio`, drawn with the rng "dropout". A video may be longer, shorter,
    larger or smaller than `frames` and `image_size`.

    Args:
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads in each block.
        mlp_dim: hidden width of each feed-forward.
        image_size: pixels, or (height, width); only checked against `patch_size`.
        patch_size: pixels, or (height, width).
        frames: frames of a video, for information.
        channels: channels of a frame.
        dim_head: width of a head.
        dropout: rate within the blocks.
        emb_dropout: rate on the patches before the first block.
        rotary_max_freq: largest frequency of the rotary positions.
        block_causal: patches attend neither to later frames nor to the class token.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: if `patch_size` does not divide `image_size` or the sides of a video, or
            `dim_head` is below 6.
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    frames: int
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0
    rotary_max_freq: float = 10.0
    block_causal: bool = True
    drop_path: float = 0.0

    def __post_init__(self):
        levjepa_nd.check_trunk(self)
        super().__post_init__()

    @property
    def patch(self) -> tuple[int, ...]:
        return (1, *pair("patch_size", self.patch_size))

    @property
    def causal(self) -> tuple[int, ...]:
        return (0,) if self.block_causal else ()

    def draw_kept(self, key: Array, shape: tuple[int, ...], drop_ratio: float) -> Int[Array, "b k"]:
        """Indices of the patches to keep in each video of `shape`, drawn uniformly."""
        return super().draw_kept(key, _with_frames(shape), drop_ratio)

    def __call__(
        self,
        video: Float[Array, "b *frames H W c"],
        *,
        drop_ratio: float | None = None,
        kept: Int[Array, "b k"] | None = None,
        train: bool = False,
    ) -> Tokens:
        video = video.reshape(_with_frames(video.shape))
        return super().__call__(video, drop_ratio=drop_ratio, kept=kept, train=train)


def _with_frames(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a video; an image is a video of one frame."""
    return (shape[0], 1, *shape[1:]) if len(shape) == 4 else shape


PRESETS = {"tiny": TINY | dict(frames=1)}
