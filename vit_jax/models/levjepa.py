"""The trunk of LeVJEPA for video: a frame's patches see each other and the frames before it.

Source: Kuhn et al., arXiv:2608.27395. Upstream: vit_pytorch/levjepa.py.
Differs from upstream: images (b, h, w, c) are videos of one frame; `kept` says which patches stay, where upstream draws
them; the class token starts at a deviation of 0.02 (upstream: 1). What is trained around the trunk is an objective
here, vit_jax/objectives/levjepa.py.
Differs from the paper: which of its details upstream changes is not known here.
Axes: b batch, f frames, H W height and width, c channels, n tokens (the class token first), d dim.
"""

from jaxtyping import Array, Float, Int

from vit_jax.frames.presets import TINY
from vit_jax.layers.check import pair
from vit_jax.layers.shapes import Tokens
from vit_jax.models import levjepa_nd


class VideoTransformer(levjepa_nd.CausalTrunk):
    """Video (b, frames, H, W, c), or images (b, H, W, c), to tokens (b, n, d), the class token first.

    With `block_causal` no patch sees a later frame or the class token. When `train`, the patches with the numbers
    `kept` (b, k) stay, or the rest of a share of `drop_ratio`, which the rng "dropout" draws. `frames` and `image_size`
    say what the model is meant for: videos may be longer, shorter, larger and smaller.
    Raises ValueError when `patch_size` does not divide `image_size`, or the video.
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
        """Numbers of the patches that stay of each video of `shape`, drawn evenly."""
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
    """The shape of a video, of which an image is the only frame."""
    return (shape[0], 1, *shape[1:]) if len(shape) == 4 else shape


PRESETS = {"tiny": TINY | dict(frames=1)}
