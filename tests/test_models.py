"""Properties of every model: JAX transformations, dtypes, dropout, presets and error messages."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from jax.interpreters import partial_eval

from tests.cases import CASES, CLASSIFIERS, FIRST, IMAGE_CLASSIFIERS, PUBLISHED, example_shape, holds_for
from tests.cases.case import BLOCKS, IMAGE, OBLONG, Case, build, build_upstream
from vit_jax import create_model, list_models, list_presets
from vit_jax.models.cait import keep_layers

FIRST_CASES = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.exhaustive] if case.note else [], id=str(case)) for case in CASES]
)


def inputs_of(case: Case):
    return jax.device_put(case.inputs(np.random.default_rng(0)))  # jnp.asarray would compile a program for every shape


def variables_of(model, x, kwargs):
    """Variables of roughly their initial scale, all with noise, without compiling the model's init."""
    return filled(jax.eval_shape(model.init, jax.random.key(0), x, **kwargs))


def filled(shapes):
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        name, noise = jax.tree_util.keystr(path[-1:]), rng.standard_normal(leaf.shape, np.float32) * 0.2
        return jax.device_put(np.exp(noise) if "scale" in name or "var" in name else noise)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def abstract(name: str):
    """The first row's model of `name`, and the shapes of its variables, its input and its keyword inputs."""
    model, (x, kwargs) = build(FIRST[name]), inputs_of(FIRST[name])
    variables = jax.eval_shape(model.init, jax.random.key(0), x, **kwargs)
    return model, *jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (variables, x, kwargs))


@functools.cache
def program(name: str):
    """The jaxpr of that model's evaluation, and the shapes of its outputs."""
    model, *inputs = abstract(name)
    return jax.make_jaxpr(lambda v, x, kwargs: model.apply(v, x, **kwargs), return_shape=True)(*inputs)


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def assert_same(a, b, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max()), a, b)


@FIRST_CASES  # of the others test_parity.py shows it as well, from traces that it needs anyway
def test_parameters_and_attention_maps_are_pinned(case):
    model, (x, kwargs) = build(case), inputs_of(case)
    init = functools.partial(model.init_with_output, mutable=True)
    _, variables = jax.eval_shape(init, jax.random.key(0), x, **kwargs)
    intermediates = variables.pop("intermediates", {})
    if case.name == "jet_vit":  # its init also calls the attentions that a layer could draw
        apply = functools.partial(model.apply, mutable=["intermediates"])
        intermediates = jax.eval_shape(apply, variables, x, **kwargs)[1]
    collected = jax.tree_util.tree_leaves_with_path(intermediates)
    maps = [(path, leaf) for path, leaf in collected if "'block'" not in jax.tree_util.keystr(path)]
    assert {"params"} <= set(variables) <= {"params", "batch_stats"}
    assert count(variables["params"]) == case.parameters
    assert all("'attn'" in jax.tree_util.keystr(path) for path, _ in maps)
    assert all(leaf.ndim >= 4 for _, leaf in maps)
    assert len(maps) == case.maps


