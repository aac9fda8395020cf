"""Published weights of SigLIP, and invalid arguments of its VAT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import FIRST
from tests.cases.case import build, build_upstream
from tests.cases.vat_siglip import SMALL, TOWER
from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch
from vit_jax.models.vat_siglip import siglip_weights

IMAGES = jnp.zeros((2, 8, 8, 3))


def published(root: str) -> dict[str, np.ndarray]:
    """Random weights under the keys of Hugging Face, of a tower of the rows' size, and of part of the text tower."""
    rng, dim, mlp_dim = np.random.default_rng(0), TOWER["dim"], TOWER["mlp_dim"]
    shapes = {"embeddings.patch_embedding": (dim, 3, 4, 4), "post_layernorm": (dim,)}
    for i in range(TOWER["depth"]):
        layer = f"encoder.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj": (dim, dim) for name in ("k", "v", "q", "out")}
        shapes |= {f"{layer}.layer_norm{j}": (dim,) for j in (1, 2)}
        shapes |= {f"{layer}.mlp.fc1": (mlp_dim, dim), f"{layer}.mlp.fc2": (dim, mlp_dim)}
    weights = {f"{root}{name}.weight": shape for name, shape in shapes.items()}
    weights |= {f"{root}{name}.bias": shape[:1] for name, shape in shapes.items()}
    weights |= {f"{root}embeddings.position_embedding.weight": (4, dim), "text_model.final_layer_norm.bias": (dim,)}
    weights |= {f"{root}head.layernorm.weight": (dim,)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in weights.items()}


PI_ZERO = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."


@pytest.mark.parametrize("root", ["", "vision_model.", PI_ZERO])
def test_published_weights_are_read_as_upstream_reads_them(root, tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.numpy")
    pytest.importorskip("torch")
    weights = published(root)
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    twin = build_upstream(FIRST["vat_siglip"], **SMALL)
    twin.load_siglip(folder=tmp_path)
    expected = {key: value.numpy() for key, value in twin.vit.state_dict().items()}

    ours = siglip_weights(weights)
    assert ours.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert "Successfully loaded" in capsys.readouterr().out


def test_a_tower_becomes_that_of_a_vat():
    weights, tower = published("vision_model."), create_model("vat_siglip:SigLIP", **TOWER)
    params = from_torch(tower, siglip_weights(weights), IMAGES)["params"]
    model = build(FIRST["vat_siglip"])
    variables = model.init(jax.random.key(0), IMAGES)
    state = to_torch(model, variables) | siglip_weights(weights, prefix="vit.")
    jax.tree.map(np.testing.assert_array_equal, from_torch(model, state, IMAGES)["params"]["vit"], params)


def test_what_has_no_tower_is_refused():
    with pytest.raises(ValueError, match=r"expected a key that ends in 'embeddings.patch_embedding.weight'"):
        siglip_weights({"text_model.final_layer_norm.bias": np.zeros(3)})


def test_smaller_images_get_the_first_positions():
    model = create_model("vat_siglip:SigLIP", **TOWER)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert jax.eval_shape(model.apply, variables, IMAGES[:, :4]).shape == (2, 2, 24)
    with pytest.raises(ValueError, match=r"images of shape .*: expected at most image_size=\("):
        jax.eval_shape(model.apply, variables, jnp.zeros((2, 8, 16, 3)))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(siglip_patch_size=3), "siglip_image_size=8: expected multiples of patch_size=3"),
        (dict(siglip_dim=0), "siglip_dim=0: expected at least 1"),
        (dict(siglip_heads=25), "siglip_heads=25: expected at most dim=24"),
        (dict(siglip_mlp_dim=0), "siglip_mlp_dim=0: expected at least 1"),
        (dict(depth=4), "vit_layer_indices=None: expected for each of depth=4 layers one of -3 to 2"),
        (
            dict(vit_layer_indices=(0, 3)),
            r"vit_layer_indices=\(0, 3\): expected for each of depth=2 layers one of -3",
        ),
        (dict(num_views=0), "num_views=0: expected at least 1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(FIRST["vat_siglip"], **kwargs)


def test_another_number_of_views_is_named():
    """Upstream would repeat the single view."""
    model = build(FIRST["vat_siglip"], num_views=2)
    with pytest.raises(ValueError, match="1 views: expected num_views=2"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)
