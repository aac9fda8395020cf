"""Features of the NaViTs only: packing, grouping, packed images under jit, token dropout."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from tests import test_models
from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax.convert import from_torch
from vit_jax.layers.packing import drop_tokens, group_images, pack_images

BOTH = pytest.mark.parametrize("name", ["na_vit", "na_vit_nested_tensor"])
MIXES = ([(16, 16), (8, 12), (4, 16)], [(4, 4)], [(16, 8), (8, 8), (16, 16), (12, 4), (4, 4)])


def images_of(sizes, channels=3, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*size, channels), np.float32) for size in sizes]


def variables_of(model):
    return test_models.variables_of(model, np.ones((1, 16, 16, 3), np.float32), {})


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_packing_keeps_every_pixel_and_its_place():
    """Checks, by loops over tokens, the pixels of each patch, its row and column, and its image."""
    images = images_of([(4, 6), (2, 9), (2, 3)], channels=2)
    packed = pack_images(images, (2, 3), seq_len=8, rows=3, max_images=2)
    assert [array.shape for array in packed] == [(3, 8, 12), (3, 8, 2), (3, 8), (3, 2)]
    np.testing.assert_array_equal(packed.segment_ids, [[0] * 4 + [1] * 3 + [-1], [0] + [-1] * 7, [-1] * 8])
    np.testing.assert_array_equal(packed.kept, [[4, 3], [1, 0], [0, 0]])
    places = [(0, 0, 0, images[0]), (0, 4, 0, images[1]), (1, 0, 0, images[2])]
    for row, start, _, image in places:
        columns = image.shape[1] // 3
        for token in range(image.shape[0] // 2 * columns):
            y, x = divmod(token, columns)
            patch = [image[2 * y + i, 3 * x + j, c] for c in range(2) for i in range(2) for j in range(3)]
            np.testing.assert_array_equal(packed.patches[row, start + token], patch)
            np.testing.assert_array_equal(packed.positions[row, start + token], (y, x))
    assert not packed.patches[packed.segment_ids < 0].any()


@pytest.mark.parametrize("limit", [16, 20, 28, 100])
def test_groups_are_upstreams(limit):
    torch = pytest.importorskip("torch")
    importlib.import_module("tests.upstream")  # must come first: it makes vit_pytorch importable
    from vit_pytorch.na_vit import group_images_by_max_seq_len

    images = images_of(np.random.default_rng(1).integers(1, 5, (20, 2)) * 4)
    theirs = group_images_by_max_seq_len([torch.zeros(3, *i.shape[:2]) for i in images], 4, max_seq_len=limit)
    ours = group_images(images, [i.shape[0] * i.shape[1] // 16 for i in images], limit)
    assert [[i.shape[:2] for i in row] for row in ours] == [[tuple(i.shape[1:]) for i in row] for row in theirs]


@pytest.mark.parametrize("how", ["grouped", "lists of lists"])
def test_several_sequences_equal_upstreams(how):
    torch = pytest.importorskip("torch")
    from tests.upstream import channels_first, shake

    case, images = FIRST["na_vit"], images_of(MIXES[2])
    model, twin = build(case), shake(build_upstream(case))
    variables = from_torch(model, twin.state_dict(), images)
    kwargs = dict(group_images=True, group_max_seq_len=17) if how == "grouped" else {}
    mix = images if how == "grouped" else [images[:3], images[3:]]
    with torch.no_grad():
        expected = twin(channels_first(mix) if how == "grouped" else [channels_first(row) for row in mix], **kwargs)
    assert_close(model.apply(variables, mix, **kwargs), expected.numpy())


@BOTH
def test_packed_images_never_trace_again_and_give_the_same(name):
    model = build(FIRST[name])
    variables, traces = variables_of(model), []

    @jax.jit
    def apply(variables, packed):
        traces.append(packed)
        return model.apply(variables, packed)

    for i, sizes in enumerate(MIXES):
        images = images_of(sizes, seed=i)
        packed = model.pack(images, rows=3, seq_len=20, max_images=3)
        logits = apply(variables, packed)
        assert logits.shape == (3, 3, 5)
        assert np.isfinite(logits).all()
        assert_close(np.asarray(logits)[np.asarray(packed.kept) > 0], jax.jit(model.apply)(variables, images))
    assert len(traces) == 1


@BOTH
def test_a_batch_is_a_list_of_equal_images(name):
    model, x = build(FIRST[name]), np.stack(images_of([(8, 12)] * 3))
    variables = variables_of(model)
    apply = jax.jit(model.apply)
    assert_close(apply(variables, x), apply(variables, list(x)))


@BOTH
def test_oblong_patches(name):
    """Features of a patch are ordered (c, ph, pw), so a flattened patch is the same to the model."""
    oblong = build(FIRST[name], image_size=(8, 6), patch_size=(4, 2))
    flat = build(FIRST[name], image_size=(2, 24), patch_size=(1, 8))
    x = images_of([(8, 6)])[0]
    laid_flat = x.reshape(2, 4, 3, 2, 3).transpose(0, 2, 1, 3, 4).reshape(2, 24, 3)
    variables = flat.init(jax.random.key(0), [laid_flat])
    assert_close(oblong.apply(variables, [x]), flat.apply(variables, [laid_flat]))


def test_dropped_tokens_are_a_uniform_draw():
    """Of images with 4, 2 and 6 tokens, 2, 1 and 3 are kept; all tokens and pairs of an image are equally likely."""
    images = images_of([(2, 2), (1, 2), (2, 3)])
    packed = pack_images(images, (1, 1), token_dropout_prob=0.5, seq_len=14, max_images=4)
    np.testing.assert_array_equal(packed.kept, [[2, 1, 3, 0]])
    named = packed._replace(patches=jnp.arange(14.0).reshape(1, 14, 1))
    draws = jax.vmap(lambda key: drop_tokens(key, jax.tree.map(jnp.asarray, named), 8))
    kept, draw_count = draws(jax.random.split(jax.random.key(0), 4000)), 4000

    ids = np.asarray(kept.segment_ids[:, 0])
    assert all(((ids == i).sum(1) == packed.kept[0, i]).all() for i in range(3))
    tokens = np.asarray(kept.patches[:, 0, :, 0]).astype(int)
    np.testing.assert_array_equal(packed.segment_ids[0][tokens[ids >= 0]], ids[ids >= 0])
    np.testing.assert_array_equal(packed.positions[0][tokens], kept.positions[:, 0])
    stays = np.stack([((tokens == token) & (ids >= 0)).any(1) for token in range(12)], axis=1)
    assert np.abs(stays.mean(0) - 0.5).max() < 4 * math.sqrt(0.25 / draw_count)
    together = (stays[:, 6] & stays[:, 7]).mean()  # two given tokens of six, of which three are kept
    assert abs(together - 0.2) < 4 * math.sqrt(0.16 / draw_count)
    assert np.abs(np.corrcoef(stays[:, 0], stays[:, 6])[0, 1]) < 4 / math.sqrt(draw_count)


@BOTH
@pytest.mark.parametrize(
    "rate", [0.5, lambda height, width: 0.25 if height > width else 0.75], ids=["number", "callable"]
)
def test_token_dropout_leaves_its_share_in_training(name, rate):
    """In training logits depend on the right share of the patches, as their gradients show; at evaluation on all."""
    model = build(FIRST[name], token_dropout_prob=rate)
    variables, images = variables_of(model), [jnp.asarray(i) for i in images_of([(16, 8), (8, 16)])]
    for form in (lambda x: x, lambda x: model.pack(x, rows=1, seq_len=20, max_images=3)):

        @jax.jit
        def used(images, key, form=form):
            apply = lambda x: model.apply(variables, form(x), train=True, rngs={"dropout": key})
            return jax.grad(lambda x: apply(x).reshape(-1, 5)[:2].sum())(images)  # the third row is of no image

        for seed in range(2):
            shares = [
                np.mean(np.any(grad.reshape(grad.shape[0] // 4, 4, -1, 4, 3) != 0, axis=(1, 3, 4)))
                for grad in used(images, jax.random.key(seed))
            ]
            assert shares == ([0.5, 0.5] if rate == 0.5 else [0.75, 0.25])
    with pytest.raises(InvalidRngError):
        jax.eval_shape(lambda images: model.apply(variables, images, train=True), images)
    evaluate = lambda model: jax.jit(model.apply)(variables, images)
    assert_close(evaluate(model), evaluate(build(FIRST[name])))


@BOTH
def test_dropout_acts_on_embedding_attention_and_feed_forward(name):
    """Dropout acts on the embedding and, in a block, on maps, NaViT's attention output, twice in the feed-forward."""
    model, x = build(FIRST[name], dropout=0.5, emb_dropout=0.5), jnp.ones((1, 16, 16, 3))
    variables = model.init(jax.random.key(0), x)
    run = lambda key: model.apply(variables, x, train=True, rngs={"dropout": key})
    jaxpr = jax.make_jaxpr(run)(jax.random.key(0)).jaxpr
    draws = sum(equation.primitive.name == "random_bits" for equation in test_models.equations(jaxpr))
    assert draws == 1 + 2 * (4 if name == "na_vit" else 3)


