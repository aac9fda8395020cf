"""The notebooks run from the first cell to the last, on a CPU with the small settings that they use there."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import pytest

from tests import compiler

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


RUN = """
import os, runpy, sys
for path in sys.argv[1:]:
    os.chdir(os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")
"""


def write_code(notebook: Path, folder: Path) -> str:
    """Write the cells of code into a script, alone in a folder, and return its path."""
    code = [source for kind, source in cells_of(notebook) if kind == "code"]
    assert code[0].startswith("%pip install")  # which is a command of Jupyter's, and done here
    script = folder / notebook.stem / notebook.name
    script.parent.mkdir()
    script.write_text("\n\n".join(code[1:]))
    return str(script)


@pytest.mark.slow
def test_cells_run(tmp_path):
    """All in one process, which imports the libraries once; a traceback has the path of its notebook."""
    cache = {"VIT_JAX_CACHE": str(tmp_path / "cache"), "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    offline = {"http_proxy": "http://localhost:9", "https_proxy": "http://localhost:9"}
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *(write_code(path, tmp_path) for path in NOTEBOOKS)],
        env=os.environ | cache | offline | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiler.flags(devices=1)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def cells_of(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_colab_opens_the_same_cells(path):
    assert cells_of(path.with_suffix(".ipynb")) == cells_of(path), "run make notebooks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cells_link_to_colab_and_install_from_the_repository(path):
    (_, title), (_, install) = cells_of(path)[:2]
    colab = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
    assert f"[Open in Colab]({colab}/blob/main/notebooks/{path.stem}.ipynb)" in title
    assert f' @ git+{REPOSITORY}"' in install


def test_every_notebook_is_here():
    names = ["attention", "distil_teacher", "fine_tuning", "flax_loop", "own_images", "photos_to_model", "quick_start"]
    assert [path.stem for path in NOTEBOOKS] == names
    assert len(list((ROOT / "notebooks").glob("*.ipynb"))) == len(names)


def test_a_model_is_shared_in_ten_cells():
    assert sum(kind == "code" for kind, _ in cells_of(ROOT / "notebooks/photos_to_model.py")) <= 10
