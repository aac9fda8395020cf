"""Schedules at points computed by hand; optimizers against numpy and torch; decay and layers of real models."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cases import CLASSIFIERS
from tests.test_models import abstract
from train.build import DataInfo, build_objective, make_network
from train.config import Config, Optim, without_former_defaults
from train.errors import UserError
from train.optim import Extension, decay_mask, layer_scales, make_average, make_optimizer, make_schedule
from train.optim.cautious import cautious
from train.optim.muon import hidden_matrices
from train.program import build_program
from train.run.description import optimizer_line
from train.sharding import make_mesh

CONFIG = Optim(lr=0.1, warmup_epochs=2.0, final_lr=0.02, weight_decay=0.3, beta1=0.8, beta2=0.95, clip_norm=0.0)
PARAMS = {
    "fc": {
        "kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32),
        "bias": np.array([0.7, -0.4], np.float32),
    }
}
GRADS = [
    {"fc": {"kernel": np.array(k, np.float32), "bias": np.array(b, np.float32)}}
    for k, b in (
        ([[0.3, -0.1], [2.0, 0.7]], [0.5, -1.5]),
        ([[-0.4, 0.2], [1.0, -0.6]], [0.25, 1.0]),
    )
]


def with_(**changes):
    return dataclasses.replace(CONFIG, **changes)


def updated(config, params, gradients, schedule=lambda step: 0.1 / (step + 1)):
    """Parameters after each update."""
    optimizer = make_optimizer(config, schedule, params)
    state, history, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def run(config, schedule=lambda step: 0.1 / (step + 1)):
    """The layer of PARAMS after each of the two updates."""
    return [params["fc"] for params in updated(config, PARAMS, GRADS, schedule)]


def of_timm(optimizer):
    """torch, and timm's module of an optimizer."""
    torch = pytest.importorskip("torch")
    import tests.upstream  # noqa: F401, which makes torchvision importable, and so timm

    return torch, pytest.importorskip(f"timm.optim.{optimizer}")


# 10 steps per epoch, 2 epochs of warm-up, 100 steps: halfway after the warm-up is step 60.
@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("cosine", {0: 0, 10: 0.05, 20: 0.1, 40: 0.02 + 0.04 * (1 + 2**-0.5), 60: 0.06, 100: 0.02}),
        ("linear", {0: 0, 5: 0.025, 20: 0.1, 40: 0.08, 60: 0.06, 100: 0.02}),
        ("constant", {0: 0, 10: 0.05, 20: 0.1, 60: 0.1, 100: 0.1}),
        ("rsqrt", {0: 0, 10: 0.05, 20: 0.1, 80: 0.05, 180: 0.1 / 3}),
        ("wsd", {0: 0, 10: 0.05, 20: 0.1, 60: 0.1, 75: 0.1, 80: 0.084, 95: 0.036, 100: 0.02, 200: 0.02}),
    ],
)
def test_schedule_at_hand_worked_points(shape, points):
    schedule = make_schedule(with_(schedule=shape, decay_share=0.25), total_steps=100, steps_per_epoch=10.0)
    np.testing.assert_allclose([schedule(step) for step in points], list(points.values()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "rsqrt", "wsd"])
def test_schedule_without_warmup_starts_at_the_peak(shape):
    schedule = make_schedule(with_(schedule=shape, warmup_epochs=0.0), total_steps=100, steps_per_epoch=10.0)
    assert schedule(0) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "rsqrt", "wsd"])
def test_run_shorter_than_its_warmup_ends_on_the_rise(shape):
    schedule = make_schedule(with_(schedule=shape), total_steps=5, steps_per_epoch=10.0)
    np.testing.assert_allclose([schedule(step) for step in range(6)], 0.005 * np.arange(6), rtol=1e-6)


def test_a_decay_longer_than_the_run_begins_after_the_warmup():
    schedule = make_schedule(with_(schedule="wsd", decay_share=1.0), total_steps=100, steps_per_epoch=10.0)
    np.testing.assert_allclose([schedule(step) for step in (20, 60, 100)], [0.1, 0.06, 0.02], rtol=1e-6)


