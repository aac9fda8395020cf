"""Frozen parameters: which ones, that they stay to the last bit, and that nothing is spent on them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from tests.cases import IMAGE_CLASSIFIERS
from tests.faults.test_resumption import interrupt_after
from tests.objectives.starts import started
from tests.runs import assert_same, error, flat, stored
from tests.runs import train as run
from train.build import DataInfo, build_objective
from train.config import Config, Distill, Lora, Optim
from train.errors import UserError
from train.optim import make_optimizer, moving_average
from train.partial import make_partial
from train.planning import lowered
from train.program import build_program
from train.recipes import base_config
from train.run.stored import load_run
from train.sharding import make_mesh
from train.step import init_state, make_train_step
from vit_jax import create_model
from vit_jax.layers import BatchNorm, Dense
from vit_jax.objectives import create_objective
from vit_jax.objectives.classify import Classify

INFO = DataInfo(tuple("0123456789"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)


def frozen(config, info=INFO):
    """Paths of the frozen parameters, and of the others."""
    objective = build_objective(config, info)
    params = jax.eval_shape(objective.init, jax.random.key(0), info.images)[0]
    partial = make_partial(config, objective, info.images)
    every = {"/".join(path) for path in flatten_dict(params)}
    still = {"/".join(path) for path in partial.frozen}
    assert still < every
    return still, every - still


# The layers of each head.
HEADS = {
    "vit": {"mlp_head"},
    "cait": {"mlp_head/norm", "mlp_head/fc"},
    "cross_vit": {f"{size}_mlp_head/{part}" for size in ("sm", "lg") for part in ("norm", "fc")},
    "levit": {"mlp_head"},
    "timm/vit_tiny_patch16_224": {"classifier"},
    "timm/deit_tiny_distilled_patch16_224": {"classifier", "classifier_dist"},
    "resnet18": {"fc"},
}


IN_CI = ("vit", "levit", "timm/deit_tiny_distilled_patch16_224")


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[] if model in IN_CI else pytest.mark.exhaustive) for model in HEADS]
)
def test_all_but_the_head_is_the_backbone(model):
    _, head = frozen(Config(model, freeze=("backbone",)))
    assert {path.rpartition("/")[0] for path in head} == HEADS[model]


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", IMAGE_CLASSIFIERS)
def test_every_classifier_has_a_head(model):
    config = base_config(None, model, None)
    side = config.data.image_size[0] if config.data.image_size else 8
    info = INFO._replace(image_shape=(side, side, 1), mean=(0.5,), std=(0.5,))
    _, head = frozen(Config(model, config.model_args, train_only="head"), info)
    assert not any(re.search("transformer|attn_|ff_|stage|embed", path) for path in head)


def test_the_head_of_distillation_has_the_token():
    config = Config("vit", freeze=("backbone",), distill=Distill(teacher="resnet18"))
    _, head = frozen(config)
    assert {path.rpartition("/")[0] or path for path in head} == {
        "student/mlp_head",
        "distill_mlp",
        "distillation_token",
    }


def test_deep_supervision_has_the_head_of_its_model():
    _, head = frozen(Config("looped_vit", objective="deep_supervision", train_only="head"))
    assert head == {"mlp_head/kernel", "mlp_head/bias"}


@pytest.mark.parametrize(
    ("freeze", "model", "expected"),
    [
        (("embeddings",), "vit", r"to_patch_embedding/.*|cls_token|pos_embedding"),
        (("blocks:0-1",), "vit", r"transformer/(attn|ff)_[01]/.*"),
        (("blocks:3", "blocks:1"), "vit", r"transformer/(attn|ff)_[13]/.*"),
        (("blocks:1-2",), "pit", r"stage_0/(attn|ff)_1/.*|pool_0/.*"),  # counted like layers of --optim.layer-decay
        (("blocks:3",), "cait", r"cls_transformer/.*"),
    ],
)
def test_blocks_and_embeddings(freeze, model, expected):
    still, others = frozen(Config(model, freeze=freeze))
    assert all(re.fullmatch(expected, path) for path in still)
    assert not any(re.fullmatch(expected, path) for path in others)


def test_objectives_without_labels_have_blocks_too():
    still, _ = frozen(Config("vit", objective="mae", freeze=("blocks:0",)), INFO._replace(class_names=()))
    assert "encoder/transformer/attn_0/to_qkv/kernel" in still


class Net(nn.Module):
    """Dropout and a batch norm between a backbone and a head, both linear."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, train=False):
        x = Dense(8, name="to_patch_embedding")(x.reshape(len(x), -1))
        x = BatchNorm(name="attn_0")(nn.Dropout(0.5)(x, deterministic=not train), train=train)
        x = nn.relu(Dense(8, name="attn_1")(x))
        return Dense(self.num_classes, name="mlp_head")(x) if self.num_classes else x


