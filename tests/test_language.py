"""Plain English. Phrases that a reader must read twice are kept out of docstrings, comments and pages."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [path for part in ("vit_jax", "train", "benchmarks") for path in sorted((ROOT / part).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

PHRASES = re.compile(
    r"\b("
    r"of (its|their|your) own kind|knows? (nothing|neither)|nothing is told|is told apart|are told apart"
    r"|be they|of itself|n[ao]ught|for want of|to and fro|goes? ill|by turns|at hand|in turn until"
    r"|stands? (for|in|over|upon|beside|behind) |(is|are) (asked|told|heard|felt)|hears? the same"
    r"|anew|makes? no sense|meaned|as the user (says|asks)|a user's mistake|mistake of the user"
    r"|there part by part|pixel asks|what every query gathers"
    r")\b",
    re.IGNORECASE,
)
FIRST_WORD = re.compile(r"(What|Those|That of|As the|By what)\b")


def prose(source: str) -> list[tuple[int, str]]:
    """Line and text of every docstring and comment."""
    found = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            found.append((node.body[0].lineno, text))
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_docstrings_and_comments_are_plain(path):
    texts = prose(path.read_text())
    assert [(line, match[0]) for line, text in texts if (match := PHRASES.search(text))] == []
    docstrings = [(line, text) for line, text in texts if not text.startswith("#")]
    assert [(line, text[:60]) for line, text in docstrings if FIRST_WORD.match(text)] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_are_plain(path):
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [(number, match[0]) for number, line in lines if (match := PHRASES.search(line))] == []


def test_a_phrase_is_found():
    source = '"""What it is."""\nx = 1  # knows nothing of it\n'
    (comment, docstring) = prose(source)
    assert PHRASES.search(comment[1])
    assert FIRST_WORD.match(docstring[1])