def test_an_extended_run_is_constant_again_before_it_decays_once_more():
    config = with_(schedule="wsd", warmup_epochs=0.0, decay_share=0.5, final_lr=0.0)
    schedule = make_schedule(config, 4, 10.0, (Extension(4, 12, "stretch"),))
    expected = [0.1, 0.1, 0.1, 0.05, 0.1, 0.1, *(0.1 * (12 - step) / 6 for step in range(6, 13))]
    np.testing.assert_allclose([schedule(step) for step in range(13)], expected, rtol=1e-5, atol=1e-9)


def test_default_schedules_are_as_before():
    """Older versions stored `cosine` where no schedule was given."""
    for name, default in (("adamw", "cosine"), ("schedule_free_adamw", "constant")):
        assert Optim(name=name).shape == default
        for given, kept in ((default, None), (None, None), ("linear", "linear")):
            assert without_former_defaults(Config(optim=Optim(name=name, schedule=given))).optim.schedule == kept


def test_the_learning_rate_is_scaled_with_the_batch_on_request():
    config = Config(model="vit", batch_size=64, optim=with_(lr_batch_size=256, warmup_epochs=0.0))
    info = DataInfo(("a", "b"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    program = build_program(config, info, make_mesh(devices=jax.devices()[:1]), build_objective(config, info), 10, 1.0)
    assert program.schedule(0) == pytest.approx(0.1 * 64 / 256)
    assert program.schedule(10) == pytest.approx(0.02)  # the final one is not scaled
    assert with_().for_batches_of(64) == with_()
    shown = optimizer_line(config.optim, 64)
    assert shown == "adamw, learning rate 0.025 (0.1 x 64 / 256 images), cosine"
    assert optimizer_line(with_(cautious=True), 64) == "cautious adamw, learning rate 0.1, cosine"


def reference(name, w, grads, decay, adapt, masked=False):
    """Two updates of one array in numpy, by the papers' formulas, with learning rates 0.1 and 0.05."""
    b1, b2 = 0.8, 0.95
    m, v, out = 0.0, 0.0, []
    for t, (g, lr) in enumerate(zip(grads, (0.1, 0.05), strict=True), 1):
        if name == "lion":
            update = np.sign(b1 * m + (1 - b1) * g)
            m = b2 * m + (1 - b2) * g
        elif name == "sgd":
            m = b1 * m + g
            update = g + b1 * m
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            eps = 1e-6 if name == "lamb" else 1e-8
            update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        if masked:
            agrees = update * g > 0
            update = update * agrees / agrees.mean()
        update = update + decay * w
        if name == "lamb" and adapt:
            update = update * np.linalg.norm(w) / np.linalg.norm(update)
        w = w - lr * update
        out.append(w)
    return out


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
def test_two_updates_against_numpy(name):
    history = run(with_(name=name))
    for leaf, decay in (("kernel", 0.3), ("bias", 0.0)):
        grads = [g["fc"][leaf].astype(np.float64) for g in GRADS]
        expected = reference(name, PARAMS["fc"][leaf].astype(np.float64), grads, decay, adapt=leaf == "kernel")
        for got, want in zip(history, expected, strict=True):
            np.testing.assert_allclose(got[leaf], want, rtol=2e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
def test_cautious_updates_against_numpy(name):
    w, *grads = (np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32) for seed in range(3))
    history = updated(with_(name=name, cautious=True), {"kernel": w}, [{"kernel": g} for g in grads])
    exact = [x.astype(np.float64) for x in (w, *grads)]
    expected = reference(name, exact[0], exact[1:], 0.3, adapt=True, masked=True)
    plain = reference(name, exact[0], exact[1:], 0.3, adapt=True)
    assert np.abs(expected[1] - plain[1]).max() > 0.01  # some of the second updates do not agree
    for got, want in zip(history, expected, strict=True):
        np.testing.assert_allclose(got["kernel"], want, rtol=1e-5, atol=1e-6)


def test_cautious_updates_against_timm():
    torch, adamw = of_timm("adamw")
    w, *grads = (np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32) for seed in range(3))
    weight = torch.nn.Parameter(torch.tensor(w))
    theirs = adamw.AdamWLegacy([weight], lr=0.1, betas=(0.8, 0.95), weight_decay=0.3, caution=True)
    ours = updated(with_(cautious=True), {"kernel": w}, [{"kernel": g} for g in grads], lambda step: 0.1)
    for gradient, got in zip(grads, ours, strict=True):
        weight.grad = torch.tensor(gradient)
        theirs.step()
        np.testing.assert_allclose(got["kernel"], weight.detach(), rtol=1e-5, atol=1e-6)


def test_an_update_that_agrees_nowhere_is_left_out():
    optimizer = cautious(optax.scale(-1.0))
    updates, _ = optimizer.update({"w": jnp.arange(3.0)}, optimizer.init({"w": jnp.zeros(3)}))
    np.testing.assert_array_equal(updates["w"], [0, 0, 0])


def test_schedule_free_adamw_against_numpy():
    """Two updates by algorithm 1 of the paper (arXiv:2405.15682), with learning rates that rise."""
    rate, b1, b2, decay = lambda step: 0.1 * (step + 1), 0.8, 0.95, 0.3
    w, *grads = (np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32) for seed in range(4))
    config = with_(name="schedule_free_adamw")
    optimizer = make_optimizer(config, rate, {"kernel": w})
    params, state = {"kernel": jnp.asarray(w)}, optimizer.init({"kernel": jnp.asarray(w)})
    x = y = z = w.astype(np.float64)
    v = weights = 0.0
    for t, g in enumerate(grads):
        updates, state = optimizer.update({"kernel": g}, state, params)
        params = optax.apply_updates(params, updates)
        averaged = make_average(config)(None, params, state, t)
        v = b2 * v + (1 - b2) * g.astype(np.float64) ** 2
        z = z - rate(t) * (g / (np.sqrt(v / (1 - b2 ** (t + 1))) + 1e-8) + decay * y)
        weight = rate(t + 1) ** 2  # optax counts from 1 here
        weights += weight
        x = x + weight / weights * (z - x)
        y = b1 * x + (1 - b1) * z
        np.testing.assert_allclose(params["kernel"], y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(averaged["kernel"], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_two_updates_against_torch(name):
    torch = pytest.importorskip("torch")
    kernel, bias = (torch.nn.Parameter(torch.tensor(PARAMS["fc"][leaf])) for leaf in ("kernel", "bias"))
    decay = 0.3 if name == "adamw" else 0.0  # torch's SGD has no decoupled decay
    groups = [{"params": [kernel], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}]
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95))
    else:
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True)
    history = run(with_(name=name, weight_decay=decay), schedule=lambda step: 0.1)
    for grads, got in zip(GRADS, history, strict=True):
        kernel.grad, bias.grad = (torch.tensor(grads["fc"][leaf]) for leaf in ("kernel", "bias"))
        optimizer.step()
        np.testing.assert_allclose(got["kernel"], kernel.detach(), rtol=2e-6)
        np.testing.assert_allclose(got["bias"], bias.detach(), rtol=2e-6)


