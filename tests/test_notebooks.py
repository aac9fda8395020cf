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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run(path, tmp_path):
    cells = jupytext.read(path).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert code[0].startswith("%pip install")  # which is a command of Jupyter's, and done here
    (tmp_path / "notebook.py").write_text("\n\n".join(code[1:]))
    cache = {"VIT_JAX_CACHE": str(tmp_path / "cache"), "MPLBACKEND": "agg", "PYTHONPATH": str(path.parents[1])}
    offline = {"http_proxy": "http://localhost:9", "https_proxy": "http://localhost:9"}
    ran = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
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