RNG = np.random.default_rng(0)
BATCH = {"image": jnp.asarray(RNG.standard_normal((8, 2, 2, 1), np.float32)), "label": jnp.arange(8) % 5}
IMAGES = jnp.zeros((1, 2, 2, 1))
OPTIM = Optim(weight_decay=0.5, clip_norm=1e-3, layer_decay=0.5)


def prepare(key, batch):
    return batch["image"], jax.nn.one_hot(batch["label"], 5)


def set_up(config, monkeypatch, **options):
    """A state with an average of the parameters, and the jitted step, of `Net`."""
    objective = Classify(Net(5))
    start = started(objective, IMAGES)
    partial = make_partial(config, objective, IMAGES)
    optimizer = make_optimizer(config.optim, optax.constant_schedule(0.1), start[0], partial)
    monkeypatch.setattr(Classify, "init", lambda *_: start)  # its random numbers compile slowly
    state = init_state(objective, optimizer, jax.random.key(0), IMAGES, ema=True, partial=partial)
    options |= dict(average=moving_average(0.9), partial=partial)
    step = make_train_step(objective, optimizer, prepare, **options)
    return state, jax.jit(step)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("freeze", [("embeddings",), ("backbone",)])
def test_frozen_parameters_stay_to_the_last_bit(freeze, accumulate, monkeypatch):
    state, step = set_up(Config(freeze=freeze, optim=OPTIM), monkeypatch, accumulate=accumulate)
    new = state
    for _ in range(3):
        new, _ = step(new, BATCH, {})
    before, after = flat(state), flat(new)
    names, parts = "to_patch_embedding", {".params", ".ema"}  # and nothing of the optimizer
    if freeze == ("backbone",):
        names, parts = f"{names}|attn_", parts | {".extras"}  # statistics of the batch norm
    still = [path for path in before if re.search(names, path)]
    assert {path.partition("[")[0] for path in still} == parts
    assert_same({path: before[path] for path in still}, {path: after[path] for path in still})
    assert all((before[path] != after[path]).any() for path in before if path not in still and path != ".step")


