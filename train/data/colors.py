"""3-Augment and colour jitter, drawn for each image.

Source: Touvron et al. 2022 (DeiT III), arXiv:2204.07118, and the authors' code; torchvision's ColorJitter.
Differs from them: pixels are not rounded after each operation, and the blur has a Gaussian kernel of 13 pixels and
mirrored borders (Pillow: three box blurs, and repeated borders).
Axes: b batch, h height, w width, c channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax.objectives.views import between, blend, blur, grey, turn_hue

BLUR = (0.1, 2.0)  # standard deviation in pixels
KERNEL = 13  # three standard deviations to each side


def three_augment(key, images):
    """Turn each image (b, h, w, c) of pixels in 0..1 grey, solarise it, or blur it.

    Grey is the luma of three channels, and the mean of any other number.
    """
    choice_key, blur_key = jax.random.split(key)
    choices = jax.random.randint(choice_key, (len(images),), 0, 3)
    deviations = jax.random.uniform(blur_key, (len(images),), minval=BLUR[0], maxval=BLUR[1])
    return jax.vmap(one_of_three)(images, choices, deviations)


def one_of_three(image, choice, deviation):
    """An image (h, w, c) in grey (choice 0), solarised (1), or blurred with a standard deviation in pixels (2)."""
    solarized = jnp.where(image < 0.5, image, 1 - image)
    return jnp.where(choice == 0, grey(image), jnp.where(choice == 1, solarized, blur(image, KERNEL, deviation)))


def color_jitter(key: Array, images: Float[Array, "b h w c"], amount: float, hue: float) -> Float[Array, "b h w c"]:
    """Change the colours of each image (b, h, w, c) of pixels in 0..1.

    Brightness, contrast, saturation and, if `hue` is positive, the hue change in random order.

    Args:
        key: Random key.
        images: The images. A turn of the hue needs three channels.
        amount: Largest relative change of brightness, contrast and saturation.
        hue: Largest turn of the hue, as a fraction of the circle.
    """
    operations = 4 if hue else 3
    order_key, factor_key, turn_key = jax.random.split(key, 3)
    order = jnp.argsort(jax.random.uniform(order_key, (len(images), operations)), axis=1)
    factors = between(jax.random.uniform(factor_key, (len(images), 3)), 1 - amount, 1 + amount)
    turns = between(jax.random.uniform(turn_key, (len(images),)), -hue, hue) if hue else None
    return jax.vmap(jittered)(images, order, factors, turns)


def jittered(
    image: Float[Array, "h w c"], order: Int[Array, " n"], factors: Float[Array, "3"], turn: Float[Array, ""] | None
) -> Float[Array, "h w c"]:
    """Change the colours of an image (h, w, c).

    Args:
        image: Pixels in 0..1.
        order: A permutation of brightness (0), contrast (1), saturation (2), and the hue (3) if there is a `turn`.
        factors: Factors of brightness, contrast and saturation.
        turn: Turn of the hue, as a fraction of the circle; None: no turn.
    """
    for i in range(len(order)):
        kind, luma = order[i], grey(image)
        poor = jnp.where(kind == 0, 0, jnp.where(kind == 1, luma.mean(), luma))
        changed = blend(image, poor, factors[jnp.minimum(kind, 2)])
        image = changed if turn is None else jnp.where(kind == 3, turn_hue(image, turn), changed)
    return image
