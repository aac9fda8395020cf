"""Unusual inputs: integers, empty batches, batches of unknown size, rotated images, lists instead of tuples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests.cases import CASES, CLASSIFIERS, FIRST, holds_for
from tests.cases.case import Case, build
from tests.test_models import abstract
from vit_jax import create_model

PROMOTING = ("vit:Transformer", "wwt:AutoencodingHead")  # norms, products and sums alone, which promote integers


def shapes_of(case: Case, dtype=jnp.float32):
    """The input of a row, in another dtype."""
    shapes = case.input_shape if case.takes_list else [case.input_shape]
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return shapes if case.takes_list else shapes[0]


def batch_of(case: Case, batch) -> jax.ShapeDtypeStruct:
    """A batch with the image shape of a row, of one size even for models that take a list."""
    return jax.ShapeDtypeStruct((batch, *case.image_shapes[0]), jnp.float32)


# Numbers


def check_integers(name: str, dtype: str) -> None:
    with pytest.raises(ValueError, match=f" of dtype {dtype}: expected floating-point numbers"):
        jax.eval_shape(lambda x: build(FIRST[name]).init(jax.random.key(0), x), shapes_of(FIRST[name], dtype=dtype))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", [name for name in FIRST if name not in PROMOTING])
def test_integers_are_named(name):
    """A model computes in the dtype of its input, so integer inputs would round intermediate results."""
    check_integers(name, "uint8")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("dtype", ["int16", "int32", "bool", "complex64"])
def test_other_numbers_are_named(dtype):
    check_integers("vaat:AST", dtype)


@pytest.mark.usefixtures("unchecked_types")
def test_packed_integers_are_named():
    model = build(FIRST["na_vit"])
    packed = model.pack([np.ones((8, 8, 3), np.uint8)])
    with pytest.raises(ValueError, match="images of dtype uint8: expected floating-point numbers"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), packed))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", PROMOTING)
def test_integers_have_the_values_of_floats(name):
    model, case = build(FIRST[name]), FIRST[name]
    numbers = np.random.default_rng(0).integers(0, 5, case.input_shape)
    variables = model.init(jax.random.key(0), jnp.asarray(numbers, jnp.float32))
    apply = lambda dtype: model.apply(variables, jnp.asarray(numbers, dtype))
    jax.tree.map(np.testing.assert_array_equal, apply("uint8"), apply("float32"))


# Batches


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_no_images_give_no_logits(name):
    model, variables, *_ = abstract(name)
    outputs = jax.eval_shape(model.apply, variables, batch_of(FIRST[name], 0))
    assert jax.tree.leaves(outputs)[0].shape == (0, model.num_classes)


@pytest.mark.usefixtures("unchecked_types")  # which compare sizes by numpy, where they may broadcast
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_traced_for_any_batch(name):
    model, variables, *_ = abstract(name)
    (batch,) = export.symbolic_shape("b")
    outputs = jax.eval_shape(model.apply, variables, batch_of(FIRST[name], batch))
    assert jax.tree.leaves(outputs)[0].shape == (batch, model.num_classes)


EXPORTED = ("vit", "cct", "max_vit", "xcit")  # lowering seldom fails where tracing does not


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EXPORTED else pytest.mark.exhaustive) for name in CLASSIFIERS]
)
def test_a_classifier_is_exported_for_any_batch(name):
    model, variables, *_ = abstract(name)
    (batch,) = export.symbolic_shape("b")
    exported = export.export(jax.jit(model.apply))(variables, batch_of(FIRST[name], batch))
    assert exported.out_avals[0].shape == (batch, model.num_classes)


def test_an_exported_program_gives_the_same_logits():
    case = FIRST["vit"]
    model = build(case, depth=1)
    (batch,) = export.symbolic_shape("b")
    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, *case.image_shapes[0]), np.float32))
    variables = model.init(jax.random.key(0), images)
    exported = export.export(jax.jit(model.apply))(variables, batch_of(case, batch))
    expected = jax.jit(model.apply)(variables, images)
    for count in (3, 1):
        np.testing.assert_allclose(exported.call(variables, images[:count]), expected[:count], rtol=1e-5, atol=1e-6)


# Sizes


@pytest.mark.parametrize("name", holds_for("large_images"))
def test_turned_images_are_named(name):
    """They have no more patches than `image_size`, but rows of another length."""
    case = FIRST[name]
    batch, height, width, channels = case.input_shape
    turned = (batch, 2 * height, width // 2, channels)
    for shape in (turned, (batch, width // 2, 2 * height, channels)):
        with pytest.raises(ValueError, match=r"images of shape .*: expected at most image_size=\(\d+, \d+\) along"):
            jax.eval_shape(build(case).init, jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize(
    ("name", "kwargs", "shape", "message"),
    [
        ("vit", dict(image_size=(16, 32)), (1, 32, 16, 3), r"image_size=\(16, 32\)"),
        ("vit_3d", dict(image_size=8, frames=2), (1, 4, 4, 8, 3), r"frames, image_size=\(2, 8, 8\)"),
        ("vit_3d", dict(image_size=(4, 8), frames=2), (1, 2, 8, 4, 3), r"frames, image_size=\(2, 4, 8\)"),
        ("cct_3d", dict(img_size=(8, 16), num_frames=4), (1, 4, 16, 8, 3), r"num_frames, image_size=\(4, 8, 16\)"),
        ("vivit", dict(image_size=(4, 8)), (1, 2, 8, 4, 3), r"frames, image_size=\(6, 4, 8\)"),
        ("looped_vit", dict(image_size=(8, 16)), (1, 16, 8, 3), r"image_size=\(8, 16\)"),
        ("vat_siglip:SigLIP", dict(image_size=(8, 16), patch_size=4), (1, 16, 8, 3), r"image_size=\(8, 16\)"),
        ("nest", dict(image_size=(16, 32)), (1, 32, 16, 3), r"image_size=\(16, 32\)"),
    ],
)
def test_sides_in_another_order_are_named(name, kwargs, shape, message):
    with pytest.raises(ValueError, match=f"expected at most {message} along each axis"):
        jax.eval_shape(build(FIRST[name], **kwargs).init, jax.random.key(0), jnp.ones(shape))


def test_a_map_of_other_patches_is_refused():
    """The patches of a non-square image would fill the rows of a square one in the wrong order."""
    head = create_model("wwt:AutoencodingHead", image_size=16, patch_size=4)
    levels, masks = [jnp.ones((1, 8, 4)), jnp.ones((1, 2, 4))], [jnp.ones((1, 1, 8, 2))]
    with pytest.raises(
        ValueError, match="hierarchy_features of 8 patches: expected 16 patches, those of image_size=16"
    ):
        jax.eval_shape(lambda: head.init(jax.random.key(0), levels, masks, ((0, 1),)))


# Arguments


def listed(value):
    return [listed(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", FIRST)
def test_lists_stand_for_tuples(name):
    """JSON files contain lists. A model with a list as a field could not be hashed, which `jax.jit` requires."""
    for case in (case for case in CASES if case.name == name):
        model, other = build(case), build(case, **{name: listed(value) for name, value in case.kwargs.items()})
        assert isinstance(hash(model), int)
        assert isinstance(hash(other), int)
        for argument, value in case.kwargs.items():
            if isinstance(value, tuple):
                assert getattr(other, argument) == getattr(model, argument)


@pytest.mark.usefixtures("unchecked_types")
def test_lists_stand_for_tuples_of_teachers():
    model = create_model("swin_t", depths=[1, 1, 1, 1])
    hash(model)
    assert model.depths == (1, 1, 1, 1)