def test_norm_and_clipping_are_those_of_the_trained_gradients(monkeypatch):
    config = Config(freeze=("embeddings",), optim=Optim(name="sgd", beta1=0.0, weight_decay=0.0, clip_norm=0.1))
    state, step = set_up(config, monkeypatch)
    new, metrics = step(state, BATCH, {})
    objective, (images, targets) = Classify(Net(5)), prepare(None, BATCH)
    _, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    loss = lambda params: objective.loss(
        params, state.extras, {"image": images, "target": targets}, {"dropout": dropout_key}, True
    )[0]
    grads = flat(jax.jit(jax.grad(loss))(state.params))
    trained = {path: grad for path, grad in grads.items() if "to_patch_embedding" not in path}
    norm = np.sqrt(sum((grad**2).sum() for grad in trained.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm < 0.99 * np.sqrt(sum((grad**2).sum() for grad in grads.values()))
    before, after = flat(state.params), flat(new.params)
    for path, grad in trained.items():
        change = after[path] - before[path]
        np.testing.assert_allclose(change, -0.1 * 0.1 / norm * grad, atol=1e-6)  # parameters of 1 have 7 digits


def test_a_frozen_backbone_runs_as_in_evaluation(monkeypatch):
    state, step = set_up(Config(train_only="head", optim=OPTIM), monkeypatch)
    images, targets = prepare(None, BATCH)
    evaluated = Classify(Net(5)).evaluate(state.params, state.extras, {"image": images, "target": targets})
    assert step(state, BATCH, {})[1]["loss"] == pytest.approx(float(evaluated["loss"].mean()), rel=1e-6)


def program(freeze):
    config = Config("vit", ("depth=2", "patch_size=8"), batch_size=8, freeze=freeze)
    return build_program(config, INFO, make_mesh(devices=jax.devices()[:1]), build_objective(config, INFO), 10, 1.0)


def test_the_backward_pass_ends_at_the_first_trained_layer():
    none, half, backbone = (
        lowered(program(freeze)).cost_analysis()["flops"] for freeze in ((), ("embeddings", "blocks:0"), ("backbone",))
    )
    assert backbone < 0.36 * none  # the forward pass is a third
    assert half == pytest.approx((none + backbone) / 2, rel=0.1)


FROZEN = ("--freeze", "embeddings", "blocks:0", "--steps=4", "--save-steps=2", "--eval-epochs=0.05", "--optim.ema=0.9")
FROZEN += ("--optim.warmup-epochs=0", "--mesh=fsdp=2")


def test_a_run_continues_with_frozen_parameters(tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, *FROZEN, devices=2) == 0
    assert re.search(r"\ntrained +[\d,]+ parameters \(\d+\.\d+%\)\n", capsys.readouterr().out)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert run(stopped, *FROZEN, devices=2) == 130
    assert run(stopped, *FROZEN, devices=2) == 0
    assert_same(stored(stopped, 4)[0], stored(whole, 4)[0])
    early, late = (stored(whole, step)[0] for step in (2, 4))
    still = [path for path in early if re.search("cls_token|pos_embedding|to_patch_embedding|attn_0|ff_0", path)]
    assert {path.partition("[")[0] for path in still} == {".params", ".ema"}
    assert_same({path: early[path] for path in still}, {path: late[path] for path in still})
    assert all((early[path] != late[path]).any() for path in early if path not in still)
    assert load_run(whole).params.keys() >= {"transformer", "mlp_head"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--freeze", "head"), "--freeze head: expected backbone, embeddings or blocks:FIRST-LAST, as in blocks:0-8"),
        (("--freeze=blocks:3-1",), "--freeze blocks:3-1: expected blocks:1-3"),
        (("--freeze=blocks:-1",), "--freeze blocks:-1: expected backbone, embeddings or blocks:"),
        (
            ("--freeze=embeddings", "--train-only=head"),
            "--train-only head freezes all other parameters: leave out --freeze",
        ),
        (
            ("--lora.rank=4", "--freeze=backbone"),
            "--lora.rank trains its matrices and the head alone: leave out --freeze",
        ),
        (("--lora.rank=4", "--train-only=head"), "the head alone: leave out --train-only"),
        (("--lora.alpha=4",), "--lora.alpha 4 needs --lora.rank, which is not given"),
        (
            ("--objective=mae", "--freeze=backbone"),
            "--freeze backbone: objective 'mae' pretrains the backbone and has no head",
        ),
        (("--objective=dino", "--train-only=head"), "--train-only head: objective 'dino' pretrains the backbone"),
    ],
)
def test_options_that_conflict_are_named_before_data_is_read(options, message, tmp_path, capsys):
    assert message in error(capsys, tmp_path / "run", *options, "--data=folder:missing")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config("vit", freeze=("blocks:0-4",)), "--freeze blocks:0-4: vit/tiny has blocks 0 to 3"),
        (Config("vit", freeze=("blocks:7",)), "--freeze blocks:7: vit/tiny has blocks 0 to 3"),
        (Config("vgg11", lora=Lora(4)), "--lora.rank 4: vgg11 has no linear layers in blocks"),
    ],
)
def test_values_that_match_nothing_are_named(config, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        frozen(config)


def test_something_must_be_trained():
    objective = Classify(Net(0))  # nothing but embeddings and blocks
    with pytest.raises(UserError, match="--freeze embeddings blocks:0-1 leaves nothing to train in t2t/tiny"):
        make_partial(Config(freeze=("embeddings", "blocks:0-1")), objective, IMAGES)
    with pytest.raises(UserError, match="--freeze embeddings: no embeddings are recognised in t2t/tiny"):
        make_partial(Config(freeze=("embeddings",)), Classify(Dense(3)), IMAGES)


def test_blocks_of_a_decoder_are_trained():
    """Only the encoder has the blocks that --freeze counts, and LoRA's layers."""
    encoder = create_model("vit/tiny", num_classes=0, image_size=8)
    objective = create_objective("mae", encoder)
    config = Config(model="vit", objective="mae", freeze=("blocks:0",))
    images = jnp.zeros((1, 8, 8, 3))
    frozen = make_partial(config, objective, images).frozen
    assert frozen
    assert {path[0] for path in frozen} == {"encoder"}
    partial = make_partial(dataclasses.replace(config, freeze=(), lora=Lora(rank=2)), objective, images)
    params = jax.eval_shape(objective.init, jax.random.key(0), images)[0]
    extended = jax.eval_shape(partial.extended, params, jax.random.key(0))
    assert extended["lora"].keys() == {"encoder"}
