"""Recipes are complete, can be built, and are overridden by the command line."""

import dataclasses
import shlex

import jax
import jax.numpy as jnp
import pytest

from benchmarks.cifar10 import EXPERIMENTS, RECIPE
from tests.cases import IMAGE_CLASSIFIERS
from train.build import DataInfo, build_model, build_objective
from train.commandline.ranges import accepts, hints
from train.config import Augment, Config, Data, Distill, Optim
from train.errors import UserError
from train.extension import length
from train.main import parse
from train.optim import make_schedule
from train.program import build_program
from train.recipes import RECIPES, base_config
from train.sharding import make_mesh
from train.validation import check_options


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_where_it_is_from_and_runs_as_it_says(name):
    recipe = RECIPES[name]
    assert recipe.source
    assert recipe.expected
    program, arguments = shlex.split(recipe.command)[:3], shlex.split(recipe.command)[3:]
    assert program == ["python", "-m", "train.main"]
    config = parse(arguments)
    assert config.recipe == name
    for field, value in recipe.settings.items():
        if field != "data":  # its name may be given on the command line
            assert getattr(config, field) == value


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_sense(name):
    config = base_config(name, "vit", None)
    fields = {"data": Data, "augment": Augment, "optim": Optim, "distill": Distill}
    for field, value in RECIPES[name].settings.items():
        assert isinstance(value, fields[field]) if field in fields else accepts(hints(Config)[field], value)
    check_options(config)
    make_schedule(config.optim, 100, 10.0)


SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3), "cct": (32, 32, 3)}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_step(name):
    """Traced with one block of the model of its command, for images and classes like those of its data."""
    config = parse(shlex.split(RECIPES[name].command)[3:])
    architecture = config.model.partition(".")[0]  # published weights are not at hand
    one = "num_layers=1" if architecture.startswith("cct") else "depth=1"
    config = dataclasses.replace(config, model=architecture, model_args=(*config.model_args, one), batch_size=8)
    shape = SHAPES.get(name, (224, 224, 3))
    classes = tuple(map(str, range(1000 if config.data.name == "tfds:imagenet2012" else 10)))
    info = DataInfo(classes, shape, *[(0.5,) * shape[2]] * 2)
    assert config.data.image_size in (None, shape[:2])
    program = build_program(
        config, info, make_mesh("data=1", jax.devices()[:1]), build_objective(config, info), 10, 5.0
    )
    state, metrics = jax.eval_shape(program.train_step, program.state, program.batch, {})
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, program.state)
    assert {"loss", "accuracy"} <= metrics.keys()


VARIANTS = [options for experiment in EXPERIMENTS.values() for options in experiment.variants.values()]


@pytest.mark.parametrize("options", VARIANTS, ids=" ".join)
def test_experiments_have_options_that_fit_their_model(options):
    config = parse([*RECIPE, *options])
    check_options(config)
    build_objective(config, DataInfo(tuple("0123456789"), (32, 32, 3), *[(0.5,) * 3] * 2))


@pytest.mark.parametrize("model", IMAGE_CLASSIFIERS)
def test_digits_has_arguments_that_fit_every_model(model):
    config = base_config(None, model, None)
    assert config.recipe == "digits"
    height, width = config.data.image_size or (8, 8)
    build_model(config.model, config.model_args, DataInfo(tuple("0123456789"), (height, width, 1), (0.5,), (0.5,)))


def test_digits_goes_with_its_data_only():
    assert base_config(None, "vit", "digits").recipe == "digits"
    assert base_config(None, "vit", "folder:x") == Config(model="vit")
    assert base_config("digits", "vit", "folder:x").epochs == RECIPES["digits"].settings["epochs"]


PUBLISHED = "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"


@pytest.mark.parametrize(
    ("model", "data", "recipe"),
    [
        (PUBLISHED, "folder:x", "finetune"),
        ("hf:facebook/dinov2-small", "tfds:x", "finetune"),
        (PUBLISHED, "digits", "digits"),
        ("timm/vit_small_patch16_224", "folder:x", None),  # random weights
        ("vit/s16", "folder:x", None),
    ],
)
def test_published_weights_are_fine_tuned(model, data, recipe):
    assert base_config(None, model, data).recipe == recipe
    assert base_config("cifar10", model, data).recipe == "cifar10"


@pytest.mark.parametrize(
    ("images", "changes", "total", "epoch"),
    [
        (40, {}, 300, 15),  # instead of 25, in 20 epochs of 1.25
        (480, {}, 300, 15),
        (50_000, {}, 31250, 1562.5),
        (40, {"epochs": 10.0}, 300, 30),
        (40, {"steps": 7}, 7, 15),
        (40, {"min_steps": 0}, 25, 1.25),
    ],
)
def test_few_images_are_repeated(images, changes, total, epoch):
    config = dataclasses.replace(base_config("finetune", PUBLISHED, "folder:x"), **changes)
    assert length(config, images) == (total, epoch)


def test_unknown_recipe_is_named_with_the_known():
    with pytest.raises(UserError, match=f"--recipe nope: expected one of {', '.join(RECIPES)}"):
        base_config("nope", "vit", None)


def test_options_override_the_recipe():
    config = parse(["--model=vit", "--optim.lr=0.5", "--epochs=3", "--augment.flip"])
    recipe = base_config("digits", "vit", None)
    assert config.optim == dataclasses.replace(recipe.optim, lr=0.5)
    assert config.augment == dataclasses.replace(recipe.augment, flip=True)
    assert config.epochs == 3
    assert config.batch_size == recipe.batch_size


def test_model_arguments_stand_over_the_recipes_one_by_one():
    model_args = lambda *argv: parse(["--model=vit", *argv]).model_args
    assert model_args() == ("patch_size=(1, 8)",)
    assert model_args("--model-args", "depth=2") == ("patch_size=(1, 8)", "depth=2")
    assert model_args("--model-args", "depth=2", "patch_size=4") == ("patch_size=4", "depth=2")
    assert parse(["--model=vit", "--data=folder:x", "--model-args", "depth=2"]).model_args == ("depth=2",)


def test_a_folder_of_published_weights_is_fine_tuned(tmp_path):
    assert base_config(None, str(tmp_path), "folder:x").recipe is None
    (tmp_path / "config.json").write_text("{}")
    assert base_config(None, str(tmp_path), "folder:x").recipe == "finetune"
