"""Show what changed between two releases of vit-pytorch, without importing either.

    python -m tests.compare_upstream 1.26.11 1.26.14     # releases, fetched by pip
    python -m tests.compare_upstream OLD NEW             # or folders that hold the package's files

Lists added, removed and changed files. For a changed file, it shows the public signatures before ("-") and after ("+")
and names the definitions whose code changed. Comments, docstrings, annotations, layout, the order of definitions
and the code under `if __name__ == "__main__"` do not count. Of the imports, only a name that now comes from elsewhere
does.
"""

import argparse
import ast
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "vit_pytorch"


class Definition(NamedTuple):
    """A function, a class without its functions, an import, or all other statements of a file."""

    signature: str  # "" for imports and other statements
    code: str


def main(argv: list[str] | None = None) -> None:
    """Print the comparison of the two releases or folders in `argv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    args = parser.parse_args(argv)
    print("\n".join(compare(read(args.old), read(args.new))))


def read(source: str) -> dict[str, str]:
    """The text of every Python file of `source`, a release or a folder, by its path inside the package."""
    if Path(source).is_dir():
        return {path.relative_to(source).as_posix(): path.read_text() for path in Path(source).rglob("*.py")}
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*download, f"--dest={folder}", f"vit-pytorch=={source}"], check=True)
        (wheel,) = Path(folder).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(f"{PACKAGE}/") and name.endswith(".py")]
            return {name.removeprefix(f"{PACKAGE}/"): archive.read(name).decode() for name in names}


def compare(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The lines to print for two releases, each given as the text of its files by name."""
    lines = []
    for name in sorted(new.keys() - old.keys()):
        public = [each.signature for definition, each in definitions(new[name]).items() if _is_public(definition)]
        lines += [f"added    {name}", *(f"    + {signature}" for signature in public)]
    for name in sorted(old.keys() - new.keys()):
        lines += [f"removed  {name}"]
    for name in sorted(old.keys() & new.keys()):
        if found := changes(definitions(old[name]), definitions(new[name])):
            lines += [f"changed  {name}", *found]
    return lines or ["no differences"]


def changes(old: dict[str, Definition], new: dict[str, Definition]) -> list[str]:
    """The lines for one file, given its definitions before and after."""
    signatures, code = [], []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        lines = [f"    {sign} {side.signature}" for sign, side in (("-", before), ("+", after)) if side]
        is_shown = _is_public(name) and (not before or not after or before.signature != after.signature)
        if is_shown:
            signatures += lines
        if before and after:
            is_changed = before.code != after.code or (before.signature != after.signature and not is_shown)
        else:
            is_changed = not is_shown and not name.startswith("import ")
        code += [name] if is_changed else []
    return signatures + ([f"    code: {', '.join(code)}"] if code else [])


def definitions(source: str) -> dict[str, Definition]:
    """Every definition in the text of a file, by its dotted name."""
    return dict(_definitions(_Essentials().visit(ast.parse(source)), ""))


def _definitions(owner: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Definition]]:
    """The definitions in `owner`, whose names begin with `prefix`."""
    rest = []
    for statement in owner.body:
        if isinstance(statement, ast.FunctionDef):
            name = prefix + statement.name
            signature = f"{name}({ast.unparse(statement.args)})"
            yield name, Definition(signature, _dump(statement.decorator_list + statement.body))
        elif isinstance(statement, ast.ClassDef):
            name = prefix + statement.name
            *functions, (_, own) = _definitions(statement, f"{name}.")
            bases = ", ".join(map(ast.unparse, statement.bases + statement.keywords))
            yield name, Definition(f"class {name}({bases})", _dump(statement.decorator_list) + own.code)
            yield from functions
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            module = "." * getattr(statement, "level", 0) + (getattr(statement, "module", None) or "")
            for alias in statement.names:
                yield f"import {alias.asname or alias.name}", Definition("", f"{module}:{alias.name}")
        else:
            rest.append(statement)
    yield f"{prefix}(other statements)", Definition("", _dump(rest))


class _Essentials(ast.NodeTransformer):
    """Removes what does not affect the comparison: annotations of functions, docstrings, and a `__main__` block."""

    def visit_FunctionDef(self, node):
        node.returns = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node):
        return self._without_docstring(node)

    def visit_Module(self, node):
        is_main = lambda statement: isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
        node.body = [statement for statement in node.body if not is_main(statement)]
        return self._without_docstring(node)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def _without_docstring(self, node):
        if ast.get_docstring(node) is not None:
            del node.body[0]
        return self.generic_visit(node)


def _is_public(name: str) -> bool:
    """Whether `name` has a signature that users rely on."""
    return " " not in name and not any(part.startswith("_") for part in name.removesuffix("__init__").split("."))


def _dump(nodes: list[ast.AST]) -> str:
    """The code of `nodes` without comments and layout."""
    return "\n".join(map(ast.dump, nodes))


if __name__ == "__main__":
    main()
