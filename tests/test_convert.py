"""Conversion of weights is exact and strict, from every kind of source and for every kind of layer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.cases import CASES
from tests.cases.case import build, build_upstream
from tests.states import PRECISIONS, RNG, Toy, assert_equal_states, refusal, state_of
from vit_jax.convert import from_torch, to_torch

ROWS = {str(case): case for case in CASES}
SMALL = ROWS["vit-mean"]


def shapes_of(case):
    return case.inputs(np.random.default_rng(0))


# Models.


def test_variables_are_copies():
    model, x = build(SMALL), shapes_of(SMALL)[0]
    state = state_of(model, x)
    variables = from_torch(model, state, x)
    kept = jax.tree.map(np.array, variables)
    for value in state.values():
        value += 1
    jax.tree.map(np.testing.assert_array_equal, variables, kept)


@pytest.mark.exhaustive  # test_parity.py shows it of upstream's weights, with the conversion that it makes anyway
@pytest.mark.parametrize("case", CASES, ids=str)
def test_upstream_loads_what_we_export(case):
    torch = pytest.importorskip("torch")
    import tests.upstream  # noqa: F401

    model, (x, kwargs), twin = build(case), shapes_of(case), build_upstream(case)
    exported = state_of(model, x, **kwargs)
    twin.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=True)
    state = {key: value.numpy() for key, value in twin.state_dict().items()}
    assert_equal_states(state, exported)
    assert_equal_states(to_torch(model, from_torch(model, twin.state_dict(), x, **kwargs)), state)


@pytest.fixture(scope="module")
def vit():
    model, (x, _) = build(SMALL), shapes_of(SMALL)
    return model, state_of(model, x), x


def assert_same_variables(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["model.pth", "model.pt"])
def test_torch_files(vit, tmp_path, name):
    torch = pytest.importorskip("torch")
    model, state, x = vit
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert_same_variables(from_torch(model, path, x), from_torch(model, state, x))


def test_safetensors_files(vit, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    model, state, x = vit
    safetensors.save_file(state, tmp_path / "model.safetensors")
    assert_same_variables(from_torch(model, tmp_path / "model.safetensors", x), from_torch(model, state, x))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_other_precisions_become_the_leafs(vit, dtype):
    model, state, x = vit
    cast = {key: value.astype(dtype) for key, value in state.items()}
    back = to_torch(model, from_torch(model, cast, x))
    assert_equal_states(back, {key: value.astype(np.float32) for key, value in cast.items()})


def test_bfloat16_tensors(vit):
    torch = pytest.importorskip("torch")
    model, state, x = vit
    tensors = {key: torch.nn.Parameter(torch.from_numpy(value).bfloat16()) for key, value in state.items()}
    back = to_torch(model, from_torch(model, tensors, x))
    assert_equal_states(back, {key: value.detach().float().numpy() for key, value in tensors.items()})


def test_to_torch_gives_arrays_of_its_own(vit):
    model, state, x = vit
    variables = from_torch(model, state, x)
    to_torch(model, variables)["mlp_head.bias"][:] = 7
    assert_equal_states(to_torch(model, variables), state)


# Strictness.


def test_both_sides_are_listed(vit):
    model, state, x = vit
    state = {**state, "head.bias": state["mlp_head.bias"], "step": np.zeros((), np.int64)}
    del state["mlp_head.bias"], state["pos_embedding"]
    assert refusal(model, state, x).split("\n") == [
        "state_dict does not fit ViT, 4 mismatches:",
        "  Flax leaf params/mlp_head/bias (5,) is left empty: there is no torch key mlp_head.bias",
        "  Flax leaf params/pos_embedding (16, 24) is left empty: there is no torch key pos_embedding",
        "  torch key head.bias (5,) is left over",
        "  torch key step () is left over",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((24, 5), np.float32), "Flax leaf params/mlp_head/kernel (24, 5) cannot take torch key KEY (24, 5)"),
        (np.zeros((6, 24), np.float32), "(24, 5) cannot take torch key KEY (6, 24)"),
        (np.zeros(120, np.float32), "(24, 5) cannot take torch key KEY (120,)"),
        (np.zeros((1, 5, 24), np.float32), "(24, 5) cannot take torch key KEY (1, 5, 24)"),
        (np.zeros((5, 24), np.int64), "(24, 5) cannot take torch key KEY of type int64"),
        (np.zeros((5, 24), np.complex64), "(24, 5) cannot take torch key KEY of type complex64"),
    ],
)
def test_what_does_not_fit_is_named(vit, value, message):
    model, state, x = vit
    message = message.replace("KEY", "mlp_head.weight")
    assert message in refusal(model, {**state, "mlp_head.weight": value}, x)


def test_a_model_of_another_size_matches_half(vit):
    model, state, x = vit
    deeper = build(SMALL, depth=3)
    assert "layers.2.0.to_qkv.weight" in refusal(deeper, state, x)
    assert "left over" not in refusal(deeper, state, x)
    message = refusal(model, state_of(deeper, x), x)
    assert "torch key transformer.layers.2.1.net.4.bias (24,) is left over" in message
    assert "left empty" not in message


def test_what_is_no_tensor_is_named(vit):
    model, state, x = vit
    assert "state_dict: 'epoch' holds a int, expected a tensor" in refusal(model, {"epoch": 3, **state}, x)


@pytest.mark.parametrize("wrong", [None, 3, ["a"]])
@pytest.mark.usefixtures("unchecked_types")
def test_only_mappings_are_weights(vit, wrong):
    model, _, x = vit
    assert f"state_dict is a {type(wrong).__name__}: expected a mapping" in refusal(model, wrong, x)


def test_constants_are_checked(vit):
    model, state, x = vit
    without = {key: value for key, value in state.items() if key != "cls_token"}
    assert "there is no torch key cls_token, which upstream stores beside its parameters" in refusal(model, without, x)
    wrong = {**state, "cls_token": np.zeros((1, 24), np.float32)}
    assert "torch key cls_token differs from its formula" in refusal(model, wrong, x)


# Layers.


def convolution(rank, groups=1, out=6, **kwargs):
    kernel = (3, 2, 4)[:rank]
    ours = nn.Conv(out, kernel, feature_group_count=groups, padding=1, **kwargs)
    return ours, f"Conv{rank}d", (4, out, kernel), dict(groups=groups, padding=1)


LAYERS = {
    "conv1d": convolution(1),
    "conv2d": convolution(2),
    "conv3d": convolution(3),
    "grouped": convolution(2, groups=2),
    "depthwise": convolution(2, groups=4, out=8),
    "dense": (nn.Dense(6), "Linear", (4, 6), {}),
    "layer norm": (nn.LayerNorm(epsilon=1e-5), "LayerNorm", (4,), {}),
    "group norm": (nn.GroupNorm(2, epsilon=1e-5, use_fast_variance=False), "GroupNorm", (2, 4), {}),
    # torch crops `padding` from the full result, lax pads what it dilates: by kernel - 1 - padding.
    "transposed": (
        nn.ConvTranspose(6, (3, 2), strides=(2, 3), padding=((1, 1), (0, 0)), transpose_kernel=True),
        "ConvTranspose2d",
        (4, 6, (3, 2)),
        dict(stride=(2, 3), padding=(1, 1)),
    ),
    "batch norm": (nn.BatchNorm(use_running_average=True, epsilon=1e-5), "BatchNorm2d", (4,), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_keep_their_values(name):
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake

    layer, torch_name, args, kwargs = LAYERS[name]
    twin = torch.nn.Module()
    twin.layer = getattr(torch.nn, torch_name)(*args, **kwargs)
    shake(twin)
    rank = int(re.search(r"\d(?=d$)", torch_name)[0]) if torch_name.endswith("d") else 0
    x = RNG.standard_normal((*(2, 7, 6, 5)[: 1 + rank], 4), np.float32)

    model = Toy(layer)
    variables = from_torch(model, twin.state_dict(), x)
    torch_x = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    expected = np.moveaxis(twin.layer(torch_x).detach().numpy(), 1, -1)
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-5, atol=1e-5)
    assert_equal_states(to_torch(model, variables), {k: v.numpy() for k, v in twin.state_dict().items()})
    if "batch" in name:
        assert variables.keys() == {"params", "batch_stats"}
        assert channels_first(x).shape == (2, 4, 7, 6)


def test_embeddings_are_not_transposed():
    weight = RNG.standard_normal((5, 5), np.float32)
    model, tokens = Toy(nn.Embed(5, 5)), jnp.array([[3, 1]])
    variables = from_torch(model, {"layer.weight": weight}, tokens)
    np.testing.assert_array_equal(model.apply(variables, tokens)[0], weight[[3, 1]])
