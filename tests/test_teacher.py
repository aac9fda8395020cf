"""Teachers: runs, whose classes are matched with the student's by name, and published weights."""

import jax
import numpy as np
import pytest

from tests.objectives.starts import started
from tests.test_models import filled
from train.build import DataInfo, build_objective
from train.config import Config, Distill
from train.distill import teacher
from train.errors import UserError
from train.published import say
from train.run.stored import Run
from train.validation import validate
from vit_jax import create_model, load_pretrained, save_pretrained
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.tags import find_tag

SIZES = ("dim=16", "depth=1", "heads=2", "dim_head=8", "mlp_dim=32", "patch_size=4")
INFO = DataInfo(("cat", "dog", "owl"), (8, 8, 1), (0.5,), (0.25,))


def taught_by(monkeypatch, names, objective=None, features=None):
    """The teacher for a student of INFO, from a run with the classes `names`."""
    config = Config(model="vit", model_args=SIZES, objective=objective)
    info = INFO._replace(class_names=names)
    trained = build_objective(config, info)
    params, extras = started(trained, info.images)
    run = Run(config, info, trained, params, extras)
    monkeypatch.setattr(teacher, "is_workdir", lambda path: True)
    monkeypatch.setattr(teacher, "load_run", lambda path: run)
    distill = Distill(teacher="runs/it", features=features)
    return run, *teacher.load_teacher(Config(model="vit", distill=distill), INFO)


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


def test_features_need_neither_classes_nor_their_names(monkeypatch):
    run, found, frozen = taught_by(monkeypatch, ("left", "right"), features="tokens")
    assert (found.network, found.order) == (run.objective.model, None)
    run, found, frozen = taught_by(monkeypatch, (), objective="mae", features="pooled")
    assert found.network == run.objective.encoder
    assert frozen["teacher"]["params"].keys() == run.params["encoder"].keys()


def test_features_of_torchvisions_weights_are_for_any_classes(monkeypatch):
    monkeypatch.setattr(teacher, "weights_file", lambda *_: "squeezenet1_1.pth")
    monkeypatch.setattr(teacher, "load_weights", lambda *_: {})
    distill = dict(teacher="squeezenet1_1", weights="IMAGENET1K_V1", image_size=(32, 32))
    info = INFO._replace(image_shape=(32, 32, 3))
    classes = [loaded(info, **distill, features=features)[0].network.num_classes for features in (None, "pooled")]
    assert classes == [3, 1000]


# Published weights.

NAME, TAG = "timm/vit_tiny_patch16_224", "augreg_in21k_ft_in1k"
TINY = dict(image_size=8, patch_size=4, dim=12, depth=1, heads=2, mlp_dim=16, num_classes=3)
COLOURED = INFO._replace(image_shape=(16, 12, 3), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with random weights, as timm writes it."""
    model = create_model(NAME, **TINY)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32)))
    folder = tmp_path_factory.mktemp("published")
    save_pretrained(folder, model, variables, Preprocessing(8, interpolation="bilinear", mean=(0.1, 0.2, 0.3)))
    return folder


def loaded(info=COLOURED, **distill):
    return teacher.load_teacher(Config(distill=Distill(**distill)), info)


def test_a_folder_of_published_weights(published, capsys):
    say.cache_clear()
    found, frozen = loaded(teacher=str(published))
    expected = load_pretrained(published, image_size=(16, 12), notify=lambda line: None)
    assert (found.network, found.image_size) == (expected.model, (16, 12))
    jax.tree.map(np.testing.assert_array_equal, frozen["teacher"], expected.variables)
    assert (found.mean, found.std) == (expected.preprocess.mean, expected.preprocess.std)
    assert (found.student_mean, found.student_std) == (COLOURED.mean, COLOURED.std)
    assert (found.interpolation, found.order) == ("bilinear", None)
    assert capsys.readouterr().err == "positions are resampled from 2 x 2 to 4 x 3 patches\n"

    found, _ = loaded(teacher=str(published), image_size="own")
    assert (found.network.image_size, found.image_size) == (8, (8, 8))


@pytest.mark.parametrize("tag", ["", f".{TAG}"])
def test_a_network_of_timms_with_weights_in_a_file(published, tag):
    """A tag says how images were normalised for its weights."""
    sizes = tuple(f"{key}={value}" for key, value in TINY.items() if key not in ("image_size", "num_classes"))
    named = Distill(teacher=NAME + tag, weights=str(published / "model.safetensors"), args=sizes, image_size=(8, 8))
    validate(Config(distill=named))
    found, frozen = teacher.load_teacher(Config(distill=named), COLOURED)
    preprocessing = find_tag(NAME + tag).preprocessing if tag else Preprocessing()
    assert (found.mean, found.std) == (preprocessing.mean, preprocessing.std)
    of_folder, same = loaded(teacher=str(published), image_size="own")
    assert found.image_size == of_folder.image_size
    jax.tree.map(np.testing.assert_array_equal, frozen, same)


@pytest.mark.parametrize(
    ("kwargs", "info", "message"),
    [
        (dict(), COLOURED._replace(class_names=("a", "b")), "has 3 classes, and the data has 2: expected the same"),
        (dict(), COLOURED._replace(image_shape=(16, 18, 3)), "multiples of patch_size=4.* See --distill.image-size"),
        (dict(), COLOURED._replace(image_shape=(16, 12, 2)), "takes images of 3 channels; the data has 2"),
        (dict(args=("num_classes=3",)), COLOURED, "--distill.args num_classes: is set by the weights"),
        (dict(args=("dpeth=2",)), COLOURED, "unknown argument of load_pretrained: 'dpeth'; did you mean depth"),
    ],
)
def test_published_weights_that_do_not_fit(published, kwargs, info, message):
    with pytest.raises(UserError, match=message) as caught:
        loaded(info, teacher=str(published), **kwargs)
    assert str(caught.value).startswith((f"--distill.teacher {published}", "--distill.args"))


@pytest.mark.parametrize(
    "error", [ImportError("pip install it"), OSError("no network,\ntry again"), ValueError("none")]
)
def test_errors_of_loading_name_the_option(monkeypatch, error):
    def fail(source, **_):
        assert source == "hf:some/where"
        raise error

    monkeypatch.setattr(teacher, "load_pretrained", fail)
    validate(Config(distill=Distill(teacher="hf:some/where")))
    with pytest.raises(UserError) as caught:
        loaded(teacher="hf:some/where")
    assert str(caught.value) == f"--distill.teacher hf:some/where: {error}"


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        (dict(teacher=NAME), "has no tag: expected one of timm/vit_tiny_patch16_224.augreg_in21k"),
        (dict(teacher=f"{NAME}.augreg"), "unknown published weights: .*; did you mean"),
        (dict(teacher="hf:some"), "is not a repository on the hub: expected ORG/REPO"),
        (dict(teacher="vit"), "published weights .* or a model name together with --distill.weights"),
        (dict(teacher=NAME, weights="/nowhere.pth"), "--distill.weights /nowhere.pth does not exist"),
    ],
)
def test_wrong_names_are_refused_before_data_is_read(distill, message):
    with pytest.raises(UserError, match=message):
        validate(Config(distill=Distill(**distill)))
