"""Attention maps and embeddings out of every model: what they are, in which order, and what they cost."""

import importlib
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.cases import CASES, CLASSIFIERS, FIRST
from tests.cases.case import Case, Inner, build, build_upstream
from tests.test_models import abstract, filled, inputs_of, program, variables_of
from vit_jax import create_model
from vit_jax.capture import attention, embeddings, features, rollout
from vit_jax.convert import from_torch

# Models that change their maps after the softmax, so that rows do not sum to one.
NOT_SHARES = {
    "cait": "mixes the heads' maps after the softmax, by any numbers",
    "deepvit": "mixes the heads' maps after the softmax, and normalises them over heads",
    "wwt": "has the tokens compete for a slot: what each gets of it sums to one over them",
}


def named(maps) -> dict[str, jax.Array]:
    """Maps by name; maps in one array are named by index."""
    return maps if isinstance(maps, OrderedDict) else {str(i): attn for i, attn in enumerate(maps)}


def capture(case):
    """The model of a row, a function from its variables and input to its maps, and these two."""
    x, kwargs = inputs_of(case)
    if case is FIRST[case.name]:
        model, shapes, *_ = abstract(case.name)
        variables = filled(shapes)
    else:
        model = build(case)
        variables = variables_of(model, x, kwargs)
    return model, lambda variables, x: attention(model, variables, x, **kwargs), variables, x


def names(case: Case | Inner) -> set[str]:
    """The name of a row's model, and those of models inside it."""
    return {case.name}.union(*(names(value) for value in case.kwargs.values() if isinstance(value, Inner)))


def rows(usual) -> list:
    """Rows of models with maps. Those for which `usual` is true run always, the others only on request."""
    marks = lambda case: () if usual(case) else pytest.mark.exhaustive
    return [pytest.param(case, marks=marks(case), id=str(case)) for case in CASES if case.maps]


@pytest.mark.parametrize("case", rows(lambda case: case is FIRST[case.name]))
def test_rows_sum_to_one(case):
    _model, maps_of, variables, x = capture(case)
    maps = jax.device_get(named(jax.jit(maps_of)(variables, x)))
    assert len(maps) == case.maps
    others = [name for name, attn in maps.items() if (attn < 0).any() or (np.abs(attn.sum(axis=-1) - 1) > 1e-5).any()]
    if case is FIRST[case.name]:
        assert bool(others) == (case.name in NOT_SHARES)
    elif not names(case) & NOT_SHARES.keys():
        assert not others


QUICK = [FIRST[name] for name in ("vit", "t2t")]  # without jit a model takes seconds


@pytest.mark.parametrize("case", rows(lambda case: case in QUICK))
def test_jit_changes_nothing(case):
    _model, maps_of, variables, x = capture(case)
    maps, eager = jax.device_get((named(jax.jit(maps_of)(variables, x)), named(maps_of(variables, x))))
    assert list(maps) == list(eager)
    for name, attn in eager.items():  # operations that are compiled together round otherwise; large scores tell
        np.testing.assert_allclose(maps[name], attn, rtol=0, atol=1e-5 * np.abs(attn).max(), err_msg=name)


@pytest.mark.parametrize("name", FIRST)
def test_the_program_is_that_of_a_model_without_capture(name, monkeypatch):
    plain, _ = program(name)
    monkeypatch.setattr(nn.Module, "sow", lambda *_: False)
    without, _ = program.__wrapped__(name)
    assert str(without) == str(plain)


def test_the_lowered_step_is_that_of_a_model_without_capture(monkeypatch):
    model, (x, _) = build(FIRST["vit"]), inputs_of(FIRST["vit"])
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def step(**options):
        loss = lambda variables, x: jax.tree.leaves(model.apply(variables, x, **options))[-1].sum()
        return jax.jit(lambda variables, x: jax.value_and_grad(loss)(variables, x)).lower(variables, x).as_text()

    plain, collecting = step(), step(mutable=["intermediates"])
    monkeypatch.setattr(nn.Module, "sow", lambda *_: False)
    assert step() == plain
    assert collecting != plain