def test_clipping_scales_all_gradients_by_the_global_norm():
    norm = float(np.sqrt(sum((g**2).sum() for g in GRADS[0]["fc"].values())))
    plain = with_(name="sgd", weight_decay=0.0, beta1=0.0)
    free, clipped, loose = (run(dataclasses.replace(plain, clip_norm=c))[0] for c in (0.0, norm / 4, norm * 2))
    for leaf, start in PARAMS["fc"].items():
        np.testing.assert_allclose(clipped[leaf] - start, (free[leaf] - start) / 4, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(loose[leaf], free[leaf])


def tree(*paths):
    """Nested dicts with an abstract leaf at each of these paths."""
    root = {}
    for path in paths:
        *parents, leaf = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    return root


def flat(nested):
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(nested)[0]}


def test_decay_reaches_kernels_only():
    decayed = {
        "to_patch_embedding/proj/kernel",
        "patch_transformer/attn_0/to_qkv/kernel",
        "pool_0/depthwise/kernel",
        "mlp_head/fc/kernel",
    }
    spared = {
        "to_patch_embedding/proj/bias",
        "to_patch_embedding/norm/scale",
        "cls_token",
        "distillation_token",
        "pos_embedding",
        "patch_transformer/attn_0/mix_heads_pre_attn",
        "patch_transformer/attn_scale_0",
        "patch_transformer/norm/bias",
    }
    mask = flat(decay_mask(tree(*decayed, *spared)))
    assert {path for path, on in mask.items() if on} == decayed
    assert {path for path, on in mask.items() if not on} == spared


