"""Eight virtual devices: who holds what, and that it changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import train.loop
from tests.runs import RANDOM, records
from tests.runs import train as run
from train import checkpoint
from train.config import Optim, UserError
from train.optim import make_optimizer, make_schedule
from train.sharding import batch_sharding, check_batch, make_mesh, state_sharding, to_devices
from train.step import init_state, slice_batch
from vit_jax import create_model
from vit_jax.objectives.classify import Classify

EVERYWHERE = PartitionSpec()


def specs(mesh, name="lamb", **sizes):
    """{path: PartitionSpec} of a ViT's whole state, with moving average."""
    sizes = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_dim=32) | sizes
    model = create_model("vit", image_size=8, patch_size=4, num_classes=10, channels=1, **sizes)
    objective, images = Classify(model), jnp.zeros((1, 8, 8, 1))

    def init(key):
        params, _ = jax.eval_shape(objective.init, key, images)
        config = Optim(name=name)
        optimizer = make_optimizer(config, make_schedule(config, 10, 1.0), params)
        return init_state(objective, optimizer, key, images, ema=True)

    state = jax.eval_shape(init, jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(state_sharding(state, mesh))[0]
    assert all(sharding.mesh == mesh for _, sharding in leaves)
    return {jax.tree_util.keystr(path): sharding.spec for path, sharding in leaves}


def test_mesh_has_all_devices():
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    mesh = make_mesh(4)
    assert dict(mesh.shape) == {"data": 2, "model": 4}
    assert sorted(d.id for d in mesh.devices.ravel()) == list(range(8))


@pytest.mark.parametrize("parts", [3, 0, -2, 16])
def test_mesh_needs_a_divisor_of_the_devices(parts):
    with pytest.raises(UserError, match=rf"--model-parallel is {parts}; it must divide the 8 devices"):
        make_mesh(parts)


def test_batches_must_spread_evenly():
    mesh = make_mesh(2)
    check_batch("--batch-size", 12, mesh)
    check_batch("--batch-size", 24, mesh, slices=3)
    for size, slices in ((10, 1), (0, 1), (-4, 1), (16, 3)):
        with pytest.raises(UserError, match=f"--batch-size is {size}; it must be a positive multiple of {4 * slices}"):
            check_batch("--batch-size", size, mesh, slices)


def test_blocks_are_split_over_the_model_axis():
    found = specs(make_mesh(2))
    columns, rows = PartitionSpec(None, "model"), PartitionSpec("model", None)
    expected = {
        "['transformer']['attn_0']['to_qkv']['kernel']": columns,
        "['transformer']['attn_0']['to_out']['kernel']": rows,
        "['transformer']['ff_0']['fc1']['kernel']": columns,
        "['transformer']['ff_0']['fc1']['bias']": PartitionSpec("model"),
        "['transformer']['ff_0']['fc2']['kernel']": rows,
    }
    # The parameters, their moving average and both of LAMB's moments.
    for leaf, spec in expected.items():
        assert [found[path] for path in found if path.endswith(leaf)] == [spec] * 4
    others = {path: spec for path, spec in found.items() if not path.endswith(tuple(expected))}
    assert len(others) > 40
    assert set(others.values()) == {EVERYWHERE}


def test_what_does_not_divide_is_on_every_device():
    found = specs(make_mesh(4), mlp_dim=30)
    assert found[".params['transformer']['ff_0']['fc1']['kernel']"] == EVERYWHERE
    assert found[".params['transformer']['ff_0']['fc1']['bias']"] == EVERYWHERE
    assert found[".params['transformer']['attn_0']['to_qkv']['kernel']"] == PartitionSpec(None, "model")


def test_batches_are_split_over_the_data_axis():
    mesh = make_mesh(2)
    images = np.arange(8 * 3).reshape(8, 3)
    placed = to_devices({"image": images}, mesh)["image"]
    assert placed.sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(placed, images)
    for shard in placed.addressable_shards:
        row = np.argwhere(mesh.devices == shard.device)[0][0]
        np.testing.assert_array_equal(shard.data, images[2 * row : 2 * row + 2])


def test_slicing_a_batch_moves_nothing():
    mesh = make_mesh()
    batch = jax.device_put(np.arange(64), batch_sharding(mesh))
    compiled = jax.jit(lambda x: slice_batch(x, 4)).lower(batch).compile()
    assert compiled.output_shardings.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "data")), 2)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))


# The same run on other meshes

OPTIONS = (*RANDOM, "--steps=6", "--eval-epochs=0.1", "--log-steps=1", "--optim.warmup-epochs=0.1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The records of a run on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    mesh = Mesh(np.reshape(jax.devices()[:1], (1, 1)), ("data", "model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.loop, "make_mesh", lambda model_parallel: mesh)
        assert run(workdir, *OPTIONS) == 0
    return {split: records(workdir, split) for split in ("train", "eval")}


@pytest.mark.parametrize("model_parallel", [1, 2])
def test_eight_devices_train_as_one(model_parallel, alone, tmp_path, monkeypatch, capsys):
    states = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda manager, step, state, *rest: states.append(state) or save(manager, step, state, *rest),
    )
    assert run(tmp_path, *OPTIONS, f"--model-parallel={model_parallel}") == 0
    said = f"8 x cpu (cpu): {8 // model_parallel} share a batch, {model_parallel} each matrix"
    assert said in capsys.readouterr().out
    for split, expected in alone.items():
        got = records(tmp_path, split)
        assert len(got) == len(expected)
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose([r[name] for r in got], [r[name] for r in expected], rtol=2e-5)

    # What the checkpoint gets is split as the rules say.
    state = states[-1]
    adam = next(part for part in state.opt_state if hasattr(part, "mu"))
    for tree in (state.params, state.ema, adam.mu, adam.nu):
        block = tree["transformer"]
        for leaf, shape in (
            (block["attn_0"]["to_qkv"]["kernel"], (16, 48 // model_parallel)),
            (block["ff_0"]["fc2"]["kernel"], (32 // model_parallel, 16)),
            (tree["mlp_head"]["kernel"], (16, 10)),
        ):
            assert len(leaf.sharding.device_set) == 8
            assert leaf.sharding.shard_shape(leaf.shape) == shape
