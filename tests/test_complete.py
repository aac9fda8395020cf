"""Every public class of upstream's package has a counterpart in this library."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

from tests.cases import CASES
from vit_jax.objectives import OBJECTIVES, list_objectives

# Counterparts that are not models: "module:name" in this library.
COUNTERPARTS = {
    "dino:Dino": OBJECTIVES["dino"],
    "distill:DistillWrapper": OBJECTIVES["distill"],
    "es_vit:EsViTTrainer": OBJECTIVES["es_vit"],
    "extractor:Extractor": "vit_jax.capture:embeddings",
    "lejepa:LeJEPA": OBJECTIVES["lejepa"],
    "levjepa:LeVJEPA": OBJECTIVES["levjepa"],
    "levjepa_nd:LeVJEPAND": OBJECTIVES["levjepa_nd"],
    "mae:MAE": OBJECTIVES["mae"],
    "mp3:MP3": OBJECTIVES["mp3"],
    "mpp:MPP": OBJECTIVES["mpp"],
    "recorder:Recorder": "vit_jax.capture:attention",
    "simmim:SimMIM": OBJECTIVES["simmim"],
}


def offered(source: str) -> set[str]:
    """Classes of a file that no other class or function in it refers to: its models, without their parts."""
    tree = ast.parse(source)
    definitions = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    classes = {node.name for node in definitions if isinstance(node, ast.ClassDef)}
    named = set()
    for definition in definitions:
        inside = {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}
        named |= inside - {definition.name}
    return classes - named


def test_what_a_file_offers():
    source = "class A: pass\nclass Whole:\n  def f(self): return A()\ndef g(): return B()\nclass B: pass\n"
    assert offered(source) == {"Whole"}


def upstream_classes() -> list[str]:
    spec = importlib.util.find_spec("vit_pytorch")
    if spec is None:
        return []
    folder = Path(spec.submodule_search_locations[0])
    return [f"{path.stem}:{name}" for path in sorted(folder.glob("*.py")) for name in sorted(offered(path.read_text()))]


@pytest.mark.skipif(not upstream_classes(), reason="vit-pytorch is not installed")
def test_every_class_of_upstream_has_a_counterpart():
    models = {case.upstream for case in CASES}
    found = set(upstream_classes())
    assert len(found) > 80
    assert not found - models - COUNTERPARTS.keys()
    assert COUNTERPARTS.keys() <= found


@pytest.mark.parametrize("target", sorted(set(COUNTERPARTS.values())))
def test_counterparts_are_there(target):
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_objective_is_a_counterpart_or_ours():
    assert {name for name in list_objectives() if OBJECTIVES[name] not in COUNTERPARTS.values()} == {
        "classify",
        "deep_supervision",
        "feature_distill",
        "multilabel",
        "regress",
    }
