"""Functions for objectives that hide patches of an image from an encoder.

The encoder must have `patch_size` and `dim`; `encode(images)`, which returns tokens, those of the patches last and row
by row; `embed(images)`, the tokens before the transformer; `to_patch_embedding`, the module that embeds patches. A
model sets `patches_leak` if its tokens depend on other patches' pixels before the transformer, and `patches_lost` if
its transformer returns other tokens than those of the patches.
Axes: b batch, n patches, m masked or seen patches, l tokens before the patches, d dim, p values of a patch.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.layers.check import pair, patch_grid
from vit_jax.layers.shapes import Images, Tokens

# Upstream's MAE and SimMIM keep the encoder's patch embedding under a second name.
PATCH_ALIASES = tuple(
    (rf"encoder\.to_patch_embedding\.{number}\.(\w+)", rf"patch_to_emb.{number - 1}.\1") for number in (1, 2, 3)
)


def check_encoder(encoder: nn.Module, *, methods: tuple[str, ...], sealed: bool = True, movable: bool = False) -> None:
    """Raises ValueError, naming it, unless `encoder` has `patch_size`, `dim` and these `methods`, and drops no patch.

    `sealed`: no token may tell of another patch's pixels. `movable`: any patches must do, in any number, which is true
    of models whose `encode` takes extra tokens: where patches have places in a grid there is none for those.
    """
    expected = []
    if missing := [name for name in ("patch_size", "dim", *methods) if getattr(encoder, name, None) is None]:
        expected.append(f"an encoder of patches side by side, with {', '.join(f'`{name}`' for name in missing)}")
    elif movable and "extra_tokens" not in inspect.signature(encoder.encode).parameters:
        expected.append("an encoder that takes any number of patches (whose `encode` takes `extra_tokens`)")
    if getattr(encoder, "patches_lost", False):
        expected.append("an encoder that gives a token for every patch")
    if sealed and getattr(encoder, "patches_leak", False):
        expected.append("an encoder whose tokens see one patch each: from others the masked ones can be copied")
    if getattr(encoder, "patch_dropout", 0):
        expected.append(f"patch_dropout=0, not {encoder.patch_dropout}, as the objective hides patches itself")
    if expected:
        raise ValueError(f"encoder={type(encoder).__name__}: expected {'; and '.join(expected)}")


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless `value`, the argument `name`, is above 0 and below 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name}={value!r}: expected more than 0 and less than 1")


def count_patches(encoder: nn.Module, images: Array) -> int:
    """Patches of each image. Raises ValueError where they do not fill it."""
    return math.prod(patch_grid(images.shape[1:3], encoder.patch_size))


def draw_masked(
    key: Array, encoder: nn.Module, images: Array, masking_ratio: float
) -> tuple[Int[Array, "b m"], Int[Array, "b k"]]:
    """For every image by itself, the numbers of `int(masking_ratio * n)` patches, and those of the others.

    Raises ValueError when that is none.
    """
    patches = count_patches(encoder, images)
    masked = int(masking_ratio * patches)
    if not masked:
        raise ValueError(f"masking_ratio={masking_ratio}: expected more, as it masks none of {patches} patches")
    order = shuffled(key, len(images), patches)
    return order[:, :masked], order[:, masked:]


def shuffled(key: Array, batch: int, patches: int) -> Int[Array, "b n"]:
    """For every image by itself, the numbers of its patches in random order."""
    return jax.random.uniform(key, (batch, patches)).argsort(axis=1)


def take(x: Float[Array, "b n d"], numbers: Int[Array, "b m"]) -> Float[Array, "b m d"]:
    """Of every image the tokens with these numbers."""
    return jnp.take_along_axis(x, numbers[:, :, None], axis=1)


def to_patches(images: Images, encoder: nn.Module) -> Float[Array, "b n p"]:
    """Patches row by row; their values run (height, width, channel)."""
    ph, pw = pair("patch_size", encoder.patch_size)
    return rearrange(images, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)


def to_images(patches: Float[Array, "b n p"], encoder: nn.Module, size: tuple[int, int]) -> Images:
    """`to_patches` undone, for images of this `size`, (height, width)."""
    (rows, columns), (ph, pw) = patch_grid(size, encoder.patch_size), pair("patch_size", encoder.patch_size)
    return rearrange(patches, "b (h w) (ph pw c) -> b (h ph) (w pw) c", h=rows, w=columns, ph=ph, pw=pw)


def embed(encoder: nn.Module, images: Images) -> tuple[Float[Array, "b l d"], Tokens]:
    """The tokens before the patches, such as a class token, and the patches, with positions and before dropout."""
    tokens, patches = encoder.embed(images), count_patches(encoder, images)
    first = tokens.shape[1] - patches
    _expect_tokens(encoder, first >= 0, tokens, patches)
    return tokens[:, :first], tokens[:, first:]


def encode(encoder: nn.Module, images: Images, *, train: bool) -> Tokens:
    """The patches' tokens behind the transformer."""
    tokens, patches = encoder.encode(images, train=train), count_patches(encoder, images)
    _expect_tokens(encoder, tokens.ndim == 3 and tokens.shape[1] >= patches, tokens, patches)
    return tokens[:, -patches:]


def encode_tokens(encoder: nn.Module, images: Images, tokens: Tokens, *, train: bool) -> Tokens:
    """The output of `encoder` for `tokens` in place of its own embedding of `images`."""

    def stand_in(embed, args, kwargs, context):
        replaced = context.module is encoder and context.method_name == "embed"
        return tokens if replaced else embed(*args, **kwargs)

    with nn.intercept_methods(stand_in):
        encoded = encoder.encode(images, train=train)
    _expect_tokens(encoder, encoded.shape == tokens.shape, encoded, tokens.shape[1])
    return encoded


@contextlib.contextmanager
def masked_tokens(encoder: nn.Module, masked: Int[Array, "b m"], mask_token: Float[Array, "d"]) -> Iterator[None]:
    """Within it, `encoder` finds `mask_token` for the masked patches, where it adds their positions."""
    masked_ones = []

    def put(patch_embedding, args, kwargs, context):
        tokens = patch_embedding(*args, **kwargs)
        module = context.module
        if module.parent is not encoder or (module.name, context.method_name) != ("to_patch_embedding", "__call__"):
            return tokens
        masked_ones.append(masked)
        tokens_of_image = jnp.arange(len(tokens))[:, None]
        return tokens.at[tokens_of_image, masked].set(mask_token.astype(tokens.dtype)[None, None])

    with nn.intercept_methods(put):
        yield
    if not masked_ones:
        raise ValueError(f"encoder={type(encoder).__name__}: expected a module `to_patch_embedding` that it calls")


def fill(module: nn.Module, images: Images) -> None:
    """When `module` is initialised, makes those parameters of its encoder too that it has no use for, as a head's."""
    if module.is_initializing():
        module.encoder(images)


def _expect_tokens(encoder: nn.Module, holds: bool, tokens: Array, patches: int) -> None:
    if not holds:
        raise ValueError(
            f"encoder={type(encoder).__name__}: expected a token for each of {patches} patches, got {tokens.shape}"
        )
