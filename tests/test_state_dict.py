"""State dicts with a prefix, nested in a checkpoint, or of another model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from train.build import DataInfo, load_weights
from train.config import Config, Distill
from train.distill.teacher import load_teacher
from train.errors import UserError
from train.validation import check_options
from vit_jax import create_model
from vit_jax.convert import from_torch, select, to_torch
from vit_jax.state_dict import PrefixError, check_names, list_mismatches

NAMES = ("conv.weight", "conv.bias", "norm.weight", "head.weight")
STATE = {name: np.full((2,), i, np.float32) for i, name in enumerate(NAMES)}


def prefixed(prefix: str) -> dict:
    return {prefix + name: value for name, value in STATE.items()}


def prefixes_of(state) -> list[str]:
    with pytest.raises(PrefixError) as error:
        check_names("w.pth", state, "Net", set(NAMES))
    assert "\n" not in str(error.value)
    return error.value.prefixes


CHECKPOINTS = {
    "module.": prefixed("module."),  # DataParallel
    "_orig_mod.": prefixed("_orig_mod."),  # torch.compile
    "module._orig_mod.": prefixed("module._orig_mod."),
    "backbone.": {**prefixed("backbone."), "projector.0.weight": STATE["conv.weight"]},
    "model.": {"model": STATE, "optimizer": {"state": {0: {"step": 3}}, "param_groups": []}, "epoch": 3},
    "state_dict.": {"state_dict": STATE, "arch": "vit", "args": {"lr": 0.1}},
    "teacher.module.backbone.": {"student": {}, "teacher": prefixed("module.backbone."), "epoch": 3},
    "state_dict.model.": {"state_dict": prefixed("model.")},
}


@pytest.mark.parametrize("prefix", CHECKPOINTS)
def test_a_prefix_is_named_and_selects_the_weights(prefix):
    checkpoint = CHECKPOINTS[prefix]
    assert prefixes_of(checkpoint) == [prefix]
    for given in (prefix, prefix.removesuffix(".")):
        assert select(checkpoint, given) == STATE
    check_names("w.pth", select(checkpoint, prefix), "Net", set(NAMES))


def test_all_places_of_the_weights_are_named():
    checkpoint = {"model": STATE, "model_ema": {**STATE}, "epoch": 3}
    assert prefixes_of(checkpoint) == ["model.", "model_ema."]
    with pytest.raises(PrefixError) as error:
        check_names("w.pth", checkpoint, "Net", set(NAMES))
    assert str(error.value) == (
        "w.pth holds the weights of Net under 'model.' and 'model_ema.': pass vit_jax.convert.select('w.pth', 'model.')"
    )
    assert select(checkpoint, "model_ema") == STATE


def test_weights_that_half_fit_are_found_and_fewer_are_not():
    half = {"module.conv.weight": STATE["conv.weight"], "module.conv.bias": STATE["conv.bias"], "module.fc": 0}
    assert prefixes_of(half) == ["module."]
    check_names("w.pth", {"module.conv.weight": STATE["conv.weight"]}, "Net", set(NAMES))


def test_names_without_a_prefix_come_first():
    check_names("w.pth", {**STATE, **prefixed("ema.")}, "Net", set(NAMES))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({1: STATE["conv.weight"]}, r"w.pth has the key 1 \(int\), expected names of tensors"),
        ({**STATE, 1: 2}, r"w.pth has the key 1 \(int\), expected names of tensors"),
        ({("a", "b"): 2}, r"has the key \('a', 'b'\) \(tuple\)"),
        ({"model": {"a": 1}}, "holds a dict under 'model', .* the names of Net, such as 'conv.bias'"),
        ({"\x1b[2J" * 50: {}}, r"holds a dict under '\\\\x1b\[2J"),
    ],
)
def test_what_is_no_state_dict_is_named(state, expected):
    with pytest.raises(ValueError, match=expected) as error:
        check_names("w.pth", state, "Net", set(NAMES))
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_dicts_that_share_dicts_are_searched_once():
    inner = {"x": 1}
    for _ in range(60):  # 2 ** 60 names
        inner = {"a": inner, "b": inner}
    inner["self"] = inner
    with pytest.raises(ValueError, match="holds a dict under"):
        check_names("w.pth", inner, "Net", set(NAMES))
    assert select(inner, "a.b.a")


def test_a_selection_is_not_empty_and_has_each_name_once():
    with pytest.raises(ValueError, match=r"no names that begin with 'encoder'; its names: 'conv.weight', 'conv.bias'"):
        select(STATE, "encoder")
    with pytest.raises(ValueError, match="holds 'x' twice under 'model'"):
        select({"model": {"x": 1}, "model.x": 2}, "model")


@pytest.mark.usefixtures("unchecked_types")
def test_networks_of_torchvisions_refuse_numbers_as_names():
    with pytest.raises(ValueError, match=r"state_dict has the key 1 \(int\)"):
        from_torch(create_model("alexnet", num_classes=2), {1: np.zeros(3)}, jnp.zeros((1, 64, 64, 3)))


def test_the_trainer_names_its_option_and_takes_it(tmp_path):
    network = create_model("squeezenet1_1", num_classes=2)
    info = DataInfo(("a", "b"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    abstract = jax.eval_shape(network.init, jax.random.key(0), info.images)
    state = to_torch(network, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract))
    path = str(tmp_path / "w.safetensors")
    save_file({f"net.{key}": value for key, value in state.items()}, path)
    with pytest.raises(UserError, match=r"^--init: .*w.safetensors holds .* under 'net.': pass --init-prefix=net.$"):
        load_weights(network, path, None, info, "--init")
    assert load_weights(network, path, "net.", info, "--init").keys() == abstract.keys()
    teacher = Distill(teacher="squeezenet1_1", weights=path)
    with pytest.raises(UserError, match=r"pass --distill.weights-prefix=net.$"):
        load_teacher(Config(distill=teacher), info)
    assert load_teacher(Config(distill=dataclasses.replace(teacher, weights_prefix="net")), info)[0] is not None


def test_a_prefix_needs_a_file():
    with pytest.raises(UserError, match=r"--init-prefix net. needs --init, which is not given"):
        check_options(Config(init_prefix="net."))
    with pytest.raises(UserError, match=r"--distill.weights-prefix net. needs --distill.weights"):
        check_options(Config(distill=Distill(teacher="runs/teacher", weights_prefix="net.")))


def test_few_mismatches_are_listed_in_full():
    problems = [("leaves", f"leaf {i} is empty") for i in range(19)]
    lines = list_mismatches("w.pth", "Net", problems).split("\n")
    assert len(lines) == 20
    assert lines[0] == "w.pth does not fit Net, 19 mismatches:"
    assert sorted(lines[1:]) == sorted(f"  {line}" for _, line in problems)


@pytest.mark.parametrize("kinds", range(1, 7))
def test_many_mismatches_take_twenty_lines_and_show_every_kind(kinds):
    problems = [(f"of kind {kind}", f"{kind}: {i}") for i in range(5000) for kind in range(kinds)]
    lines = list_mismatches("w.pth", "Net", problems).split("\n")
    assert len(lines) <= 20
    assert lines[0] == f"w.pth does not fit Net, {5000 * kinds} mismatches:"
    examples = sum(line.startswith("  0: ") for line in lines)
    for kind in range(kinds):
        assert f"  {kind}: 0" in lines
        assert f"  ... and {5000 - examples:,} more of kind {kind}" in lines
