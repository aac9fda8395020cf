"""Write docs/deviations.md from the headers of the model files: `python docs/make_deviations.py`.

What several models have in common is listed once, at the top.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from vit_jax.registry import MODELS

KINDS = {"Differs from upstream": "upstream", "Differs from the paper": "the paper"}
# Labels in a header. Of a file with two papers the second names its model; a source may be no paper.
LABEL = re.compile(
    r"(?:^|(?<=\s))(Source|Upstream|Differs from upstream|Differs from the (?:paper|source)|Axes)"
    r"(?: \([A-Z]+\))?: "
)
SHARED = 3  # models that make a deviation a common one

# Wordings of one deviation, and the sentence that stands for them. Others are common if they are equal.
COMMON = (
    (
        r"[a-z ,]+ (has|have) an initial std of 0\.02 \(upstream: 1\)(, as in the authors' code for positions)?",
        "learned tokens, registers, queries and positions have an initial standard deviation of 0.02 (upstream: 1)",
    ),
    (r"`num_classes=0` gives (the patches' )?tokens", "`num_classes=0` gives tokens"),
    (r"`num_classes=0` gives the last (feature )?map", "`num_classes=0` gives the last feature map"),
    (r"(images and )?patches may be non-square", "images and patches may be non-square"),
    (
        r"`image_size` may (be given, to be checked at construction|say what the model is meant for.*)",
        "`image_size` may be given, and is then checked at construction",
    ),
    (r"no bias(es)? (in query, key and value|of q, k and v)", "no bias in query, key and value"),
)


def main() -> None:
    """Write the page."""
    (ROOT / "docs/deviations.md").write_text(page())


def page() -> str:
    """The text of docs/deviations.md."""
    found = {names: deviations(header(names[0])) for names in files()}
    counts: dict[tuple[str, str], list[str]] = {}
    for names, of_model in found.items():
        for deviation in dict.fromkeys(of_model):
            counts.setdefault(deviation, []).extend(names[:1])
    common = {deviation: names for deviation, names in counts.items() if len(names) >= SHARED}
    lines = [INTRODUCTION]
    for kind in KINDS.values():
        lines += [f"From {kind}:", ""]
        for (of_kind, text), names in sorted(common.items(), key=lambda item: -len(item[1])):
            if of_kind == kind:
                lines += [f"- {text}: {', '.join(f'`{name}`' for name in names)}"]
        lines += [""]
    for names, of_model in found.items():
        if own := [deviation for deviation in of_model if deviation not in common]:
            lines += [f"## {', '.join(f'`{name}`' for name in names)}", ""]
            for kind in KINDS.values():
                if texts := [text for of_kind, text in own if of_kind == kind]:
                    lines += [f"From {kind}:", "", *(f"- {text}" for text in texts), ""]
    return "\n".join(lines)


def files() -> list[tuple[str, ...]]:
    """The names of the models of each file."""
    names: dict[str, list[str]] = {}
    for name in sorted(MODELS):
        names.setdefault(MODELS[name].partition(":")[0], []).append(name)
    return [tuple(of_file) for of_file in names.values()]


def deviations(header: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs of a kind ("upstream" or "the paper") and one deviation."""
    return [
        (kind, canonical(text))
        for section, kind in KINDS.items()
        for text in split(header.get(section, "").rstrip("."))
    ]


def split(text: str) -> list[str]:
    """The parts of `text` between semicolons that are outside of parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == ";" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def canonical(deviation: str) -> str:
    """The common wording of a deviation."""
    return next((text for pattern, text in COMMON if re.fullmatch(pattern, deviation)), deviation)


def header(name: str) -> dict[str, str]:
    """The header of the model `name`'s file: "title", and the text after each label that it has."""
    source = ROOT / (MODELS[name].partition(":")[0].replace(".", "/") + ".py")
    return read_header(ast.get_docstring(ast.parse(source.read_text())))


def read_header(docstring: str) -> dict[str, str]:
    """The parts of a model file's docstring, each on one line."""
    title, _, rest = docstring.partition("\n")
    _, *parts = LABEL.split(" ".join(rest.split()))
    labels = [label.replace("the source", "the paper") for label in parts[::2]]
    return {"title": title} | dict(zip(labels, map(str.strip, parts[1::2]), strict=True))


INTRODUCTION = """# Deviations

Written by `python docs/make_deviations.py` from the headers of the model files; do not edit.

A model computes what its upstream file computes, except for what is listed here. "Upstream" is vit-pytorch.

## Common deviations
"""

if __name__ == "__main__":
    main()
