"""Rounding of scaled widths, as in the MobileNets."""


def round_width(width: int | float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` nearest to `width`, or the next one if it is less than 0.9 times `width`."""
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * width else nearest + divisor
