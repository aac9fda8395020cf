"""Text from outside, such as a name in a file, made fit for a terminal and for an error message."""


def printable(text: object, limit: int = 80) -> str:
    """`str(text)` on one line of at most `limit` characters, with nothing in it that a terminal acts on.

    Control characters, line breaks, marks that turn the direction of writing, and surrogates become escapes (`\\x1b`);
    letters of all scripts stay. The middle of a longer text is left out ("...").
    """
    text = str(text)
    if len(text) > limit:  # before the escapes, which cost time for each character
        text = _shortened(text, limit)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return _shortened(escaped, limit) if len(escaped) > limit else escaped


def _shortened(text: str, limit: int) -> str:
    end = (limit - 3) // 2
    return f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"
