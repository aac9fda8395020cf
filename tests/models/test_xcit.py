"""Features of XCiT only: initial LayerScale, skipped layers, an odd kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from tests.models.test_cait import starts
from tests.test_models import variables_of
from vit_jax import create_model, list_presets


def test_by_default_layer_scale_starts_as_upstreams():
    pytest.importorskip("torch")
    sizes = dict(depth=26, dim=6, heads=1, dim_head=4, mlp_dim=4)
    twin = build_upstream(FIRST["xcit"], **sizes).state_dict()
    expected = {key: pytest.approx(float(value.min())) for key, value in twin.items() if key.endswith(".scale")}
    assert len(expected) == 3 * 26 + 2
    assert starts(build(FIRST["xcit"], **sizes)) == expected


def test_layer_scale_can_start_everywhere_alike():
    assert set(starts(build(FIRST["xcit"], layer_scale_init=0.5)).values()) == {0.5}
    paper = [create_model(f"xcit/{name}", num_classes=2) for name in list_presets("xcit") if name != "tiny"]
    assert {(model.depth, model.layer_scale_init) for model in paper} == {(12, 1.0), (24, 1e-5)}


def test_a_dropped_layer_is_left_out():
    """With one of two layers kept, the output is that of a model with only that layer."""
    model, x = build(FIRST["xcit"], layer_dropout=1.0, layer_scale_init=1.0), jnp.ones((2, 16, 16, 3))
    full, rngs = variables_of(model, x, {}), {"dropout": jax.random.key(0)}

    def compiled(model):
        return jax.jit(lambda v: model.apply(v, x, train=True, rngs=rngs, mutable=["batch_stats"])[0])

    run_alone = compiled(build(FIRST["xcit"], depth=1))

    def alone(layer):
        def keep(blocks):
            return {key[:-1] + "0": value for key, value in blocks.items() if key.endswith(f"_{layer}")}

        swapped = {name: {**tree, "xcit_transformer": keep(tree["xcit_transformer"])} for name, tree in full.items()}
        return run_alone(swapped)

    out = compiled(model)(full)
    errors = [float(np.abs(out - alone(layer)).max()) for layer in (0, 1)]
    assert min(errors) < 1e-5 < 1e-3 < max(errors)


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_even_kernels_are_named(kernel):
    with pytest.raises(ValueError, match=f"local_patch_kernel_size={kernel}: expected an odd number"):
        build(FIRST["xcit"], local_patch_kernel_size=kernel)
