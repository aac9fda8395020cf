"""Sharding on eight virtual devices: the placement of arrays, and that it does not change results."""

import functools
import math
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import train.loop
import train.setup
from tests.runs import RANDOM, records
from tests.runs import train as run
from train.build import DataInfo, build_objective
from train.config import Config, Optim
from train.data import Dataset, Skipped
from train.data.sources import ArraySource
from train.errors import UserError
from train.optim import make_optimizer, make_schedule
from train.program import build_program
from train.sharding import batch_sharding, check_batch, make_mesh, state_sharding, sufficient_batch, to_devices
from train.step import init_state, slice_batch
from vit_jax import create_model
from vit_jax.objectives.classify import Classify

EVERYWHERE = PartitionSpec()


def specs(mesh, name="lamb", **sizes):
    """{path: PartitionSpec} of the whole state of a ViT, including a moving average."""
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


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (None, (8, 1, 1)),
        ("data=8", (8, 1, 1)),
        ("data=4,fsdp=2", (4, 2, 1)),
        ("tensor=2,fsdp=2", (2, 2, 2)),
        ("fsdp=8", (1, 8, 1)),
    ],
)
def test_mesh_has_all_devices(shape, sizes):
    mesh = make_mesh(shape)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    assert sorted(d.id for d in mesh.devices.ravel()) == list(range(8))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("tensor=3", "its sizes need 6 devices; there are 8"),
        ("data=4", "its sizes need 4 devices; there are 8"),
        ("fsdp=16", "its sizes need 16 devices; there are 8"),
        ("fsdp=0", "expected sizes of data, fsdp, tensor, each once, as in data=4,fsdp=2"),
        ("model=2", "expected sizes of"),
        ("fsdp=2,fsdp=2", "expected sizes of"),
        ("fsdp", "expected sizes of"),
        ("fsdp=-2", "expected sizes of"),
    ],
)
def test_meshes_that_make_no_sense_are_named(shape, message):
    with pytest.raises(UserError, match=f"--mesh {shape}: {message}"):
        make_mesh(shape)


def test_batches_must_spread_evenly():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    check_batch("--batch-size", 12, mesh)
    check_batch("--batch-size", 24, mesh, slices=3)
    for size, slices in ((10, 1), (0, 1), (-4, 1), (16, 3)):
        with pytest.raises(UserError, match=f"--batch-size is {size}; it must be a positive multiple of {4 * slices}"):
            check_batch("--batch-size", size, mesh, slices)


@pytest.mark.parametrize(
    ("size", "processes", "expected"), [(16, 1, 16), (48, 1, 48), (52, 1, 52), (2**20, 1, 52), (2**20, 3, 60)]
)
def test_a_batch_holds_no_more_than_all_examples_need(size, processes, expected, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert sufficient_batch(size, 50, make_mesh("data=2,fsdp=2,tensor=2")) == expected


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("size", "shapes"), [(16, [16, 16, 16, 16]), (2**20, [56])])
def test_an_evaluation_takes_no_larger_batches_than_it_needs(size, shapes):
    """The means are the same as with large batches."""
    source = ArraySource(np.zeros((50, 6, 6, 1), np.uint8), np.arange(50, dtype=np.int32))
    dataset = Dataset(source, source, (), (6, 6, 1), (0.5,), (0.5,), ())
    state, skipped, seen = SimpleNamespace(eval_params={}, extras={}), Skipped(source, "evaluation", print), []

    def eval_step(params, extras, batch):
        seen.append(len(batch["mask"]))
        return {"loss": jnp.sum(batch["label"] * batch["mask"]), "count": jnp.sum(batch["mask"])}

    config = Config(eval_batch_size=size)
    found = train.loop.evaluate(eval_step, state, dataset, INFO, config, make_mesh(), skipped, lambda: False)
    assert seen == shapes
    assert found == {"loss": 24.5, "examples": 50}


def test_feed_forwards_are_split_over_the_tensor_axis_and_the_rest_over_all():
    found = specs(make_mesh("data=2,fsdp=2,tensor=2"))
    both = ("fsdp", "tensor")
    expected = {
        "['transformer']['attn_0']['to_qkv']['kernel']": PartitionSpec(None, both),  # (16, 48)
        "['transformer']['attn_0']['to_out']['kernel']": PartitionSpec(both, None),  # (16, 16)
        "['transformer']['ff_0']['fc1']['kernel']": PartitionSpec("fsdp", "tensor"),
        "['transformer']['ff_0']['fc1']['bias']": PartitionSpec("tensor"),
        "['transformer']['ff_0']['fc2']['kernel']": PartitionSpec("tensor", "fsdp"),
        "['to_patch_embedding']['proj']['kernel']": PartitionSpec(both, None),  # (16, 16)
    }
    # The parameters, their moving average and both of LAMB's moments.
    for leaf, spec in expected.items():
        assert [found[path] for path in found if path.endswith(leaf)] == [spec] * 4
    others = {path: spec for path, spec in found.items() if not path.endswith(tuple(expected))}
    assert len(others) > 40
    assert set(others.values()) == {EVERYWHERE}  # fewer than 256 numbers each


def test_momentum_of_muon_is_split_like_its_matrices():
    found = specs(make_mesh("data=2,fsdp=2,tensor=2"), name="muon")
    for layer, spec in (("fc1", PartitionSpec("fsdp", "tensor")), ("fc2", PartitionSpec("tensor", "fsdp"))):
        kernels = [path for path in found if path.endswith(f"['{layer}']['kernel']")]
        assert [found[path] for path in kernels] == [spec] * 3  # parameters, momentum, moving average