# Order and names


def test_layers_are_in_order_of_execution_under_jit_too():
    """Sorted by name, "attn_10" would come before "attn_2", and the patch embedding after the transformer."""
    model = create_model("t2t/tiny", num_classes=5, depth=11)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    names = list(jax.eval_shape(lambda variables, x: attention(model, variables, x), variables, x))
    assert names == ["to_patch_embedding/transformer_0/attn_0", *(f"transformer/attn_{i}" for i in range(11))]


def test_a_layer_that_runs_twice_stands_where_it_ran():
    model = build(FIRST["looped_vit"], num_looped_blocks=2, pre_loop_depth=1, post_loop_depth=1)
    (x, _) = inputs_of(FIRST["looped_vit"])
    variables = variables_of(model, x, {})
    once, twice = (jax.jit(lambda loops=loops: attention(model, variables, x, loop_depth=loops))() for loops in (1, 2))
    assert (len(once), len(twice)) == (4, 6)
    np.testing.assert_allclose(twice[:3], once[:3], atol=1e-6)
    assert np.abs(twice[3] - twice[1]).max() > 1e-3


def test_a_layer_with_several_maps_numbers_them():
    case = FIRST["regionvit"]
    _model, maps_of, variables, x = capture(case)
    names = list(jax.eval_shape(maps_of, variables, x))
    assert names[:2] == ["stage_0/attn_0/0", "stage_0/attn_0/1"]


def test_what_was_captured_before_is_left_out():
    _model, maps_of, variables, x = capture(FIRST["vit"])
    stale = {"transformer": {"attn_0": {"attn": (jnp.zeros((2, 3, 17, 17)),)}}}
    np.testing.assert_array_equal(maps_of({**variables, "intermediates": stale}, x), maps_of(variables, x))


def test_a_model_without_maps_is_named():
    model, x = build(FIRST["vit"], depth=0), jnp.ones(FIRST["vit"].input_shape)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="ViT makes no attention maps: expected a model with attention"):
        jax.eval_shape(lambda variables, x: attention(model, variables, x), variables, x)


def test_torchvisions_networks_have_theirs():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for name, shape in (("vit_b_32", (12, 1, 12, 2, 2)), ("resnet18", None)):
        model = create_model(name, num_classes=5, **({"image_size": 32} if shape else {}))
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        look = lambda model=model, variables=variables: jax.eval_shape(
            lambda variables, x: attention(model, variables, x), variables, x
        )
        if shape:
            assert look().shape == shape
        else:
            with pytest.raises(ValueError, match="ResNet makes no attention maps"):
                look()


# Embeddings


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_has_features(name):
    """Tokens are the output of the model without classes, which rows with `num_classes=0` compare with upstream's."""
    model, variables, x, kwargs = abstract(name)
    look = lambda variables, x, kwargs: features(model, variables, x, layers=(0, -1), **kwargs)
    found = jax.eval_shape(look, variables, x, kwargs)
    encoder = build(FIRST[name], num_classes=0)  # whose parameters are all among the model's
    assert found.tokens == jax.eval_shape(lambda v, x, kw: encoder.apply(v, x, **kw), variables, x, kwargs)
    assert found.logits == program(name)[1]
    logits, width = jax.tree.leaves(found.logits)[0], variables["params"]
    kernels = [leaf for leaf in jax.tree.leaves(width) if leaf.ndim == 2 and leaf.shape[1] == model.num_classes]
    assert found.pooled.shape[:-1] == logits.shape[:-1]
    assert found.pooled.shape[-1] in {kernel.shape[0] for kernel in kernels} | {sum(k.shape[0] for k in kernels)}
    assert len(found.layers) == 2


