"""LoRA: worked examples, gradients by the formula, and runs whose weights are merged wherever they are used."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.objectives.starts import started
from tests.runs import assert_same, flat, stored, untrained
from tests.runs import train as run
from train.build import DataInfo, build_objective
from train.config import Config, Lora
from train.lora import linear_kernels, merged, with_matrices
from train.optim import decay_mask, layer_scales
from train.partial import make_partial
from train.program import build_program
from train.run.stored import load_run, model_variables
from train.sharding import make_mesh
from train.step import init_state, make_train_step
from vit_jax import create_model
from vit_jax.convert import to_torch
from vit_jax.objectives.classify import Classify

INFO = DataInfo(tuple("0123456789"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
RNG = np.random.default_rng(0)


def test_a_worked_example():
    kernel, a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0], [2.0]]), np.array([[10.0, 20.0]])
    params = {"attn_0": {"kernel": kernel, "bias": np.ones(2)}, "lora": {"attn_0": {"a": a, "b": b}}}
    new = merged(params, Lora(rank=1, alpha=3.0))
    np.testing.assert_array_equal(new["attn_0"]["kernel"], [[31, 62], [63, 124]])  # 1 + 3 * 1 * 10, ...
    assert new.keys() == {"attn_0"}
    assert new["attn_0"]["bias"] is params["attn_0"]["bias"]
    np.testing.assert_array_equal(merged(params, Lora(rank=1))["attn_0"]["kernel"], [[11, 22], [23, 44]])  # alpha 1
    convolution = {"attn_0": {"kernel": kernel[None, None]}, "lora": params["lora"]}
    np.testing.assert_array_equal(merged(convolution, Lora(1))["attn_0"]["kernel"], [[[[11, 22], [23, 44]]]])
    halves = merged(params, Lora(rank=2, alpha=1.0))["attn_0"]["kernel"]
    np.testing.assert_array_equal(halves, kernel + a @ b / 2)


def abstract(model):
    return jax.eval_shape(build_objective(Config(model), INFO).init, jax.random.key(0), INFO.images)[0]


PARTS = ("attn_{}/to_qkv", "attn_{}/to_out", "ff_{}/fc1", "ff_{}/fc2")
TIMM_PARTS = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("vit", {f"transformer/{part.format(i)}" for part in PARTS for i in range(4)}),
        ("timm/vit_tiny_patch16_224", {f"transformer/block_{i}/{part}" for part in TIMM_PARTS for i in range(12)}),
    ],
)
def test_linear_layers_of_every_block_have_matrices(model, layers):
    assert {"/".join(path) for path in linear_kernels(abstract(model))} == {f"{layer}/kernel" for layer in layers}


def test_new_matrices_change_nothing():
    params = started(Classify(create_model("vit/tiny", num_classes=10, image_size=8)), jnp.zeros((1, 8, 8, 3)))[0]
    lora = Lora(rank=4, alpha=8.0)
    new = jax.jit(lambda params: with_matrices(params, lora, jax.random.key(1)))(params)
    assert_same(flat(params), flat({name: tree for name, tree in new.items() if name != "lora"}))
    assert_same(flat(params), flat(jax.jit(lambda params: merged(params, lora))(new)))
    matrices = flatten_dict(new["lora"])
    assert len(matrices) == 2 * len(linear_kernels(params)) == 2 * 4 * 4
    for (*layer, name), matrix in matrices.items():
        inputs, outputs = flatten_dict(params)[*layer, "kernel"].shape
        assert matrix.shape == {"a": (inputs, 4), "b": (4, outputs)}[name]
        if name == "b":
            assert not matrix.any()
        else:  # uniform in both directions up to 1 / sqrt(inputs), and another for every layer
            assert 0.9 * inputs**-0.5 < matrix.max() < inputs**-0.5
            assert -0.9 * inputs**-0.5 > matrix.min() > -(inputs**-0.5)
    assert len({float(matrix[0, 0]) for path, matrix in matrices.items() if path[-1] == "a"}) == len(matrices) / 2


def test_matrices_decay_and_have_the_rate_of_their_block():
    params = abstract("vit")
    params = jax.eval_shape(lambda: with_matrices(params, Lora(2), jax.random.key(0)))
    assert all(jax.tree.leaves(decay_mask(params)["lora"]))
    scales = layer_scales(params, 0.5)
    for i in range(4):
        assert scales["lora"]["transformer"][f"attn_{i}"] == {
            layer: {"a": 0.5 ** (4 - i), "b": 0.5 ** (4 - i)} for layer in ("to_qkv", "to_out")
        }


SIZES = dict(image_size=8, patch_size=4, num_classes=5, channels=1, dim=8, depth=1, heads=2, dim_head=4, mlp_dim=12)
IMAGES = jnp.asarray(RNG.standard_normal((8, 8, 8, 1), np.float32))
BATCH = {"image": IMAGES, "label": jnp.arange(8) % 5}


def test_a_step_follows_the_gradients_of_the_formula(monkeypatch):
    """With W + s a b in place of W, the gradients of a and b are s dW b^T and s a^T dW, of the head the usual one."""
    objective = Classify(create_model("vit", **SIZES))
    config = Config(lora=Lora(rank=2, alpha=3.0))
    start = started(objective, IMAGES[:1])
    monkeypatch.setattr(Classify, "init", lambda *_: start)
    partial = make_partial(config, objective, IMAGES[:1])
    prepare = lambda _, batch: (batch["image"], jax.nn.one_hot(batch["label"], 5))
    optimizer = optax.sgd(1.0)
    state = init_state(objective, optimizer, jax.random.key(0), IMAGES, ema=False, partial=partial)
    matrices = jax.tree.map(lambda x: jnp.asarray(RNG.standard_normal(x.shape, np.float32) / 4), state.params["lora"])
    state = state.replace(params={**state.params, "lora": matrices})
    new, metrics = jax.jit(make_train_step(objective, optimizer, prepare, partial=partial))(state, BATCH, {})

    base = flatten_dict({name: tree for name, tree in state.params.items() if name != "lora"}, sep="/")
    a_b = {layer: (matrices_of(state, layer)) for layer in ("attn_0/to_qkv", "attn_0/to_out", "ff_0/fc1", "ff_0/fc2")}
    whole = {**base}
    for layer, (a, b) in a_b.items():
        whole[f"transformer/{layer}/kernel"] = base[f"transformer/{layer}/kernel"] + 1.5 * a @ b

    def loss_of(flat_params):
        logits = objective.model.apply({"params": unflatten_dict(flat_params, sep="/")}, IMAGES)
        return -(jax.nn.one_hot(BATCH["label"], 5) * jax.nn.log_softmax(logits)).sum() / 8

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(whole)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    for layer, (a, b) in a_b.items():
        d_kernel, (new_a, new_b) = grads[f"transformer/{layer}/kernel"], matrices_of(new, layer)
        np.testing.assert_allclose(new_a, a - 1.5 * d_kernel @ b.T, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(new_b, b - 1.5 * a.T @ d_kernel, rtol=1e-4, atol=1e-6)
    after = flatten_dict({name: tree for name, tree in new.params.items() if name != "lora"}, sep="/")
    for path, leaf in base.items():
        if path.startswith("mlp_head"):
            np.testing.assert_allclose(after[path], leaf - grads[path], rtol=1e-4, atol=1e-6)
        else:
            np.testing.assert_array_equal(after[path], leaf)


def matrices_of(state, layer):
    node = state.params["lora"]["transformer"]
    for name in layer.split("/"):
        node = node[name]
    return node["a"], node["b"]


OPTIONS = ("--lora.rank=2", "--lora.alpha=8", "--steps=4", "--save-steps=2", "--eval-epochs=0.05", "--optim.ema=0.5")
OPTIONS += ("--optim.warmup-epochs=0", "--optim.lr=0.05", "--mesh=tensor=2")


def test_a_run_is_merged_wherever_it_is_used(tmp_path, capsys):
    base, workdir = tmp_path / "base", tmp_path / "adapted"
    untrained(base)
    assert run(workdir, *OPTIONS, f"--init={base}", devices=2) == 0
    out = capsys.readouterr().out
    assert re.search(r"\ntrained +[\d,]+ parameters", out)
    assert "lora/transformer" not in out  # the matrices are not among the variables that --init left random
    start, (early, late) = stored(base, 0)[0], (stored(workdir, step)[0] for step in (2, 4))
    same = [path for path in start if path.startswith(".params") and "mlp_head" not in path]
    assert_same({path: start[path] for path in same}, {path: late[path] for path in same})
    changed = {path for path in late if (early[path] != late[path]).any()}
    trained = {path for path in late if re.search("lora|mlp_head|opt_state|step", path)}
    assert changed == trained  # the rest is the same to the last bit
    assert {path for path in late if ".opt_state" in path} & changed == {path for path in late if ".opt_state" in path}

    loaded = load_run(workdir)
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    kept = stored(workdir, step)[0]
    for layer in ("['attn_0']['to_qkv']", "['ff_0']['fc2']"):
        kernel, a, b = (
            kept[f".ema{path}"]
            for path in (f"['transformer']{layer}['kernel']", *(f"['lora']['transformer']{layer}['{x}']" for x in "ab"))
        )
        ours = flat(loaded.params)[f"['transformer']{layer}['kernel']"]
        np.testing.assert_allclose(ours, kernel + 8 / 2 * a @ b, rtol=1e-5, atol=1e-6)
        assert np.abs(ours - kernel).max() > 1e-3
    assert not any("lora" in path for path in flat(loaded.params))
    to_torch(*model_variables(loaded))  # strict


def test_only_matrices_and_the_head_have_optimizer_state():
    config = Config("vit", ("depth=2",), batch_size=8, lora=Lora(4))
    program = build_program(config, INFO, make_mesh(devices=jax.devices()[:1]), build_objective(config, INFO), 10, 1.0)
    trained = sum(leaf.size for leaf in jax.tree.leaves(program.trained))
    moments = sum(leaf.size for leaf in jax.tree.leaves(program.state.opt_state) if leaf.ndim)
    assert moments == 2 * trained
    dim, hidden, blocks, rank = 64, 128, 2, 4
    sides = (dim + 3 * dim) + (dim + dim) + 2 * (dim + hidden)
    assert trained == blocks * rank * sides + dim * 10 + 10
