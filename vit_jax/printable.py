"""Escape and shorten untrusted text, such as a name in a file, for terminals and error messages."""


def printable(text: object, limit: int | None = 80) -> str:
    """Return `str(text)` on one line, without control characters.

    Control characters, line breaks, marks that change the direction of text, and surrogates become escapes (`\\x1b`).
    Letters of all scripts are kept.

    Args:
        text: any object.
        limit: most characters, or None for no limit. The middle of a longer text is replaced by "...".
    """
    text = str(text)
    if limit is not None:  # first, as escaping takes time for each character
        text = _shortened(text, limit)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return escaped if limit is None else _shortened(escaped, limit)


def counted(count: int, noun: str) -> str:
    """A number of things, such as "1 channel" and "1,797 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _shortened(text: str, limit: int) -> str:
    end = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"
