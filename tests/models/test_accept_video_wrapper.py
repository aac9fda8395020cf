"""AcceptVideoWrapper: frames as a batch of images, and changes of the outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import InvalidRngError

from tests.cases.case import BLOCKS, IMAGE
from tests.test_models import variables_of
from vit_jax import create_model

VIDEO = jax.device_put(np.random.default_rng(0).standard_normal((2, 3, 16, 16, 3), np.float32))
VIT = create_model("vit", **IMAGE | BLOCKS | dict(depth=1))
TOKENS = dict(image_net=VIT, forward_function="encode")
MOSS = dict(dim=24, hidden_dim=8, causal=True)


def wrapper(**kwargs):
    return create_model("accept_video_wrapper", **{"image_net": VIT, **kwargs})


def initial(model, video=VIDEO):
    """Variables as `model` starts with, whose biases are zero, compiled as one program."""
    return jax.jit(model.init)(jax.random.key(1), video)


def apply(model, *args, **kwargs):
    """Call `model`, compiled as one program."""
    return jax.jit(functools.partial(model.apply, **kwargs))(*args)


class Several(nn.Module):
    """A model with several outputs: a mean color, None, a loss, and a number."""

    @nn.compact
    def __call__(self, images, *, scale=1.0, train=False):
        color = nn.Dense(4, name="fc")(images.mean((1, 2)))
        return {"b": (None, scale * color), "c": color.mean(), "d": 7, "a": images}


def test_every_frame_is_an_image():
    model = wrapper()
    variables = variables_of(model, VIDEO, {})
    logits = apply(model, variables, VIDEO)
    assert logits.shape == (2, 3, 5)
    net = {"params": variables["params"]["image_net"]}
    for t in range(3):
        np.testing.assert_allclose(logits[:, t], apply(VIT, net, VIDEO[:, t]), atol=1e-6)


def test_methods_and_tokens():
    """A classifier keeps its head; its tokens equal those of a model without a head."""
    model = wrapper(forward_function="encode")
    variables = variables_of(model, VIDEO, {})
    assert "mlp_head" in variables["params"]["image_net"]
    tokens = apply(model, variables, VIDEO)
    assert tokens.shape == (2, 3, 17, 24)
    features = apply(wrapper(image_net=VIT.clone(num_classes=0)), variables, VIDEO)
    np.testing.assert_allclose(features, tokens, atol=1e-6)


def test_outputs_keep_their_form():
    """Outputs are numbered in the order of their keys: a 0, b 1 and 2, c 3, d 4; output 3 gets two features."""
    model = wrapper(image_net=Several(), output_pos_add_pos_emb=2, dim_emb=4, proj_embed_to_dim=2)
    variables = initial(model)
    out = model.apply(variables, VIDEO, forward_kwargs=dict(scale=2.0))
    assert out["a"].shape == VIDEO.shape
    assert out["b"][0] is None
    assert (out["c"].shape, out["d"]) == ((), 7)
    fc, proj = variables["params"]["image_net"]["fc"], variables["params"]["embed_proj"]
    color = VIDEO.mean((2, 3)) @ fc["kernel"]
    np.testing.assert_allclose(out["b"][1], 2 * color @ proj["kernel"], atol=1e-6)
    last = wrapper(image_net=Several(), output_pos_add_pos_emb=-3, dim_emb=4, proj_embed_to_dim=2)
    np.testing.assert_array_equal(last.apply(variables, VIDEO)["b"][1] * 2, out["b"][1])


@pytest.mark.parametrize("channel_first", [False, True])
def test_maps_are_projected_placed_and_joined(channel_first):
    """MOSS reads a map directly; positions depend only on the frame; channels may be first or last."""

    class Maps(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            return jnp.moveaxis(images, -1, 1) if channel_first else images

    kwargs = dict(dim_emb=3, proj_embed_to_dim=12, add_time_pos_emb=True, time_seq_len=4)
    kwargs |= dict(moss=dict(dim=12, hidden_dim=8))
    video = VIDEO[:, :, :4, :6]
    model = wrapper(image_net=Maps(), embed_is_channel_first=channel_first, **kwargs)
    variables = initial(model, video)
    params = variables["params"]
    x = video @ params["embed_proj"]["kernel"] + params["pos_emb"][None, :3, None, None]
    expected = apply(create_model("vivit_with_moss:MOSS", dim=12, hidden_dim=8), {"params": params["moss"]}, x)
    expected = jnp.moveaxis(expected, -1, 2) if channel_first else expected
    np.testing.assert_allclose(apply(model, variables, video), expected, atol=1e-5)


def test_moss_reads_the_patches_behind_other_tokens():
    """`moss` as a dict or a module, and `patch_size` of the inner model, give the same result."""
    trunk = create_model("learnable_memory_vit", **IMAGE | BLOCKS)
    adapter = create_model("learnable_memory_vit:Adapter", vit=trunk, num_classes=0)
    model = wrapper(image_net=adapter, moss=MOSS)
    variables = variables_of(model, VIDEO, {})
    plain = apply(wrapper(image_net=adapter), variables, VIDEO)
    out = apply(model, variables, VIDEO)
    np.testing.assert_allclose(out[:, :, :2], plain[:, :, :2], atol=1e-6)
    moss = create_model("vivit_with_moss:MOSS", **MOSS)
    joined = apply(moss, {"params": variables["params"]["moss"]}, plain[:, :, 2:].reshape(2, 3, 4, 4, 24))
    np.testing.assert_allclose(out[:, :, 2:], joined.reshape(2, 3, 16, 24), atol=1e-5)
    same = apply(wrapper(image_net=adapter, moss=moss, patch_size=(4, 4)), variables, VIDEO)
    np.testing.assert_array_equal(same, out)


def test_a_frozen_model_is_evaluated_and_gets_no_gradient():
    net = VIT.clone(dropout=0.5)
    model = wrapper(image_net=net, dim_emb=5, proj_embed_to_dim=2)
    variables = variables_of(model, VIDEO, {})
    loss = lambda variables, video: model.apply(variables, video, eval_with_no_grad=True, train=True).sum()
    gradient, of_video = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables, VIDEO)
    zero = lambda tree: not any(jnp.any(leaf) for leaf in jax.tree.leaves(tree))
    assert zero(gradient["params"]["image_net"])
    assert zero(of_video)
    assert not zero(gradient["params"]["embed_proj"])
    evaluated = lambda variables, video: model.apply(variables, video).sum()
    np.testing.assert_allclose(jax.jit(loss)(variables, VIDEO), jax.jit(evaluated)(variables, VIDEO), rtol=1e-6)
    with pytest.raises(InvalidRngError):
        jax.eval_shape(lambda: model.apply(variables, VIDEO, train=True))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_net=None), "image_net=None: expected a module"),
        (dict(forward_function="look"), "forward_function='look': expected a method of ViT that takes `train`"),
        (dict(forward_function="head"), "forward_function='head': expected a method of ViT that takes `train`"),
        (dict(proj_embed_to_dim=8), "dim_emb=None: expected the number of features"),
        (dict(add_time_pos_emb=True, time_seq_len=2), "dim_emb=None: expected the number of features"),
        (dict(add_time_pos_emb=True, dim_emb=5), "time_seq_len=None: expected a number, for add_time_pos_emb"),
        (dict(dim_emb=0), "dim_emb=0: expected at least 1"),
        (dict(patch_size=(4, 0)), r"patch_size=\(4, 0\): expected a positive integer or a pair"),
        (dict(moss=VIT), "(?s)moss=.*: expected a vivit_with_moss:MOSS or its arguments"),
        (dict(moss=dict(dim=24, order=2)), "moss=.*'order'.*: expected a vivit_with_moss:MOSS or its arguments"),
        (dict(moss=dict(hidden_dim=8)), "moss=.*: expected a vivit_with_moss:MOSS or its arguments"),
        (dict(moss=dict(dim=24, local_time=2)), "local_time=2: expected an odd number"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        wrapper(**kwargs)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "shape", "message"),
    [
        ({}, (2, 16, 16, 3), r"video of shape \(2, 16, 16, 3\): expected \(batch, frames, height, width, channels\)"),
        (dict(dim_emb=6, proj_embed_to_dim=2), VIDEO.shape, "dim_emb=6: expected 5, the features of the embedding"),
        (dict(dim_emb=5, add_time_pos_emb=True, time_seq_len=2), VIDEO.shape, "of 3 frames: expected at most time_seq"),
        (dict(dim_emb=5, proj_embed_to_dim=2, output_pos_add_pos_emb=1), VIDEO.shape, "emb=1: expected .* out of 1"),
        (dict(moss=MOSS), VIDEO.shape, r"embedding of shape \(2, 3, 5\): expected 16 or more tokens a frame"),
        (TOKENS | dict(moss=MOSS, patch_size=2), VIDEO.shape, r"shape \(2, 3, 17, 24\): expected 64 or more tokens"),
        (TOKENS | dict(moss=dict(dim=12)), VIDEO.shape, "features of shape .*: expected .* with dim=12"),
        (dict(image_net=nn.Dense(2)), VIDEO.shape, "forward_function='forward': expected a method of Dense"),
    ],
)
def test_bad_videos_and_outputs_are_named(kwargs, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(wrapper(**kwargs).init, jax.random.key(0), jnp.ones(shape))


def test_a_missing_patch_size_is_named():
    class Tokens(nn.Module):
        def __call__(self, images, *, train=False):
            return images.reshape(len(images), -1, 3)

    with pytest.raises(ValueError, match="patch_size=None: expected a number, as moss needs it and image_net has none"):
        wrapper(image_net=Tokens(), moss=dict(dim=3)).init(jax.random.key(0), VIDEO)
