"""Teacher and student are matched by the names of their classes."""

import jax
import numpy as np
import pytest

from train.build import DataInfo, build_objective
from train.config import Config, Distill
from train.distill import teacher
from train.errors import UserError
from train.run.stored import Run

SIZES = ("dim=16", "depth=1", "heads=2", "dim_head=8", "mlp_dim=32", "patch_size=4")
INFO = DataInfo(("cat", "dog", "owl"), (8, 8, 1), (0.5,), (0.25,))


def taught_by(monkeypatch, names, objective=None):
    """The teacher for a student of INFO, from a run with the classes `names`."""
    config = Config(model="vit", model_args=SIZES, objective=objective)
    info = INFO._replace(class_names=names)
    trained = build_objective(config, info)
    params, extras = jax.jit(trained.init)(jax.random.key(0), info.images)
    run = Run(config, info, trained, params, extras)
    monkeypatch.setattr(teacher, "is_workdir", lambda path: True)
    monkeypatch.setattr(teacher, "load_run", lambda path: run)
    return run, *teacher.load_teacher(Config(model="vit", distill=Distill(teacher="runs/it")), INFO)


@pytest.mark.parametrize("names", [("cat", "dog", "owl"), ("owl", "cat", "dog"), ("dog", "cat", "owl")])
def test_classes_in_another_order_are_matched_by_name(monkeypatch, names):
    run, found, frozen = taught_by(monkeypatch, names)
    images = jax.random.normal(jax.random.key(1), (5, 8, 8, 1))
    logits = np.asarray(found.apply(frozen["teacher"], images))
    own = np.asarray(run.objective.predict(run.params, run.extras, images))
    assert np.unique(own).size == own.size
    for column, name in enumerate(INFO.class_names):
        np.testing.assert_array_equal(logits[:, column], own[:, names.index(name)])


@pytest.mark.parametrize(("names", "only_teacher", "only_data"), [
    (("cat", "dog", "Owl"), "Owl", "owl"),
    (("cat", "dog"), "none", "owl"),
    (tuple("abcdef"), "a, b, c, ...", "cat, dog, owl"),
])  # fmt: skip
def test_other_classes_are_refused(monkeypatch, names, only_teacher, only_data):
    with pytest.raises(UserError) as caught:
        taught_by(monkeypatch, names)
    assert str(caught.value) == (
        f"--distill.teacher runs/it has {len(names)} classes, and the data has 3, with other names: "
        f"only the teacher has {only_teacher}; only the data has {only_data}"
    )


def test_an_encoder_is_no_teacher(monkeypatch):
    with pytest.raises(UserError, match=r"--distill\.teacher runs/it is an encoder without classes"):
        taught_by(monkeypatch, INFO.class_names, objective="mae")
