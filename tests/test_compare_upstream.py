"""The comparison of two upstream releases shows changes of code and signatures, and no changes of layout."""

from pathlib import Path

import pytest

from tests.compare_upstream import main

OLD = '''
from einops import rearrange
from torch import einsum

SIZE = 3

def pair(t):
    return t, t

def _hidden(t):
    return t

class Attention(Module):
    def __init__(self, dim, per_head = False):
        self.dim = dim

    def forward(self, x):  # attends
        return x

class ViT(Module):
    def __init__(self, *, dim, depth = 1):
        """Upstream's ViT."""
        self.dim = dim

if __name__ == "__main__":
    ViT(dim = 1)
'''
SAME = '''
"""The same code, written otherwise."""
from __future__ import annotations
from einops import rearrange, reduce
from torch import einsum

SIZE = 3

class ViT(Module):
    """A docstring."""
    def __init__(
        self, *,
        dim: int,
        depth: int = 1,
    ) -> None:
        self.dim = dim  # a comment

class Attention(Module):
    def __init__(self, dim, per_head = False): self.dim = dim
    def forward(self, x): return (x)

def pair(t): return (t, t)
def _hidden(t): return t
'''


def compare(tmp_path: Path, capsys, old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The output of the command for two folders with these files."""
    for folder, files in (("old", old), ("new", new)):
        for name, text in {"__init__.py": "", **files}.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    main([str(tmp_path / "old"), str(tmp_path / "new")])
    return capsys.readouterr().out.splitlines()


def test_files_are_listed(tmp_path, capsys):
    lines = compare(tmp_path, capsys, {"gone.py": OLD, "vit.py": OLD}, {"sub/new.py": OLD, "vit.py": OLD})
    assert lines == [
        "added    sub/new.py",
        "    + pair(t)",
        "    + class Attention(Module)",
        "    + Attention.__init__(self, dim, per_head=False)",
        "    + Attention.forward(self, x)",
        "    + class ViT(Module)",
        "    + ViT.__init__(self, *, dim, depth=1)",
        "removed  gone.py",
    ]


def test_layout_is_ignored(tmp_path, capsys):
    assert compare(tmp_path, capsys, {"vit.py": OLD}, {"vit.py": SAME}) == ["no differences"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("per_head = False", "groups = 1", ["- Attention.__init__(self, dim, per_head=False)",
                                            "+ Attention.__init__(self, dim, groups=1)"]),
        ("ViT(Module)", "ViT(Base)", ["- class ViT(Module)", "+ class ViT(Base)"]),
        ("class ViT", "class _ViT", ["- class ViT(Module)", "- ViT.__init__(self, *, dim, depth=1)",
                                      "code: _ViT, _ViT.__init__"]),
        ("def pair(t)", "def pair(t, n)", ["- pair(t)", "+ pair(t, n)"]),
        ("return x", "return -x", ["code: Attention.forward"]),
        ("return t, t", "return t", ["code: pair"]),
        ("_hidden(t)", "_hidden(t, n)", ["code: _hidden"]),
        ("SIZE = 3", "SIZE = 4", ["code: (other statements)"]),
        ("from torch import einsum", "from einops import einsum", ["code: import einsum"]),
        ("from torch import einsum", "", []),
        ("ViT(dim = 1)", "ViT(dim = 2)", []),
    ],
)  # fmt: skip
def test_changes_are_shown(tmp_path, capsys, before, after, expected):
    assert before in OLD
    lines = compare(tmp_path, capsys, {"vit.py": OLD}, {"vit.py": OLD.replace(before, after)})
    assert lines == (["changed  vit.py", *(f"    {line}" for line in expected)] if expected else ["no differences"])