HEADS = {  # of a linear map to the logits, where its kernel and bias are
    "vit": ("mlp_head",),
    "cait": ("mlp_head", "fc"),
    "twins_svt": ("head",),
    "vit_with_decorr": ("mlp_head",),
}


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_a_linear_map_of_pooled_features(name):
    model, (x, kwargs) = build(FIRST[name]), inputs_of(FIRST[name])
    variables = variables_of(model, x, kwargs)
    found = jax.device_get(jax.jit(lambda v, x: features(model, v, x, **kwargs))(variables, x))
    head = variables["params"]
    for part in HEADS[name]:
        head = head[part]
    expected = found.pooled @ np.asarray(head["kernel"]) + np.asarray(head.get("bias", 0.0))
    np.testing.assert_allclose(jax.tree.leaves(found.logits)[0], expected, atol=1e-4)


def test_layers_are_the_outputs_of_blocks():
    """The last norm makes tokens of the last; those of two blocks are those of a model with two."""
    model, (x, _) = build(FIRST["vit"], depth=3), inputs_of(FIRST["vit"])
    variables = variables_of(model, x, {})
    found = jax.jit(lambda v, x: features(model, v, x, layers=(1, -1, 2)))(variables, x)
    second, last, same = found.layers
    np.testing.assert_array_equal(last, same)
    norm = lambda tokens: nn.LayerNorm(epsilon=1e-5).apply(
        {"params": variables["params"]["transformer"]["norm"]}, tokens
    )
    np.testing.assert_allclose(norm(last), found.tokens, atol=1e-5)
    params = variables["params"]["transformer"]
    shorter = {name: part for name, part in params.items() if not name.endswith("_2")}
    shorter = {"params": {**variables["params"], "transformer": shorter}}
    tokens = jax.jit(lambda v, x: features(build(FIRST["vit"], depth=2), v, x).tokens)(shorter, x)
    np.testing.assert_allclose(norm(second), tokens, atol=1e-5)
    with pytest.raises(ValueError, match=r"layers=\(3,\): expected numbers from -3 to 2, as ViT has 3 blocks"):
        jax.eval_shape(lambda v, x: features(model, v, x, layers=(3,)), variables, x)


def test_a_model_without_classes_has_features():
    model, (x, _) = build(FIRST["cait"], num_classes=0), inputs_of(FIRST["cait"])
    variables = variables_of(model, x, {})
    found = jax.jit(lambda v, x: features(model, v, x))(variables, x)
    assert found.logits is None
    token = np.asarray(found.tokens[:, 0], np.float64)  # a head normalises it
    expected = (token - token.mean(1, keepdims=True)) / np.sqrt(token.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found.pooled, expected, atol=1e-4)


def test_images_of_many_sizes_have_features():
    model = build(FIRST["na_vit"])
    images = [np.ones((8, 16, 3), np.float32), np.ones((16, 8, 3), np.float32), np.ones((8, 8, 3), np.float32)]
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    found = jax.eval_shape(lambda v: features(model, v, images), variables)
    assert found.logits.shape == (3, model.num_classes)
    assert found.pooled.shape == (3, model.dim)


WITH_HEADS = [name for name in CLASSIFIERS if all(hasattr(build(FIRST[name]), part) for part in ("encode", "head"))]
OWN_HEADS = ("vit", "t2t", "jumbo_vit", "vivit", "normalized_vit")  # the others' are those of frames


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OWN_HEADS else pytest.mark.exhaustive) for name in WITH_HEADS]
)
def test_the_head_makes_logits_of_embeddings(name):
    case = FIRST[name]
    model, (x, kwargs) = build(case), inputs_of(case)
    variables = variables_of(model, x, kwargs)

    @jax.jit
    def both(variables, x):
        features = jax.tree.leaves(embeddings(model, variables, x, **kwargs))[0]
        return model.apply(variables, features, method="head"), model.apply(variables, x, **kwargs)

    logits, expected = both(variables, x)
    np.testing.assert_allclose(logits, jax.tree.leaves(expected)[0], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FIRST if not hasattr(build(FIRST[name]), "num_classes")])
