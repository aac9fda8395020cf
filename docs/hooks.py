"""What MkDocs does besides building docs/: the front page, the API reference, and links into the repository.

README.md is the front page. Every public module gets a page that mkdocstrings fills from its docstrings. Links that
leave docs/, such as `../train/loop.py`, work on GitHub as they are; on the site they lead to the repository, whose
address stands in pyproject.toml.
"""

import ast
import logging
import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
RE_EXPORTED = {"vit_jax": ["create_model", "list_models", "list_presets"], "vit_jax.convert": ["select"]}
MOST_USED = (
    "vit_jax.create_model",
    "vit_jax.list_models",
    "vit_jax.list_presets",
    "vit_jax.convert.from_torch",
    "vit_jax.convert.to_torch",
    "vit_jax.convert.select",
    "vit_jax.capture.attention",
    "vit_jax.capture.embeddings",
    "vit_jax.capture.rollout",
    "vit_jax.objectives.create_objective",
    "train.config.Config",
)
LOG = logging.getLogger("mkdocs.hooks")


class Module:
    """A public module of the repository, and its page."""

    def __init__(self, path: Path):
        self.source = path.relative_to(ROOT).as_posix()
        self.is_package = path.name == "__init__.py"
        self.name = self.source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.package = self.name if self.is_package else self.name.rpartition(".")[0]
        self.page = f"reference/{self.name}.md"
        tree = ast.parse(path.read_text())
        self.summary = (ast.get_docstring(tree) or "").partition("\n")[0]
        definitions = (node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
        self.public = [name for name in definitions if not name.startswith("_")]
        if self.name in RE_EXPORTED:
            self.public += RE_EXPORTED[self.name]


MODULES = [
    Module(path)
    for package in ("vit_jax", "train")
    for path in sorted((ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path))
]
PACKAGES = [module for module in MODULES if module.is_package]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation, and the repository's address to the footer."""
    sections = []
    for package in PACKAGES:
        members = [
            {module.name.rpartition(".")[2]: module.page} for module in MODULES if module.package == package.name
        ]
        sections.append({package.name: members})
    config.nav.append({"API reference": ["reference/index.md", *sections]})
    config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": REPOSITORY}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    files.append(File.generated(config, "index.md", content=front_page()))
    files.append(File.generated(config, "reference/index.md", content=reference_index()))
    for module in MODULES:
        files.append(File.generated(config, module.page, content=reference(module)))
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Lead links that leave docs/ to the repository."""
    folder = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda found: site_link(folder, found[1]), markdown)


def on_page_content(html: str, page: Page, **_) -> str:
    """Warn of public functions and classes that the reference leaves out: an error, as the build is strict."""
    for module in MODULES:
        if module.page == page.file.src_uri:
            for name in module.public:
                if f'id="{module.name}.{name}"' not in html:
                    LOG.warning("%s has no entry in the reference", f"{module.name}.{name}")
    return html


def site_link(folder: str, link: str) -> str:
    """Where a link on a page in docs/`folder` leads on the site."""
    path = posixpath.normpath(posixpath.join("docs", folder, link))
    if ":" in link or path.startswith("docs/"):
        return link
    if not (ROOT / path).exists():
        LOG.warning("the link %s leads to no file of the repository", link)
    return f"{REPOSITORY}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"


def front_page() -> str:
    """README.md, with links relative to docs/ in place of the root of the repository."""
    in_docs = lambda link: link if ":" in link else posixpath.relpath(link, "docs")
    return LINK.sub(lambda found: in_docs(found[1]), (ROOT / "README.md").read_text())


def reference_index() -> str:
    """What is used most, and all packages."""
    most_used = "\n".join(f"- [`{name}`][{name}]" for name in MOST_USED)
    rows = "\n".join(f"| [`{package.name}`]({package.name}.md) | {package.summary} |" for package in PACKAGES)
    table = f"| package | contents |\n|---|---|\n{rows}\n"
    return f"# API reference\n\nMost used:\n\n{most_used}\n\n## Packages\n\n{table}"


def reference(module: Module) -> str:
    """The page of a module; that of a package lists its modules."""
    lines = [f"# {module.name}", "", f"[`{module.source}`](../../{module.source})", "", f"::: {module.name}"]
    lines += ["    options:", f"      members: {module.public or 'false'}", ""]
    if module.is_package and (inner := [m for m in MODULES if m.package == module.name and m is not module]):
        lines += ["## Modules", "", "| module | contents |", "|---|---|"]
        lines += [f"| [`{m.name.rpartition('.')[2]}`]({m.name}.md) | {m.summary} |" for m in inner]
    return "\n".join(lines) + "\n"