def test_what_does_not_divide_is_split_less_or_not_at_all():
    found = specs(make_mesh("tensor=4,fsdp=2"), mlp_dim=30, dim=18)
    kernel = lambda path: found[f".params['transformer']{path}['kernel']"]
    assert kernel("['ff_0']['fc1']") == PartitionSpec(None, "fsdp")  # (18, 30): by two, not by four or eight
    assert found[".params['transformer']['ff_0']['fc1']['bias']"] == EVERYWHERE
    assert kernel("['attn_0']['to_qkv']") == PartitionSpec(None, ("fsdp", "tensor"))  # (18, 48)


def test_batches_are_split_over_data_and_fsdp():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    images = np.arange(8 * 3).reshape(8, 3)
    placed = to_devices({"image": images}, mesh)["image"]
    assert placed.sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(placed, images)
    for shard in placed.addressable_shards:
        row, column, _ = np.argwhere(mesh.devices == shard.device)[0]
        share = 2 * row + column
        np.testing.assert_array_equal(shard.data, images[2 * share : 2 * share + 2])


def test_slicing_a_batch_moves_nothing():
    mesh = make_mesh()
    batch = jax.device_put(np.arange(64), batch_sharding(mesh))
    compiled = jax.jit(lambda x: slice_batch(x, 4)).lower(batch).compile()
    assert compiled.output_shardings.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))), 2)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))


# The same run on other meshes: a plain model, one with batch norm that halves its map by strided attention, and one
# that does it by convolution. Models that normalise patches would do for no comparison: digits have black ones, whose
# norm is of rounding alone.

SMALL = ("dim=16", "heads=2", "dim_head=8", "mlp_dim=32")
LEVIT = ("dim=(16, 24)", "depth=1", "heads=2", "stages=2")
MODELS = {
    "vit": ("--model=vit", "--model-args", "dropout=0.1", "depth=1", *SMALL),
    "pit": ("--model=pit", "--model-args", "dropout=0.1", "depth=(1, 1)", *SMALL),
    "levit": ("--model=levit", "--data.image-size", "16", "16", "--model-args", *LEVIT),
}
SPLIT_EVERY_WAY = "data=2,fsdp=2,tensor=2"
MESHES = ("data=8", "data=4,fsdp=2", SPLIT_EVERY_WAY)
STEPS = 16
OPTIONS = (
    *RANDOM[1:],
    "--batch-size=32",
    f"--steps={STEPS}",
    "--eval-epochs=2",
    "--log-steps=1",
    "--optim.warmup-epochs=0.1",
)


def pairs(meshes, elsewhere):
    """Models with meshes: the ViT with the first and the last, models in `elsewhere` with SPLIT_EVERY_WAY."""

    def marks(model, mesh):
        chosen = model == "vit" and mesh in (meshes[0], meshes[-1])
        return [] if chosen or (model in elsewhere and mesh == SPLIT_EVERY_WAY) else pytest.mark.exhaustive

    return [pytest.param(model, mesh, marks=marks(model, mesh)) for model in MODELS for mesh in meshes]


@functools.cache
def on_one_device(model: str):
    """The records of a run on one device, by split."""
    with tempfile.TemporaryDirectory() as workdir:
        assert run(workdir, *OPTIONS, base=MODELS[model], devices=1) == 0
        return {split: records(Path(workdir), split) for split in ("train", "eval")}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "mesh"), pairs(MESHES, elsewhere=()))
def test_eight_devices_train_as_one(model, mesh, tmp_path, capsys):
    expected = on_one_device(model)
    assert run(tmp_path, *OPTIONS, f"--mesh={mesh}", base=MODELS[model]) == 0
    assert f"8 x cpu (cpu), mesh {mesh}" in capsys.readouterr().out
    for split in expected:
        got = records(tmp_path, split)
        assert len(got) == len(expected[split]) == {"train": STEPS, "eval": 1}[split]
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose([r[name] for r in got], [r[name] for r in expected[split]], rtol=1e-4)


# Memory and communication of a step

INFO = DataInfo(tuple("0123456789"), (16, 16, 3), (0.5,) * 3, (0.25,) * 3)


def program_on(mesh: str, model: str = "vit", *arguments: str):
    config = Config(model=model, model_args=arguments, batch_size=64, optim=Optim(ema=0.9))
    return build_program(config, INFO, make_mesh(mesh), build_objective(config, INFO), 10, 1.0)


def bytes_per_device(tree) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_the_state_rests_in_parts():
    whole, parts = (program_on(mesh, "vit", "dim=128", "depth=1") for mesh in ("data=8", "fsdp=8"))
    assert bytes_per_device(parts.state) <= bytes_per_device(whole.state) / 6
    compiled = parts.train_step.lower(parts.state, parts.batch, {}).compile()
    of_batch = bytes_per_device(parts.batch)
    assert compiled.memory_analysis().argument_size_in_bytes <= bytes_per_device(whole.state) / 6 + of_batch


# Small, but with more numbers in most kernels than rest on every device.
BLOCKS = {"vit": ("depth=1", *SMALL), "pit": ("depth=(1, 1)", *SMALL), "levit": LEVIT}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "mesh"), pairs([*MESHES, "fsdp=8"], elsewhere=MODELS))
def test_only_parameters_are_gathered(model, mesh):
    """No activation travels but the sums that a split feed-forward needs; whole parameters do, where they are split."""
    program = program_on(mesh, model, *BLOCKS[model])
    text = program.train_step.lower(program.state, program.batch, {}).compile().as_text()
    results = re.findall(r" = (.*?) all-gather(?:-done)?\(", text)  # of several arrays at once where XLA combines them
    gathered = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", " ".join(results))}
    assert gathered <= {x.shape for x in jax.tree.leaves(program.state.params)}
    assert bool(gathered) == (mesh != "data=8")
    assert "all-to-all" not in text
    assert "collective-permute" not in text