# Each model's parameters by layer, first to last.
MODELS = {
    "vit": [
        {"to_patch_embedding/proj/kernel", "to_patch_embedding/norm_1/scale", "cls_token", "pos_embedding"},
        *(
            {
                f"transformer/attn_{i}/to_qkv/kernel",
                f"transformer/ff_{i}/fc1/bias",
                f"transformer/ff_{i}/norm/scale",
            }
            for i in range(12)  # ten comes after nine, not after one
        ),
        {"transformer/norm/scale", "mlp_head/kernel", "mlp_head/bias"},
    ],
    "t2t, distilled": [
        {
            "student/to_patch_embedding/transformer_1/attn_0/to_qkv/kernel",
            "student/to_patch_embedding/proj/kernel",
            "student/cls_token",
            "distillation_token",
        },
        {"student/transformer/attn_0/to_qkv/kernel", "student/transformer/ff_0/fc2/kernel"},
        {"student/transformer/attn_1/to_qkv/kernel"},
        {"student/mlp_head/kernel", "distill_mlp/fc/kernel"},
    ],
    "pit": [
        {"to_patch_embedding/kernel", "pos_embedding"},
        {"stage_0/attn_0/to_qkv/kernel", "stage_0/ff_0/fc1/kernel"},
        {"stage_0/attn_1/to_qkv/kernel"},
        {"pool_0/depthwise/kernel", "pool_0/cls_ff/kernel"},
        {"stage_1/attn_0/to_qkv/kernel"},
        {"mlp_head/fc/kernel"},
    ],
    "cait": [
        {"to_patch_embedding/proj/kernel", "cls_token"},
        {"patch_transformer/attn_0/to_q/kernel", "patch_transformer/attn_scale_0"},
        {"patch_transformer/attn_1/to_q/kernel", "patch_transformer/ff_scale_1"},
        {"cls_transformer/attn_0/to_q/kernel", "cls_transformer/attn_scale_0"},
        {"cls_transformer/ff_1/fc1/kernel"},
        {"mlp_head/norm/scale"},
    ],
    "levit": [
        {"stem_3/kernel"},
        {"attn_0_0/to_q/kernel", "ff_0_0/fc1/kernel"},
        {"attn_0_1/to_q/kernel"},
        {"attn_1_0/to_q/kernel"},
        {"mlp_head/kernel"},
    ],
    "twins": [
        {"embed_0/proj/kernel"},
        {"first_0/local_attn_0/to_q/kernel", "first_0/global_ff_0/fc1/kernel"},
        {"peg_0/kernel"},
        {"embed_1/proj/kernel"},
        {"first_1/local_attn_0/to_q/kernel"},
        {"head/kernel"},
    ],
}


@pytest.mark.parametrize("model", MODELS)
def test_layer_scales_shrink_from_the_head_to_the_embedding(model):
    layers = MODELS[model]
    scales = flat(layer_scales(tree(*set().union(*layers)), 0.5))
    expected = {path: 0.5 ** (len(layers) - 1 - i) for i, layer in enumerate(layers) for path in layer}
    assert scales == expected