@pytest.mark.exhaustive  # test_parity.py shows it too, with upstream's values in place of our own
@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_transformations_change_nothing(case):
    model, (x, kwargs) = build(case), inputs_of(case)
    variables, traces = variables_of(model, x, kwargs), []
    params = variables["params"]

    @jax.jit
    def apply(params, x):
        return model.apply({**variables, "params": params}, x, **kwargs)  # no rngs: evaluation draws nothing

    def loss(params, x):
        traces.append(x)
        outputs = apply(params, x)
        weighted = [jnp.vdot(jnp.cos(jnp.arange(out.size)), out.reshape(-1)) for out in jax.tree.leaves(outputs)]
        return sum(weighted), outputs

    expected = apply(params, x)
    assert_same(apply(params, x), expected, rtol=0)
    shapes = jax.eval_shape(apply, params, x)
    assert jax.tree.map(lambda out: (out.shape, out.dtype), expected) == jax.tree.map(
        lambda out: (out.shape, out.dtype), shapes
    )

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, outputs), grads = step(params, x)
    assert_same(outputs, expected, rtol=2e-6)
    step(params, jax.tree.map(lambda images: images[::-1] + 1, x))
    assert len(traces) == 1

    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert case.is_faint(name) or np.any(np.asarray(grad) != 0) != (name in case.unused), name

    if case.takes_list:
        one_by_one = jnp.stack([apply(params, [image]) for image in x])
    else:
        one_by_one = jax.jit(jax.vmap(apply, in_axes=(None, 0)))(params, x[:, None])
    of_batch = lambda out: out[:, 0] if out.ndim > 1 else out.mean()  # a single number is a mean over images
    assert_same(jax.tree.map(of_batch, one_by_one), expected, rtol=2e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_compilation_changes_nothing(case):
    model, (x, kwargs) = build(case), inputs_of(case)
    variables = variables_of(model, x, kwargs)
    compiled = jax.jit(lambda variables, x: model.apply(variables, x, **kwargs))(variables, x)
    assert_same(model.apply(variables, x, **kwargs), compiled, rtol=2e-6)


def equations(jaxpr):
    """All equations, including those of nested jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@FIRST_CASES
def test_bfloat16_policy(case):
    """Matrix products are bfloat16 forward and backward; what softmax and norms reduce is float32."""
    if case is FIRST[case.name]:
        model, variables, x, kwargs = abstract(case.name)
    else:
        model, (x, kwargs) = build(case), inputs_of(case)
        variables = jax.eval_shape(model.init, jax.random.key(0), x, **kwargs)
    assert_bfloat16(model, variables, x, kwargs)


def assert_bfloat16(model, variables, x, kwargs):
    """Assert the policy for `model`, given its variables and inputs or their shapes."""
    narrow = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if leaf.dtype == jnp.float32 else leaf.dtype)
    variables = dict(variables)
    params, x, kwargs = jax.tree.map(narrow, (variables.pop("params"), x, kwargs))

    def loss(params, statistics, x, kwargs):
        outputs = jax.tree.leaves(model.apply({**statistics, "params": params}, x, **kwargs))
        assert all(out.dtype == jnp.bfloat16 for out in outputs)
        return sum(out.sum() for out in outputs)

    products, statistics = [], []
    for equation in equations(jax.make_jaxpr(jax.grad(loss))(params, variables, x, kwargs).jaxpr):
        dtypes = {str(variable.aval.dtype) for variable in equation.invars}
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            products.append(dtypes)
        if equation.primitive.name in ("exp", "rsqrt"):  # of softmax, of norms
            statistics.append(dtypes)
    assert len(products) > 10
    assert all(dtypes == {"bfloat16"} for dtypes in products)
    assert len(statistics) > 4
    assert all(dtypes == {"float32"} for dtypes in statistics)


RATES = ("dropout", "emb_dropout", "attn_dropout", "ff_dropout", "layer_dropout", "dropout_rate", "attention_dropout")
RATES += ("drop_path",)
DROPPING = [*CLASSIFIERS, "vit:Transformer", "vat", "vaat", "vat_siglip"]
DROPOUTS = [(name, argument) for name in DROPPING for argument in RATES if hasattr(build(FIRST[name]), argument)]


@functools.cache
def draws(name: str, rates: tuple[str, ...], *, unused: bool = False) -> int:
    """Count the random draws in training with these rates at 0.5 and all others at 0.

    Only draws that the outputs depend on are counted, or with `unused` all.
    """
    _, variables, x, _ = abstract(name)
    model = build(FIRST[name], **{argument: 0.5 * (argument in rates) for of, argument in DROPOUTS if of == name})

    def train(variables, x, key):
        return model.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    jaxpr = jax.make_jaxpr(train)(variables, x, jax.random.key(0)).jaxpr
    if not unused:
        jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(equation.primitive.name == "random_bits" for equation in equations(jaxpr))


@pytest.mark.parametrize("name", dict(DROPOUTS))
def test_dropout_is_for_training(name):
    plain, variables, x, _ = abstract(name)
    model = build(FIRST[name], **{argument: 0.5 for of, argument in DROPOUTS if of == name})
    evaluation = lambda model: str(jax.make_jaxpr(lambda variables, x: model.apply(variables, x))(variables, x))
    assert evaluation(model) == evaluation(plain)
    with pytest.raises(InvalidRngError):
        jax.eval_shape(
            lambda variables, x: model.apply(variables, x, train=True, mutable=["batch_stats"]), variables, x
        )


# tests/test_drop_path.py shows the draws of stochastic depth
@pytest.mark.parametrize(("name", "argument"), [of for of in DROPOUTS if of[1] != "drop_path"])
def test_every_rate_draws_in_training(name, argument):
    assert draws(name, (argument,)) > draws(name, ())


@pytest.mark.parametrize("name", holds_for("dropout_count", DROPPING))
def test_dropout_acts_as_often_as_upstreams(name):
    torch = pytest.importorskip("torch")
    rates = [argument for of, argument in DROPOUTS if of == name and argument not in ("layer_dropout", "drop_path")]
    twin = build_upstream(FIRST[name], **dict.fromkeys(rates, 0.5))
    expected = sum(isinstance(module, torch.nn.Dropout) and module.p == 0.5 for module in twin.modules())
    assert draws(name, tuple(rates), unused=True) == expected


@pytest.mark.parametrize(
    ("name", "argument"), [pytest.param(*of, marks=[] if of[0] == "vit" else pytest.mark.exhaustive) for of in DROPOUTS]
)
def test_dropout_follows_its_key(name, argument):
    case = FIRST[name]
    (x, _), model = inputs_of(case), build(case, **{argument: 0.5})
    variables = variables_of(model, x, {})

    @jax.jit
    def train(key):
        outputs, _ = model.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return jax.tree.leaves(outputs)[0]

    outputs = [np.asarray(train(jax.random.key(seed))) for seed in (0, 0, 1, 2, 3)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert len({float(out.sum()) for out in outputs}) > 1


def test_keep_layers_keeps_its_share_and_never_none():
    keys = jax.random.split(jax.random.key(0), 4000)
    for depth, rate in ((4, 0.3), (2, 0.5), (3, 0.9)):
        kept = np.asarray(jax.vmap(lambda key: keep_layers(key, depth, rate))(keys))  # noqa: B023
        assert kept.shape == (4000, depth)
        assert kept.any(1).all()
        share = 1 - rate + rate**depth / depth  # that of the one that is kept when all would drop
        assert np.abs(kept.mean(0) - share).max() < 4 * math.sqrt(share * (1 - share) / 4000)
        alone = (kept.sum(1) == 1).mean()
        expected = depth * (1 - rate) * rate ** (depth - 1) + rate**depth
        assert abs(alone - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
    assert not keep_layers(jax.random.key(0), 5, 0.0).sum() - 5
    assert keep_layers(jax.random.key(0), 5, 1.0).sum() == 1


def test_a_dropped_layer_is_left_out():
    """If one of two layers is kept, the output is that of a model with only this layer."""
    case = FIRST["cait"]
    (x, _), model = inputs_of(case), build(case, layer_dropout=1.0, cls_depth=1)
    params = variables_of(model, x, {})["params"]
    out = jax.jit(lambda: model.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)}))()

    def alone(layer):
        blocks = {
            key.replace(f"_{layer}", "_0"): value
            for key, value in params["patch_transformer"].items()
            if key.endswith(f"_{layer}")
        }
        return build(case, depth=1, cls_depth=1).apply({"params": {**params, "patch_transformer": blocks}}, x)

    errors = [float(jnp.abs(out - alone(layer)).max()) for layer in (0, 1)]
    assert min(errors) < 1e-5 < 1e-3 < max(errors)


PRESETS = [f"{name}/{preset}" for name in CLASSIFIERS for preset in list_presets(name)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name.endswith("/tiny") else pytest.mark.exhaustive) for name in PRESETS],
)
def test_presets(name):
    model = create_model(name, num_classes=1000)
    x = jax.ShapeDtypeStruct(example_shape(model), jnp.float32)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    logits = jax.tree.leaves(outputs)[0]
    assert logits.shape == (1, 1000)
    parameters = count(variables["params"])
    if name.endswith("/tiny"):
        assert name.partition("/")[0] not in IMAGE_CLASSIFIERS or model.image_size == 32
        assert parameters < 500_000
    elif name in PUBLISHED:
        published, tolerance = PUBLISHED[name]
        assert parameters == pytest.approx(published, rel=tolerance, abs=0)


def test_published_counts_are_of_presets():
    assert PUBLISHED.keys() <= set(PRESETS)


def test_a_smaller_image_gets_the_first_positions():
    for name in ("vit", "deepvit", "cait", "t2t", "pit", "efficient", "distill:DistillableViT", "simple_vit"):
        model, x = build(FIRST[name]), jnp.ones((1, 8, 12, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))
        assert jax.eval_shape(model.apply, variables, x).shape == (1, 5)


@pytest.mark.parametrize("name", IMAGE_CLASSIFIERS)
def test_rows_cover_what_every_classifier_can_do(name):
    rows = [case for case in CASES if case.name == name]
    assert any(case.kwargs["num_classes"] == 0 for case in rows)
    shapes = [shape for case in rows for shape in case.image_shapes]
    assert any(height != width for height, width, _ in shapes)
    assert any(channels != 3 for _, _, channels in shapes)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", holds_for("bad_sizes"))
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=18), "image_size=18: expected multiples of patch_size=4"),
        (dict(image_size=(16, 18)), r"image_size=\(16, 18\): expected multiples of patch_size=4"),
        (dict(image_size=0), "image_size=0: expected a positive integer or a pair"),
        (dict(image_size=16.0), "image_size=16.0: expected a positive integer or a pair"),
        (dict(image_size=None), "image_size=None: expected a positive integer or a pair"),
        (dict(image_size=(16, 16, 3)), r"image_size=\(16, 16, 3\): expected a positive integer or a pair"),
        (dict(image_size="16"), "image_size='16': expected a positive integer or a pair"),
        (dict(patch_size=-4), "patch_size=-4: expected a positive integer or a pair"),
        (dict(patch_size=(4, 0)), r"patch_size=\(4, 0\): expected a positive integer or a pair"),
    ],
)
def test_bad_sizes_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST[name], **kwargs)


AT_LEAST_ONE = ("dim", "heads", "dim_head", "mlp_dim", "channels")
COUNTS = [
    (name, argument)
    for name in list_models()
    for argument in (*AT_LEAST_ONE, "depth", "cls_depth", "num_classes", "num_register_tokens")
    if isinstance(getattr(build(FIRST[name]), argument, None), int)
]


@pytest.mark.parametrize(("name", "argument"), COUNTS)
def test_bad_counts_are_named(name, argument):
    for value in (-1, 0) if argument in AT_LEAST_ONE else (-1,):
        with pytest.raises(ValueError, match=f"{argument}={value}: expected"):
            build(FIRST[name], **{argument: value})


@pytest.mark.parametrize(("name", "argument"), DROPOUTS)
def test_bad_rates_are_named(name, argument):
    for value in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"{argument}={value}: expected"):
            build(FIRST[name], **{argument: value})


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if "pool" in vars(build(FIRST[name]))])
def test_bad_pools_are_named(name):
    with pytest.raises(ValueError, match="pool='max': expected one of 'cls', 'mean'"):
        build(FIRST[name], pool="max")


@pytest.mark.parametrize("name", IMAGE_CLASSIFIERS)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 16, 1), r"images of shape \(2, 16, 16, 1\): expected \(batch, height, width, channels\) .*channels=3"),
        ((2, 3, 16, 16), "with channels=3"),
    ],
)
def test_bad_images_are_named(name, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build(FIRST[name]).init, jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize("name", holds_for("large_images"))
def test_larger_images_are_named(name):
    case = FIRST[name]
    batch, height, width, channels = case.input_shape
    with pytest.raises(ValueError, match=r"images of shape .*: expected at most image_size=\("):
        jax.eval_shape(build(case).init, jax.random.key(0), jnp.ones((batch, 2 * height, 2 * width, channels)))


@pytest.mark.parametrize("name", holds_for("unfilled_images"))
def test_images_that_patches_do_not_fill_are_named(name):
    with pytest.raises(ValueError, match=r"image_size=\(10, 16\): expected multiples of patch_size"):
        jax.eval_shape(build(FIRST[name]).init, jax.random.key(0), jnp.ones((1, 10, 16, 3)))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("pit", dict(depth=2), "depth=2: expected a tuple"),
        ("pit", dict(depth=()), r"depth=\(\): expected"),
        ("pit", dict(depth=(1, -1)), r"depth=\(1, -1\): expected"),
        ("pit", dict(heads=(1, 2, 3)), r"heads=\(1, 2, 3\): expected one number, or 2, one for each stage"),
        ("pit", dict(mlp_dim=(8,)), r"mlp_dim=\(8,\): expected one number, or 2"),
        ("pit", dict(image_size=8, patch_size=1), "patch_size=1: expected at least 2"),
        ("t2t", dict(image_size=2, t2t_layers=((7, 4),)), r"image of \(2, 2\) pixels: expected at least \(7, 7\)"),
        ("t2t", dict(depth=None, heads=None), "depth, heads not given: expected numbers, or a transformer"),
        ("t2t", dict(t2t_layers=()), r"t2t_layers=\(\): expected"),
        ("efficient", dict(transformer=None), "transformer=None: expected a module"),
    ],
)
def test_arguments_of_one_model_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST[name], **kwargs)


def test_sine_positions_need_four_features():
    with pytest.raises(ValueError, match="dim=26: expected a multiple of 4"):
        jax.eval_shape(build(FIRST["simple_vit"], dim=26).init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))


def test_tokens_of_another_width_are_named():
    model = build(FIRST["efficient"], dim=32)
    with pytest.raises(ValueError, match=r"tokens of shape \(2, 17, 32\): expected .* dim=24"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 16, 16, 3)))


def test_oblong_images_are_not_turned():
    """Height comes first in `image_size`, in `patch_size` and in the input."""
    case = Case("vit", "vit:ViT", (1, 8, 12, 1), 0, IMAGE | BLOCKS | OBLONG | dict(depth=1))
    variables = jax.eval_shape(build(case).init, jax.random.key(0), jnp.ones(case.input_shape))
    assert variables["params"]["pos_embedding"].shape == (2 * 6 + 1, 24)
    with pytest.raises(ValueError, match="multiples of patch_size"):
        build(case, image_size=(8, 12), patch_size=(3, 4))
