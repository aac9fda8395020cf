"""Rows of `max_vit_with_registers`."""

from tests.cases.case import Case
from tests.cases.max_vit import EXEMPT, FAINT, PLAIN, STAGES, draw_max_vit
from tests.cases.repairs import feature_map

__all__ = ["CASES", "EXEMPT", "PUBLISHED", "draw"]

MAX = ("max_vit_with_registers", "max_vit_with_registers:MaxViT")
ONE = STAGES | dict(num_register_tokens=1)
MAP = PLAIN | dict(num_classes=0, num_register_tokens=2)

CASES = [
    Case(*MAX, (2, 16, 16, 3), 4149, PLAIN, maps=2, faint=FAINT),
    Case(*MAX, (1, 24, 45, 1), 14587, ONE, "stages", maps=6, faint=FAINT),
    Case(*MAX, (2, 8, 16, 3), 4072, MAP, "map", maps=2, repairs=(feature_map,), faint=FAINT),
]

# MaxViT in table 2 of the paper, in millions; registers and their biases add less than 0.1%.
PUBLISHED = {
    "max_vit_with_registers/t": (31e6, 0.02),
    "max_vit_with_registers/s": (69e6, 0.02),
    "max_vit_with_registers/b": (120e6, 0.02),
    "max_vit_with_registers/l": (212e6, 0.02),
}


def draw(rng):
    kwargs, shape = draw_max_vit(rng)
    yield Case(*MAX, shape, 0, kwargs | dict(num_register_tokens=rng.randint(1, 5)), faint=FAINT)