# Layers of published networks, first to last: a pattern of the parameters of each.
TIMM = [
    r"to_patch_embedding/.*|(cls|reg|distillation)_token|pos_embedding|norm_pre/.*",
    *(rf"transformer/block_{i}/.*" for i in range(12)),
    r"(norm|classifier|classifier_dist)/.*",
]
SWIN = enumerate((2, 1, 2, 1, 6, 1, 2), 1)  # stages, and the patch merging between them
LAYERS = {
    "timm/vit_base_patch16_clip_224": TIMM,  # has norm_pre
    "timm/deit_tiny_distilled_patch16_224": TIMM,
    "timm/vit_small_patch14_reg4_dinov2": TIMM,
    "timm/pit_s_distilled_224": [
        r"patch_embed/.*|pos_embed|cls_token",
        *(rf"stage_0/block_{i}/.*" for i in range(2)),
        r"down_1/.*",
        *(rf"stage_1/block_{i}/.*" for i in range(6)),
        r"down_2/.*",
        *(rf"stage_2/block_{i}/.*" for i in range(4)),
        r"(norm|head|head_dist)/.*",
    ],
    "timm/levit_128s": [
        r"stem_.*",
        *(rf"(attn|ff)_{stage}_{i}/.*" for stage, depth in enumerate((2, 1, 3, 1, 4)) for i in range(depth)),
        r"(mlp_head|distill_head)(_norm)?/.*",
    ],
    "vit_b_16": [
        "class_token|conv_proj/.*|pos_embedding",
        *(rf"encoder_layer_{i}/.*" for i in range(12)),
        r"(ln|head)/.*",
    ],
    "swin_t": [
        r"features_0_[02]/.*",
        *(rf"features_{i}_{j}/.*" if n > 1 else rf"features_{i}/.*" for i, n in SWIN for j in range(n)),
        r"(norm|head)/.*",
    ],
    "convnext_tiny": [
        r"features_0_[01]/.*",
        *(rf"features_{i}_{j}/.*" for i, n in enumerate((3, 2, 3, 2, 9, 2, 3), 1) for j in range(n)),
        r"(norm|head)/.*",
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_scales_of_published_networks(name):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    scales = flat(layer_scales(jax.eval_shape(make_network(name).init, jax.random.key(0), images)["params"], 0.5))
    layers = LAYERS[name]
    for path, scale in scales.items():
        assert [0.5 ** (len(layers) - 1 - i) for i, layer in enumerate(layers) if re.fullmatch(layer, path)] == [scale]


def test_layer_decay_scales_the_whole_update():
    params = {name: {"kernel": jnp.full((2,), 4.0)} for name in ("to_patch_embedding", "attn_0", "attn_1", "mlp_head")}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = make_optimizer(with_(name="sgd", layer_decay=0.5), lambda step: 0.1, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    whole = -0.1 * (1 + 0.8 + 0.3 * 4)
    for name, share in (("mlp_head", 1), ("attn_1", 1 / 2), ("attn_0", 1 / 4), ("to_patch_embedding", 1 / 8)):
        np.testing.assert_allclose(updates[name]["kernel"], whole * share, rtol=1e-6)


# Muon

# In a block: a fused kernel, filters, a depthwise filter, and others; outside of one: a head.
HIDDEN = {
    "transformer": {
        "attn_0": {"to_qkv": {"kernel": (4, 9)}, "to_out": {"kernel": (3, 4), "bias": (4,)}},
        "ff_0": {"fc1": {"kernel": (2, 2, 2, 3)}, "depthwise": {"kernel": (3, 3, 1, 4)}},
    },
    "mlp_head": {"kernel": (4, 5)},
}


def drawn(shapes, seed):
    """Normal numbers of these shapes."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def orthogonalized(matrix):
    """Five iterations of Newton and Schulz, with the authors' coefficients."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def muon_reference(matrix, grads, decay):
    """Two updates of a matrix (inputs, outputs) with learning rates 0.1 and 0.05, with Nadam's momentum."""
    m, out, beta = 0.0, [], 0.95
    for t, (g, lr) in enumerate(zip(grads, (0.1, 0.05), strict=True), 1):
        m = beta * m + (1 - beta) * g
        momentum = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        direction = 0.2 * np.sqrt(max(g.shape)) * orthogonalized(momentum)
        matrix = matrix - lr * (direction + decay * matrix)
        out.append(matrix)
    return out


def muon_history():
    """The parameters `HIDDEN`, two gradients, and the parameters after each update."""
    params, *grads = (drawn(HIDDEN, seed) for seed in range(3))
    history = updated(with_(name="muon"), params, grads)
    return flat(params), list(map(flat, grads)), list(map(flat, history))


def test_muon_against_numpy():
    start, grads, history = muon_history()
    as_matrices = {  # each part of a fused kernel by itself; filters with all inputs in the rows
        "transformer/attn_0/to_qkv/kernel": [lambda x, i=i: x[:, 3 * i : 3 * i + 3] for i in range(3)],
        "transformer/attn_0/to_out/kernel": [lambda x: x],
        "transformer/ff_0/fc1/kernel": [lambda x: x.reshape(8, 3)],
    }
    for path, weights in start.items():
        gradients = [g[path].astype(np.float64) for g in grads]
        if path in as_matrices:
            for part in as_matrices[path]:
                expected = muon_reference(part(weights), list(map(part, gradients)), decay=0.3)
                for got, want in zip(history, expected, strict=True):
                    np.testing.assert_allclose(part(got[path]), want, rtol=1e-5, atol=1e-6)
        else:
            decay = 0.0 if path.endswith("bias") else 0.3
            expected = reference("adamw", weights.astype(np.float64), gradients, decay, adapt=False)
            for got, want in zip(history, expected, strict=True):
                np.testing.assert_allclose(got[path], want, rtol=1e-5, atol=1e-6)


def test_first_update_of_muon_against_timm():
    """The first, because timm does not correct the bias of Nesterov momentum, which later changes the direction."""
    torch, muon = of_timm("muon")
    start, grads, history = muon_history()
    path = "transformer/attn_0/to_out/kernel"
    gradient = torch.tensor(grads[0][path].T)  # torch has outputs first
    coefficients, float32 = muon._COEFFICIENTS["original"], torch.float32  # its optimizer iterates in bfloat16
    direction = muon.zeropower_via_newtonschulz(gradient, steps=5, coefficients=coefficients, dtype=float32)
    update = muon.get_lr_scale(gradient.shape, "match_rms_adamw") * direction.numpy().T
    np.testing.assert_allclose(history[0][path], start[path] - 0.1 * (update + 0.3 * start[path]), rtol=1e-5, atol=1e-6)


def test_muon_updates_the_matrices_of_lora_as_they_are():
    layer = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 9))}
    params = {"lora": {"transformer": {"attn_0": {"to_qkv": layer}}}, "mlp_head": {"kernel": jnp.ones((4, 5))}}
    assert flat(hidden_matrices(params)) == {path: path.startswith("lora") for path in flat(params)}
    state = jax.eval_shape(make_optimizer(with_(name="muon"), optax.constant_schedule(0.1), params).init, params)
    assert [leaf.shape for leaf in jax.tree.leaves(state[0].inner_states["muon"].inner_state.mu)] == [(4, 2), (2, 9)]