def test_models_without_a_head_are_named(name):
    model = build(FIRST[name])
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no num_classes: expected a classifier"):
        embeddings(model, {}, jnp.zeros((1, 4, 24)))
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no num_classes: expected a classifier"):
        features(model, {}, jnp.zeros((1, 4, 24)))


# Upstream


def test_maps_and_embeddings_are_upstreams():
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake  # first, as it lets vit_pytorch be imported

    upstream = importlib.import_module
    Recorder, Extractor = upstream("vit_pytorch.recorder").Recorder, upstream("vit_pytorch.extractor").Extractor
    case = FIRST["vit"]
    twin, model, (x, _) = shake(build_upstream(case)), build(case), inputs_of(case)
    variables = from_torch(model, twin.state_dict(), x)
    with torch.no_grad():
        _logits, expected = Recorder(twin)(channels_first(np.asarray(x)))
        _logits, tokens = Extractor(twin)(channels_first(np.asarray(x)))
    np.testing.assert_allclose(attention(model, variables, x), expected.transpose(0, 1), atol=1e-5)
    np.testing.assert_allclose(embeddings(model, variables, x), tokens, atol=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("simple_vit", "attend"), ("deepvit", "reattn_norm")])
def test_maps_are_those_of_models_that_upstream_cannot_record(name, layer):
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake

    Recorder = importlib.import_module("vit_pytorch.recorder").Recorder
    case = FIRST[name]
    twin, model, (x, _) = shake(build_upstream(case)), build(case), inputs_of(case)
    variables, expected = from_torch(model, twin.state_dict(), x), []
    for path, module in twin.named_modules():
        if path.endswith(f".{layer}"):
            module.register_forward_hook(lambda _module, _inputs, out: expected.append(out))
    with torch.no_grad():
        _logits, recorded = Recorder(twin)(channels_first(np.asarray(x)))
    assert recorded is None
    np.testing.assert_allclose(attention(model, variables, x), torch.stack(expected), atol=1e-5)


# Rollout


def test_rollout_is_worked_by_hand():
    first = [[[0.5, 0.5], [0.0, 1.0]], [[0.5, 0.5], [0.4, 0.6]]]  # two heads, whose mean is (0.5, 0.5), (0.2, 0.8)
    last = [[[1.0, 0.0], [1.0, 0.0]]] * 2
    rolled = rollout(jnp.array([[first], [last]]))
    # ((1.5, 0.5), (0.2, 1.8)) / 2, then ((2, 0), (1, 1)) / 2 times that
    np.testing.assert_allclose(rolled, [[[0.75, 0.25], [0.425, 0.575]]], atol=1e-6)


def test_rollout_keeps_rows_and_float32():
    maps = jax.nn.softmax(jax.random.normal(jax.random.key(0), (3, 2, 4, 5, 5)))
    rolled = jax.jit(rollout)(maps.astype(jnp.bfloat16))
    assert rolled.dtype == jnp.float32
    np.testing.assert_allclose(rolled.sum(axis=-1), np.ones((2, 5)), atol=1e-6)
    expected = np.eye(5)[None]
    for attn in np.asarray(maps, np.float64):
        expected = (attn.mean(1) + np.eye(5)) / 2 @ expected
    np.testing.assert_allclose(rollout(maps), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (jnp.ones((1, 2, 3, 4, 5)), r"maps of shape \(1, 2, 3, 4, 5\): expected one array \(layers, b, heads, n, n\)"),
        (jnp.ones((1, 2, 3, 2, 4, 4)), r"maps of shape \(1, 2, 3, 2, 4, 4\): expected"),
        (
            OrderedDict(a=jnp.ones((2, 3, 4, 4)), b=jnp.ones((2, 3, 1, 5))),
            r"maps of shape \(2, 3, 1, 5\), \(2, 3, 4, 4\): expected",
        ),
    ],
)
def test_rollout_names_maps_of_other_shapes(maps, message):
    with pytest.raises(ValueError, match=message):
        rollout(maps)
