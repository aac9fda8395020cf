"""The fused forms of attention have the values and gradients of the plain form, and are used where they may be."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas import tpu as pallas_tpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.test_models import equations
from train.config import Config
from train.program import executed
from train.sharding import batch_sharding, make_mesh
from vit_jax.layers import attend, attention_forms, attention_kernels
from vit_jax.layers.attention_forms import attention, attention_by_blocks, attention_by_map
from vit_jax.layers.execution import current_execution, execution

RNG = np.random.default_rng(0)
noise = lambda *shape: np.asarray(RNG.normal(size=shape), np.float32)


def values_and_gradients(form, *arrays):
    """The output of `form`, and the gradients of its weighted sum with respect to `arrays`, all in float32."""

    def loss(arrays):
        out = form(*arrays).astype(jnp.float32)
        return jnp.vdot(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)), out.ravel()), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return [np.asarray(x, np.float32) for x in (out, *grads)]


def assert_close(ours, exact, tolerance):
    for mine, reference in zip(ours, exact, strict=True):
        assert np.abs(mine - reference).max() <= tolerance * np.abs(reference).max()


@pytest.mark.parametrize(("platform", "masked"), [("cpu", "by query"), ("cpu", "by key"), ("tpu", "by query")])
def test_blocks_of_queries(platform, masked, monkeypatch):
    """With bias, mask, a learned scale and a last block that is not full; on a TPU, few blocks are unrolled."""
    for name, value in {"QUERIES": 4, "QUERIES_ON_TPU": 4, "ROWS": 2}.items():
        monkeypatch.setattr(attention_forms, name, value)
    q, k, v, bias = noise(2, 3, 10, 8), noise(2, 3, 7, 8), noise(2, 3, 7, 5), noise(1, 3, 10, 7)
    mask = jnp.asarray(RNG.random((2, 1, 10 if masked == "by query" else 1, 7)) < 0.6)
    arrays = q, k, v, np.float32(0.3), bias
    results = lambda form: values_and_gradients(lambda *arrays: form(*arrays, mask), *arrays)
    with execution(platform=platform):
        blocks, by_map = results(attention_by_blocks), results(attention_by_map)
        jaxpr = jax.make_jaxpr(attention_by_blocks)(*arrays, mask).jaxpr
    assert_close(blocks, by_map, 1e-5)
    assert any(each.primitive.name == "scan" for each in equations(jaxpr)) == (platform == "cpu")


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_blocks_of_queries_of_no_images(platform):
    q = jax.ShapeDtypeStruct((0, 3, 9 * 384, 8), np.float32)
    with execution(platform=platform):
        assert jax.eval_shape(lambda q: attention_by_blocks(q, q, q, 0.3, None, None), q).shape == q.shape


def test_the_kernel_for_tpus():
    """On two devices that share the batch, with tokens that fill no tile."""
    q, k, v = (noise(2, 1, n, 8).astype(jnp.bfloat16) for n in (9, 130, 130))
    batch = NamedSharding(Mesh(np.array(jax.devices()[:2]), "data"), PartitionSpec("data"))
    with execution(platform="tpu", batch=batch, attention="fused"), pallas_tpu.force_tpu_interpret_mode():
        form = lambda q, k, v: attention(q, k, v, 0.3, None, None)
        assert any(each.primitive.name == "pallas_call" for each in equations(jax.make_jaxpr(form)(q, k, v).jaxpr))
        fused = values_and_gradients(form, q, k, v)
    wide = (x.astype(np.float32) for x in (q, k, v))
    assert_close(fused, values_and_gradients(lambda q, k, v: attention_by_map(q, k, v, 0.3, None, None), *wide), 1e-2)


def test_the_kernel_for_gpus(monkeypatch):
    """Forward and backward are calls of cuDNN; the test computes nothing, as it has no GPU."""
    monkeypatch.setattr(attention_kernels, "has_cudnn_attention", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)

    def lowered(dtype):
        arrays = [jax.ShapeDtypeStruct((2, 3, 1025, 64), dtype)] * 3
        loss = lambda q, k, v: attention(q, k, v, 0.3, None, None).astype(jnp.float32).sum()
        with execution(platform="gpu"):
            return jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()

    text = lowered(jnp.bfloat16)
    calls = [name for name in re.findall(r"custom_call @([$\w]+)", text) if "cudnn" in name]
    assert calls == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert re.findall(r"fmha_scale\W+22: ([\d.]+)", text) == ["0.3", "0.3"]
    assert "cudnn" not in lowered(jnp.float32)


class Attends(nn.Module):
    """Attention of one input over itself."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False):
        return attend(self, x, x, x, dropout=self.dropout, train=train)


def stores_map(tokens=2048, dropout=0.0, train=False, mutable=(), **settings):
    x = jax.ShapeDtypeStruct((1, 1, tokens, 8), jnp.float32)
    rngs = {"dropout": jax.random.key(0)}
    apply = functools.partial(Attends(dropout).apply, {}, train=train, mutable=mutable, rngs=rngs)
    with execution(**settings):
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: jax.tree.leaves(apply(x))[0].sum()))(x).jaxpr
    return any(out.aval.shape[-2:] == (tokens, tokens) for each in equations(jaxpr) for out in each.outvars)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_many_tokens_store_no_map(platform):
    assert not stores_map(platform=platform)
    assert stores_map(platform=platform, attention="plain")
    assert stores_map(64, platform=platform)
    assert not stores_map(512, platform=platform, attention="fused")


def test_maps_that_are_used_are_stored():
    assert stores_map(mutable=["intermediates"], attention="fused")
    assert stores_map(dropout=0.1, train=True, attention="fused")
    assert not stores_map(dropout=0.1, attention="fused")


def test_the_trainer_sets_the_form_and_how_the_batch_is_divided():
    mesh = make_mesh("data=2", jax.devices()[:2])
    settings = executed(current_execution, Config(model="vit", attention="fused"), mesh)()
    assert (settings.attention, settings.batch) == ("fused", batch_sharding(mesh))


def test_an_unknown_form_is_named():
    expected = "attention='flash': expected one of 'auto', 'plain', 'fused'"
    with pytest.raises(ValueError, match=expected), execution(attention="flash"):
        pass
