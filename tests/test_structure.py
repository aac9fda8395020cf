"""The structure of the library: which parts import which, and the headers of model files."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

from tests.cases import FILES
from tests.cases.case import upstream_module
from vit_jax.registry import MODELS

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "vit_jax").rglob("*.py"))
MODEL_FILES = [path for path in sorted((ROOT / "vit_jax/models").glob("*.py")) if path.name != "__init__.py"]
ALLOWED = {"vit_jax", "jax", "flax", "einops", "numpy", "jaxtyping"}
ALLOWED_THERE = {
    "vit_jax/images/__init__.py": {"PIL"},
    "vit_jax/images/bands.py": {"PIL", "tifffile"},
    "vit_jax/images/open_image.py": {"PIL"},
    "vit_jax/images/pillow.py": {"PIL"},
    "vit_jax/pretrained/preprocessing.py": {"PIL"},  # for a type
    "vit_jax/pretrained/files.py": {"safetensors"},
    "vit_jax/pretrained/hub.py": {"huggingface_hub"},
    "vit_jax/torch_file.py": {"safetensors"},
    "vit_jax/torch_pickle.py": {"ml_dtypes"},
}
# Models that upstream defines as a change of another model.
CHANGED_FROM = {
    "attn_residual_with_dca_simple_vit": "simple_vit",
    "cct_3d": "cct",
    "efficient": "vit",  # its preset has the transformer of `vit`
    "levjepa": "levjepa_nd",
    "max_vit_with_registers": "max_vit",
    "mp3": "simple_vit",
    "na_vit_nested_tensor": "na_vit",
    "na_vit_nested_tensor_3d": "na_vit_nested_tensor",
    "simple_flash_attn_vit": "simple_vit",
    "simple_flash_attn_vit_3d": "simple_flash_attn_vit simple_vit_3d",
    "simple_uvit": "simple_vit_with_register_tokens",
    "simple_vit_attn_residual": "simple_vit",
    "simple_vit_orthog_residual_update": "simple_vit",
    "simple_vit_with_fft": "simple_vit",
    "simple_vit_with_hyper_connections": "simple_vit_with_register_tokens",
    "simple_vit_with_patch_dropout": "simple_vit",
    "simple_vit_with_relative_proj_pos_bias": "simple_vit",
    "simple_vit_with_sparse_gating": "simple_vit simple_vit_with_register_tokens",
    "simple_vit_with_specialized_cls": "simple_vit",
    "simple_vit_with_value_residual": "simple_vit",
    "vit_nd_pope": "vit_nd_rotary",
    "vit_nd_rotary": "vit_nd",
    "vaat": "vat",
    "vat_siglip": "vat",
    "vivit_with_moss": "vivit",
    "xcit": "cait",
}

# Models that readers open and copy first.
WRITTEN_OUT = ("vit", "vit_1d", "vit_3d", "t2t", "simple_vit", "deepvit", "cait", "pit", "distill")

# Parts of the library that each part may import.
MAY_IMPORT = {
    "layers": {"layers"},
    "frames": {"frames", "layers"},
    "capture": set(),
    "images": {"images"},
    "models": {"frames", "layers", "models"},
    "pretrained": {"convert", "frames", "images", "layers", "models", "pretrained", "printable", "registry"}
    | {"state_dict", "torch_file"},
    "teachers": {"registry"},
    "objectives": {"frames", "layers", "objectives", "registry"},
    "convert": {"printable", "state_dict", "torch_file"},
    "state_dict": {"printable", "torch_file"},
    "torch_file": {"printable", "torch_pickle"},
    "torch_pickle": {"printable"},
    "printable": set(),
    "registry": set(),
    "__init__": {"registry"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(source: str) -> set[str]:
    """Full names of all imported modules in `source`, including imports in functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "expected absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_are_read():
    source = "import a.b\ndef f():\n    from c.d import e, g\n"
    assert imports(source) == {"a.b", "c.d.e", "c.d.g"}


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_imports_only_its_dependencies(path):
    packages = {name.partition(".")[0] for name in imports(path.read_text())}
    assert packages - sys.stdlib_module_names <= ALLOWED | ALLOWED_THERE.get(name_of(path), set())


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_imports_run_one_way(path):
    part = path.relative_to(ROOT / "vit_jax").parts[0].removesuffix(".py")
    imported = {name.split(".")[1] for name in imports(path.read_text()) if name.startswith("vit_jax.")}
    assert imported <= MAY_IMPORT[part]


@pytest.mark.parametrize("path", MODEL_FILES, ids=name_of)
def test_a_model_imports_another_only_as_its_change(path):
    models = {name.split(".")[2] for name in imports(path.read_text()) if name.startswith("vit_jax.models.")}
    assert models == set(CHANGED_FROM.get(path.stem, "").split())


@pytest.mark.parametrize("path", MODEL_FILES, ids=name_of)
def test_a_model_says_where_it_comes_from(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    upstream = upstream_module(FILES[path.stem].CASES[0])
    assert f"Upstream: {upstream.replace('.', '/')}.py" in header
    assert "Differs from upstream: " in header or not upstream.startswith("vit_pytorch.")
    assert "\nAxes: " in header


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_the_first_models_are_written_out(name):
    """Their files define attention, feed-forward, block and the model's call, without a base from another file."""
    tree = ast.parse((ROOT / f"vit_jax/models/{name}.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    called = lambda node: {ast.unparse(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)}
    defined = lambda node: {each.name for each in ast.walk(node) if isinstance(each, ast.FunctionDef)}
    attention = called(classes["Attention"])
    assert {"ToHeads", "attend"} <= attention or {"ToHeads", "softmax", "jnp.einsum"} <= attention
    assert {"gelu", "Dense"} <= called(classes["FeedForward"])
    assert "block" in defined(classes["Transformer"])
    assert {"Attention", "FeedForward"} <= called(classes["Transformer"])
    path = next(path for key, path in MODELS.items() if key.partition(":")[0] == name)
    model = classes[path.partition(":")[2]]
    assert [ast.unparse(base) for base in model.bases] == ["nn.Module"]
    assert "__call__" in {each.name for each in model.body if isinstance(each, ast.FunctionDef)}
    helpers = {"arguments", "presets", "rules", "stages"}
    for imported in imports((ROOT / f"vit_jax/models/{name}.py").read_text()):
        part = imported.split(".")[1:3]
        assert not imported.startswith("vit_jax.models.")
        assert not imported.startswith("vit_jax.frames.") or part[1] in helpers


def test_nothing_imports_the_trainer_or_upstream():
    for path in LIBRARY:
        assert not any(name.startswith("train.") for name in imports(path.read_text())), path
    for path in [*LIBRARY, *(ROOT / "train").rglob("*.py")]:
        packages = {name.partition(".")[0] for name in imports(path.read_text())}
        assert not packages & {"torch", "vit_pytorch", "tensorflow"}, path


def test_the_trainer_has_no_import_cycles():
    """So any module can be the first that a process imports."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "train").rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {}
    for module, path in modules.items():
        source = ast.parse(path.read_text())
        source.body = [node for node in source.body if isinstance(node, ast.Import | ast.ImportFrom)]  # no function's
        parts = [name.split(".") for name in imports(ast.unparse(source))]
        needed = {".".join(names[:i]) for names in parts for i in range(1, len(names) + 1)} & modules.keys()
        inside = {name for name in needed if f"{module}.".startswith(f"{name}.")}  # its packages are being imported
        graph[module] = needed - inside
    assert len(graph) > 40
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
