"""Functions for objectives that mask patches of an image.

The encoder must have the fields `patch_size` and `dim`, and the methods `to_patch_embedding(images)`, which returns the
embedded patches; `embed(images)`, which returns the tokens before the transformer; `transform(tokens)`, which applies
the transformer; and `encode(images)`, which does both. Tokens have the patches last, row by row. The argument `patches`
of `embed` and `encode` replaces the embedded patches. A model sets `patches_leak` if tokens depend on the pixels of
other patches before the transformer, `patches_lost` if the transformer returns other tokens than the patches, and
`patches_fixed` if the transformer needs all of them.
Axes: b batch, n patches, m masked or seen patches, l tokens before the patches, d dim, p values of a patch.
"""

import inspect
import math

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
    """Raise ValueError unless an objective can use `encoder`.

    Args:
        encoder: a model that must have `patch_size` and `dim`, and not drop patches.
        methods: further methods that it must have.
        sealed: before the transformer, a token may not depend on the pixels of other patches.
        movable: the transformer must take any subset of the patches. Models whose `encode` takes extra tokens do;
            others need the whole grid of patches.
    """
    expected = []
    if missing := [name for name in ("patch_size", "dim", *methods) if getattr(encoder, name, None) is None]:
        expected.append(f"an encoder of non-overlapping patches, with {', '.join(f'`{name}`' for name in missing)}")
    elif movable and "extra_tokens" not in inspect.signature(encoder.encode).parameters:
        expected.append("an encoder that takes any number of patches (whose `encode` takes `extra_tokens`)")
    elif movable and getattr(encoder, "patches_fixed", False):
        expected.append("an encoder that takes any number of patches, without rotary positions")
    if getattr(encoder, "patches_lost", False):
        expected.append("an encoder that returns a token for every patch")
    if sealed and getattr(encoder, "patches_leak", False):
        expected.append("an encoder whose tokens see one patch each, as others could copy the masked patches")
    if getattr(encoder, "patch_dropout", 0):
        expected.append(f"patch_dropout=0, not {encoder.patch_dropout}, as the objective masks patches itself")
    if expected:
        raise ValueError(f"encoder={type(encoder).__name__}: expected {'; and '.join(expected)}")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless `value`, the argument `name`, is above 0 and below 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name}={value!r}: expected more than 0 and less than 1")


def count_patches(encoder: nn.Module, images: Array) -> int:
    """Return the number of patches of an image.

    Raises:
        ValueError: unless `patch_size` divides the image.
    """
    return math.prod(patch_grid(images.shape[1:3], encoder.patch_size))


def draw_masked(
    key: Array, encoder: nn.Module, images: Array, masking_ratio: float
) -> tuple[Int[Array, "b m"], Int[Array, "b k"]]:
    """Draw the patches to mask, independently for every image.

    Args:
        key: random key.
        encoder: has `patch_size`.
        images: only their shape is used.
        masking_ratio: share of the patches to mask, rounded down to whole patches.

    Returns:
        The indices of the masked patches, and those of the others.

    Raises:
        ValueError: if no patch is masked.
    """
    patches = count_patches(encoder, images)
    masked = int(masking_ratio * patches)
    if not masked:
        raise ValueError(f"masking_ratio={masking_ratio}: expected at least 1/{patches}, as it masks no patch")
    order = shuffled(key, len(images), patches)
    return order[:, :masked], order[:, masked:]


def shuffled(key: Array, batch: int, patches: int) -> Int[Array, "b n"]:
    """Return the indices of the patches in an independent random order for every image."""
    return jax.random.uniform(key, (batch, patches)).argsort(axis=1)


def take(x: Float[Array, "b n d"], numbers: Int[Array, "b m"]) -> Float[Array, "b m d"]:
    """Return the tokens with these indices of every image."""
    return jnp.take_along_axis(x, numbers[:, :, None], axis=1)


def to_patches(images: Images, encoder: nn.Module) -> Float[Array, "b n p"]:
    """Split images into patches, row by row, whose values are ordered (height, width, channel)."""
    ph, pw = pair("patch_size", encoder.patch_size)
    return rearrange(images, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)


def to_images(patches: Float[Array, "b n p"], encoder: nn.Module, size: tuple[int, int]) -> Images:
    """Join patches to images of this `size`, (height, width): the inverse of `to_patches`."""
    (rows, columns), (ph, pw) = patch_grid(size, encoder.patch_size), pair("patch_size", encoder.patch_size)
    return rearrange(patches, "b (h w) (ph pw c) -> b (h ph) (w pw) c", h=rows, w=columns, ph=ph, pw=pw)


def embed(encoder: nn.Module, images: Images, *, patches: Tokens | None = None) -> tuple[Float[Array, "b l d"], Tokens]:
    """Return the tokens before the patches, such as a class token, and the patches, both with positions.

    `patches` replace the embedded patches of `images`.
    """
    replaced = {} if patches is None else {"patches": patches}
    tokens, count = encoder.embed(images, **replaced), count_patches(encoder, images)
    first = tokens.shape[1] - count
    _expect_tokens(encoder, first >= 0, tokens, count)
    return tokens[:, :first], tokens[:, first:]


def encode(encoder: nn.Module, images: Images, *, patches: Tokens | None = None, train: bool) -> Tokens:
    """Return the patches' tokens after the transformer. `patches` replace the embedded patches of `images`."""
    replaced = {} if patches is None else {"patches": patches}
    tokens, count = encoder.encode(images, **replaced, train=train), count_patches(encoder, images)
    _expect_tokens(encoder, tokens.ndim == 3 and tokens.shape[1] >= count, tokens, count)
    return tokens[:, -count:]


def transform(encoder: nn.Module, tokens: Tokens, *, train: bool) -> Tokens:
    """Apply the transformer of `encoder` to any of its embedded tokens."""
    transformed = encoder.transform(tokens, train=train)
    _expect_tokens(encoder, transformed.shape == tokens.shape, transformed, tokens.shape[1])
    return transformed


def mask(patches: Tokens, masked: Int[Array, "b m"], mask_token: Float[Array, "d"]) -> Tokens:
    """Replace the `masked` patches by `mask_token`."""
    images = jnp.arange(len(patches))[:, None]
    return patches.at[images, masked].set(mask_token.astype(patches.dtype)[None, None])


def fill(module: nn.Module, images: Images) -> None:
    """During initialisation of `module`, also create parameters of its encoder that it does not use, such as a head."""
    if module.is_initializing():
        module.encoder(images)


def _expect_tokens(encoder: nn.Module, holds: bool, tokens: Array, patches: int) -> None:
    if not holds:
        raise ValueError(
            f"encoder={type(encoder).__name__}: expected a token for each of {patches} patches, got {tokens.shape}"
        )