@BOTH
@pytest.mark.parametrize(
    ("sizes", "pack", "message"),
    [
        ([(20, 16)], {}, r"image of shape \(20, 16, 3\): expected at most image_size=16"),
        ([(8, 10)], {}, r"image_size=\(8, 10\): expected multiples of patch_size"),
        ([(16, 16)], dict(seq_len=15), r"image of shape \(16, 16, 3\): expected at most 15 tokens, not 16"),
        ([(16, 16)] * 3, dict(seq_len=32, rows=1), "rows=1: expected at least 2, as these images need"),
        ([[(4, 4)] * 3], dict(max_images=2), "max_images=2: expected at least 3, as these images need"),
        ([(4, 4, 3)], {}, r"image of shape \(4, 4, 3, 3\): expected \(height, width, channels=3\)"),
        ([[(4, 4)] * 3], dict(seq_len=2), "seq_len=2: expected at least 3, as these images need"),
        ([], {}, r"images=\[\]: expected at least one image"),
        ([[(4, 4)], []], {}, r"images in rows of \[1, 0\]: expected at least one in each"),
    ],
)
def test_images_that_do_not_fit_are_named(name, sizes, pack, message):
    images = [images_of(size) if isinstance(size, list) else images_of([size])[0] for size in sizes]
    with pytest.raises(ValueError, match=message):
        build(FIRST[name]).pack(images, **pack)


@BOTH
@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_bad_token_dropout_is_named(name, rate):
    with pytest.raises(ValueError, match=f"token_dropout_prob={rate}: expected"):
        build(FIRST[name], token_dropout_prob=rate)
