"""Features of CCT only: upstream's functions as presets, arguments with two names, stochastic depth."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from vit_jax import create_model
from vit_jax.models.cct import Block


@pytest.mark.parametrize("layers", [2, 4, 6, 7, 8, 14, 16])
def test_presets_are_upstreams_functions(layers):
    pytest.importorskip("torch")
    kwargs = dict(img_size=32) if layers > 2 else dict(img_size=64, kernel_size=7, n_conv_layers=2)
    twin = build_upstream(dataclasses.replace(FIRST["cct"], upstream=f"cct:cct_{layers}", kwargs=kwargs))
    model = create_model(f"cct/cct_{layers}", **kwargs)
    images = jnp.ones((1, model.image_size, model.image_size, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    sizes = lambda tensors: sorted(math.prod(tensor.shape) for tensor in tensors)
    assert sizes(jax.tree.leaves(params)) == sizes(twin.parameters())
    assert model.num_heads == twin.classifier.blocks[0].self_attn.heads
    conv = twin.tokenizer.conv_layers[0][0]
    assert model.axes()[0][0] == (conv.kernel_size[0], conv.stride[0], conv.padding[0])


def test_sines_start_as_upstreams():
    pytest.importorskip("torch")
    for size in (dict(), dict(embedding_dim=27)):
        twin = build_upstream(FIRST["cct"], **size).classifier.positional_emb
        variables = build(FIRST["cct"], **size).init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))
        np.testing.assert_allclose(variables["params"]["positional_emb"], twin, atol=1e-6)


def test_sizes_go_by_two_names():
    for kwargs in (dict(image_size=(8, 12), channels=1), dict(img_size=(8, 12), n_input_channels=1)):
        model = create_model("cct/7_3x1", **kwargs)  # the preset has img_size=32
        assert (model.image_size, model.img_size) == ((8, 12), (8, 12))
        assert (model.channels, model.n_input_channels) == (1, 1)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(img_size=0), "image_size=0: expected a positive integer or a pair"),
        (dict(img_size=(16, 1), padding=0, kernel_size=4), r"image_size=\(16, 1\): expected sides such as 4"),
        (dict(img_size=2, n_conv_layers=2, pooling_padding=0), "image_size=2: expected sides such as 7"),
        (dict(num_heads=5), "num_heads=5: expected a divisor of embedding_dim=24"),
        (dict(num_heads=0), "num_heads=0: expected at least 1"),
        (dict(num_layers=-1), "num_layers=-1: expected at least 0"),
        (dict(mlp_ratio=0.01), "mlp_ratio=0.01: expected at least 1 / embedding_dim"),
        (dict(pooling_padding=2), "pooling_padding=2: expected at most half"),
        (dict(positional_embedding="cosine"), "positional_embedding='cosine': expected one of 'sine', "),
        (dict(stochastic_depth_rate=1.5), "stochastic_depth_rate=1.5: expected 0 to 1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["cct"], **kwargs)


def test_smaller_images_are_taken_and_those_without_a_token_named():
    model = build(FIRST["cct"], pooling_padding=0)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    assert jax.eval_shape(model.apply, variables, jnp.ones((1, 8, 12, 3))).shape == (1, 5)
    with pytest.raises(ValueError, match=r"image_size=\(8, 2\): expected sides such as 3"):
        jax.eval_shape(model.apply, variables, jnp.ones((1, 8, 2, 3)))


def test_depth_is_more_stochastic_in_later_layers():
    rates = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates[context.module.name] = context.module.drop_path
        return call(*args, **kwargs)

    model = build(FIRST["cct"], num_layers=5, stochastic_depth_rate=0.2)
    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    assert rates == {f"blocks_{i}": pytest.approx(0.05 * i) for i in range(5)}


def test_a_branch_drops_for_its_share_of_the_images():
    """Either branch is dropped for a whole image or scaled by 1 / (1 - rate), independently of the other."""
    count, rate = 4000, 0.3
    block = Block(heads=1, mlp_dim=8, dropout=0.0, attention_dropout=0.0, drop_path=rate)
    images = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 3, 4)), (count, 3, 4))
    params = block.init(jax.random.key(1), images[:1])["params"]

    def apply(*silent, **kwargs):
        zeros = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in silent}
        return np.asarray(block.apply({"params": params | zeros}, images, **kwargs)).reshape(count, -1)

    def train(*silent):
        """The distinct outputs, and the share of images with each."""
        out = apply(*silent, train=True, rngs={"dropout": jax.random.key(2)})
        outcomes, counts = np.unique(out.round(4), axis=0, return_counts=True)
        return outcomes, counts / count

    _, shares = train()
    expected = np.array([rate**2, rate * (1 - rate), rate * (1 - rate), (1 - rate) ** 2])
    assert np.all(np.abs(np.sort(shares) - expected) < 4 * np.sqrt(expected * (1 - expected) / count))

    outcomes, shares = train("self_attn")
    dropped, kept = apply("self_attn", "linear2")[0], apply("self_attn")[0]
    np.testing.assert_allclose(outcomes[shares.argmin()], dropped, atol=1e-4)
    np.testing.assert_allclose(outcomes[shares.argmax()], dropped + (kept - dropped) / (1 - rate), atol=1e-4)
