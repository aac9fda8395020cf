"""Widths that were multiplied, as the MobileNets round them."""


def round_width(width: int | float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `width`, or the next above where that would be less than nine tenths."""
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * width else nearest + divisor
