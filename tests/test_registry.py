"""The table of models: names, error messages, lazy imports, and a test row for every model."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import linen as nn

import vit_jax
from tests.cases import CASES, CLASSIFIERS, FILES
from tests.cases.case import BLOCKS, IMAGE
from vit_jax import create_model, list_models, list_presets
from vit_jax.registry import MODELS, TORCHVISION, model_arguments
from vit_jax.teachers import create_teacher, list_teachers


def test_list_models_is_in_order():
    assert list_models() == sorted(MODELS)
    assert {"vit", "t2t", "vit:Transformer"} <= set(list_models())


def test_registry_files_and_rows_agree():
    assert {case.name for case in CASES} == set(list_models())
    files = {path.stem for path in Path(vit_jax.__file__).parent.glob("models/*.py")} - {"__init__"}
    assert {name.partition(":")[0] for name in MODELS} == files == set(FILES)
    for name, target in MODELS.items():
        module, _, class_name = target.partition(":")
        if module.startswith("vit_jax.models."):
            assert module == f"vit_jax.models.{name.partition(':')[0]}"
        if ":" in name:
            assert class_name == name.partition(":")[2]


def test_rows_have_names_of_their_own():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", MODELS)
def test_every_classifier_has_a_tiny_preset(name):
    assert "tiny" in list_presets(name) or name not in CLASSIFIERS


def test_a_preset_gives_way_to_arguments():
    model = create_model("vit/tiny", num_classes=10, depth=7)
    assert (model.num_classes, model.depth, model.dim) == (10, 7, create_model("vit/tiny", num_classes=1).dim)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vitt", {}, r"unknown model: 'vitt'; did you mean vit"),
        ("xyz123", {}, r"unknown model: 'xyz123'; expected one of .*cait, .*vit:Transformer"),
        ("resnet5", {}, r"unknown model: 'resnet5'; did you mean resnet50"),
        ("resnet50/resnet18", {}, r"unknown preset of model 'resnet50': 'resnet18'; expected one of \(none\)"),
        ("swin_t", {"window": 8}, r"unknown argument of model 'swin_t': 'window'; did you mean window_size"),
        ("", {}, r"unknown model: ''; expected one of accept_video_wrapper, ats_vit"),
        ("cait/s42", {}, r"unknown preset of model 'cait': 's42'; did you mean .*s24"),
        ("vit/", {}, r"unknown preset of model 'vit': ''; expected one of tiny, ti16"),
        ("vit:Transformer/tiny", {}, r"unknown preset of model 'vit:Transformer': 'tiny'; expected one of \(none\)"),
        ("vit", {"patchsize": 4}, r"unknown argument of model 'vit': 'patchsize'; did you mean patch_size"),
        ("vit/tiny", {"num_classes": 2, "parent": None}, r"unknown argument of model 'vit': 'parent'"),
        ("vit/tiny", {"num_classes": 2, "name": "x"}, r"unknown argument of model 'vit': 'name'"),
        ("vit/tiny", {}, r"model 'vit' needs num_classes: pass values or a preset \(vit/PRESET\)"),
        ("pit", {"image_size": 8}, r"model 'pit' needs patch_size, num_classes, dim, depth, heads, mlp_dim"),
    ],
)
def test_what_is_wrong_is_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **kwargs)


def test_torchvisions_networks_are_models():
    model = create_model("swin_t", num_classes=10)
    assert (type(model).__name__, model.depths, model.num_classes) == ("SwinTransformer", (2, 2, 6, 2), 10)
    assert create_teacher("swin_t", num_classes=10) == model
    assert list_teachers() == sorted(TORCHVISION)
    assert "num_heads" in model_arguments("swin_t")
    with pytest.raises(ValueError, match="unknown teacher: 'vit'; did you mean"):
        create_teacher("vit")


def test_unknown_names_of_list_presets():
    with pytest.raises(ValueError, match="unknown model: 'vitt'"):
        list_presets("vitt")


def test_every_class_is_importable_by_name():
    classes = {target.partition(":")[2] for name, target in MODELS.items() if ":" not in name} | {"DistillableViT"}
    functions = {"create_model", "list_models", "list_presets"}
    functions |= {"list_pretrained", "load_pretrained", "save_pretrained"}
    assert set(vit_jax.__all__) == classes | functions
    assert all(callable(getattr(vit_jax, name)) for name in functions)
    assert set(vit_jax.__all__) <= set(dir(vit_jax))
    for name in classes:
        assert issubclass(getattr(vit_jax, name), nn.Module)
        assert getattr(vit_jax, name).__name__ == name
    assert type(create_model("vit", **IMAGE, **BLOCKS)) is vit_jax.ViT
    with pytest.raises(AttributeError, match="'vit_jax' has no attribute 'Vit'"):
        vit_jax.Vit  # noqa: B018


LAZY = """
import sys
import vit_jax

vit_jax.list_models()
heavy = {"jax", "flax", "flax.linen", "torch", "optax", "tensorflow", "orbax", "vit_jax.models.vit"}
print(*sorted(heavy & sys.modules.keys()))
vit_jax.ViT
print(*sorted(name for name in sys.modules if name.startswith("vit_jax.models.")))
print(*sorted({"torch", "tensorflow", "vit_pytorch", "train"} & sys.modules.keys()))
"""


def test_importing_imports_no_model():
    lines = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=True).stdout.split("\n")
    assert lines[:3] == ["", "vit_jax.models.vit", ""]


def test_presets_are_shared_without_harm():
    """Two models can share the module of a preset, each with its own parameters."""
    models = [create_model("efficient/tiny", num_classes=k) for k in (2, 3)]
    shapes = [
        jax.eval_shape(m.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")) for m in models
    ]
    assert [s["params"]["mlp_head"]["fc"]["bias"].shape for s in shapes] == [(2,), (3,)]