def test_muon_needs_a_matrix_in_a_block():
    with pytest.raises(UserError, match=r"--optim\.name muon: none of the trained parameters is a matrix in a block"):
        make_optimizer(with_(name="muon"), optax.constant_schedule(0.1), PARAMS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_muon_splits_and_flattens_the_kernels_of_every_model(name):
    _, variables, *_ = abstract(name)
    optimizer = make_optimizer(with_(name="muon"), optax.constant_schedule(0.1), variables["params"])
    shapes = jax.eval_shape(optimizer.init, variables["params"])
    muon = shapes[0].inner_states["muon"].inner_state.mu
    assert {len(leaf.shape) for leaf in jax.tree.leaves(muon)} <= {2, 3}


# All optimizers


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion", "schedule_free_adamw"])
def test_abstract_parameters_suffice_and_the_state_can_be_abstract(name):
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    optimizer = make_optimizer(with_(name=name, layer_decay=0.9, clip_norm=1.0), optax.constant_schedule(0.1), abstract)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(optimizer.init, abstract))
    state = optimizer.init(PARAMS)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    jax.jit(optimizer.update)(GRADS[0], state, PARAMS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("warmup-epochs", -1.0),
        ("final-lr", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("weight-decay", -0.1),
        ("layer-decay", 0.0),
        ("layer-decay", 1.1),
        ("clip-norm", -1.0),
    ],
)
def test_senseless_values_are_named(option, value):
    config = with_(**{option.replace("-", "_"): value})
    with pytest.raises(UserError, match=f"--optim.{option} is {value}; it must be"):
        make_schedule(config, 100, 10.0)
    with pytest.raises(UserError, match=f"--optim.{option} is {value}; it must be"):
        make_optimizer(config, optax.constant_schedule(0.1), PARAMS)
