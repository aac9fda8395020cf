"""Rows of `simple_vit_with_fft`."""

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image
from tests.cases.repairs import only, tokens

FFT = ("simple_vit_with_fft", "simple_vit_with_fft:SimpleViT")
PLAIN = IMAGE | BLOCKS | dict(freq_patch_size=4)
TOKENS = PLAIN | OBLONG | dict(freq_patch_size=(2, 6), num_classes=0)
PATCHES = only(slice(8, None))

CASES = [
    Case(*FFT, INPUT, 12829, PLAIN, maps=2),
    Case(*FFT, INPUT, 20317, PLAIN | dict(freq_patch_size=8), "large-frequency-patches", maps=2),
    Case(*FFT, OBLONG_INPUT, 9792, TOKENS, "oblong-tokens", maps=2, repairs=(tokens, PATCHES)),
]

EXEMPT = {"large_images": "computes positions for any image"}

# Our own counts at SimpleViT's sizes, as there is no paper.
PUBLISHED = {
    "simple_vit_with_fft/ti16": (5_970_664, 0),
    "simple_vit_with_fft/s16": (22_552_552, 0),
    "simple_vit_with_fft/b16": (87_566_824, 0),
}


def draw(rng):
    image, shape = draw_image(rng)
    divisors = [side for side in range(2, image["image_size"] + 1) if image["image_size"] % side == 0]
    yield Case(*FFT, shape, 0, image | draw_blocks(rng) | dict(freq_patch_size=rng.choice(divisors)))
