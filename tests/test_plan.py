"""Plans: the compiler's estimates for a step on a machine that is not available."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from tests import compiler
from train import hlo, plan, planning, topology
from train.build import DataInfo
from train.config import Config
from train.errors import UserError
from train.sharding import make_mesh
from vit_jax import create_model

INFO = DataInfo(tuple("0123456789"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
ARGUMENTS = ("dim=32", "depth=2", "heads=2", "dim_head=16", "mlp_dim=64")


@pytest.fixture(scope="module")
def found():
    return planning.plan(Config(model="vit", model_args=ARGUMENTS, batch_size=16), INFO, make_mesh("data=4,tensor=2"))


def test_operations_are_those_of_the_products(found):
    """The backward pass has twice as many operations as the forward pass, except for the gradient of the images."""
    tokens, dim, inner, hidden = 65, 32, 32, 64
    block = tokens * dim * 3 * inner + 2 * tokens**2 * inner + tokens * inner * dim + 2 * tokens * dim * hidden
    products = 3 * (2 * block + dim * 10) + 2 * 64 * 48 * dim
    assert 2 * products < found.flops_per_image < 1.25 * 2 * products


def test_numbers_are_of_one_device(found):
    parameters = found.parameters
    sizes = dict(zip(("dim", "depth", "heads", "dim_head", "mlp_dim"), (32, 2, 2, 16, 64), strict=True))
    shapes = jax.eval_shape(create_model("vit/tiny", num_classes=10, **sizes).init, jax.random.key(0), INFO.images)
    assert parameters == sum(x.size for x in jax.tree.leaves(shapes))
    assert 0.5 < found.state_bytes / (3 * 4 * parameters) < 0.6  # small leaves are not split
    assert found.memory_bytes > found.state_bytes
    assert 1.9 < found.least_moved_bytes / found.memory_bytes < 2  # all of it but the batch is both written and read
    assert found.collectives.keys() == {"all-gather", "all-reduce"}
    number, size = found.collectives["all-reduce"]
    assert number > 2
    assert size > 4 * parameters / 2  # gradients, and what a split feed-forward adds up


def test_exchanges_are_counted_with_their_sizes():
    text = """
      %a = f32[8,4]{1,0} all-gather(%p), dimensions={0}
      %b.s = (bf16[8]{0}, bf16[16]{0}) all-gather-start(%q)
      %b = bf16[16]{0} all-gather-done(%b.s)
      ROOT %c = (f32[2,2]{1,0}, /*index=1*/f32[]) all-reduce(%x, %y), to_apply=%add
      %d = f32[8]{0} fusion(%all-reduce.1)
    """
    assert hlo.collectives(text) == {"all-gather": (2, 8 * 4 * 4 + 16 * 2), "all-reduce": (1, 4 * 5)}


def test_an_exchange_in_loops_counts_as_often_as_they_run_it():
    mesh = make_mesh("data=8")

    def sums(x):
        once = lambda x, _: (jax.lax.psum(jnp.sin(x), "data"), None)
        twice = lambda x, _: (jax.lax.scan(once, x, length=3)[0], None)
        return jax.lax.psum(jax.lax.scan(twice, x, length=5)[0], "data")

    program = jax.jit(
        jax.shard_map(sums, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    )
    text = program.lower(jax.ShapeDtypeStruct((64,), jnp.float32)).compile().as_text()
    assert hlo.collectives(text) == {"all-reduce": (5 * 3 + 1, (5 * 3 + 1) * 64 * 4)}


LOOP = """HloModule jit_step
%fused (p: f32[8]) -> f32[8] {
  ROOT %sine = f32[8]{0} sine(%p)
}

%branch (p: f32[8]) -> f32[8] {
  ROOT %copy = f32[8]{0} copy(%p), backend_config={"estimated_cycles":"1000"}
}

%body (p: f32[8]) -> f32[8] {
  %fusion = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
  ROOT %choice = f32[8]{0} conditional(%i, %fusion, %fusion), branch_computations={%branch, %other}
}

%less (p: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %first = f32[8]{0} copy(%p), backend_config={"estimated_cycles":"7"}
  ROOT %loop = f32[8]{0} while(%first), condition=%less, body=%body
}
"""


def test_cycles_are_those_of_loops_and_what_they_call():
    assert hlo.cycles(LOOP) == 7 + 12 * (10 + 1000)
    told = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert hlo.cycles(told) == 7 + 3 * (10 + 1000)
    unknown = LOOP.replace("constant(12)", "parameter(0)")
    assert hlo.cycles(unknown) == 7 + 10 + 1000


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 100, 1000])
def test_the_largest_is_found_to_within_an_eighth(most):
    asked = []
    found = planning.largest(lambda number: asked.append(number) or number <= most)
    assert found <= most < found + max(1, found // 8)
    assert len(asked) < 20


def test_a_step_that_does_not_fit(monkeypatch):
    """The figures of the compiler are in the message."""

    class Refused:
        def compile(self):
            text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.57G of 15.75G hbm. Exceeded it."
            raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(planning, "lowered", lambda program: Refused())
    with pytest.raises(planning.TooLarge, match=r"^Used 21\.57G of 15\.75G hbm$"):
        planning.plan(Config(model="vit", model_args=ARGUMENTS, batch_size=16), INFO, make_mesh("data=8"))


def test_a_verdict_says_by_how_much(found):
    config, mesh = Config(batch_size=16), make_mesh("data=4,tensor=2")
    chip = topology.Chip(memory=found.memory_bytes - 2**20, bandwidth=1e9, flops=1e12)
    lines = planning.report(found, config, mesh, chip)
    assert any("too much by 1.00 MiB" in line for line in lines)
    assert any("by bandwidth" in line for line in lines)
    lines = planning.report(found, config, mesh, chip._replace(memory=found.memory_bytes, flops=1.0))
    assert any(line.startswith("memory") and line.endswith(": fits") for line in lines)
    assert any("by arithmetic" in line for line in lines)
    assert not any(line.startswith("cycles") for line in lines)
    lines = planning.report(found._replace(cycles=1_234_567), config, mesh, chip)
    assert any(line.split()[:3] == ["cycles", "1.2", "M"] for line in lines)


def run(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(compiler.QUICK)}
    command = [sys.executable, "-m", "train.plan", *arguments]
    folder = Path(plan.__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_a_plan_for_virtual_devices():
    options = ("--topology=cpu:4", "--mesh=fsdp=4", "--batch-size=8", "--classes=7", "--scan-blocks", "--remat=full")
    done = run("--model=vit", *options, "--model-args", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert "4 x cpu, mesh {'data': 1, 'fsdp': 4, 'tensor': 1}, float32" in done.stdout
    assert "all-gather" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "--topology v9:2x2: expected cpu:N, a100, h100, h200 with a number, as in h100:8, or v4, v5e"),
        ("h100:2x4", "--topology h100:2x4: expected cpu:N"),
        ("cpu:none", "--topology cpu:none: expected cpu:N"),
        ("cpu:0", "cpu:0"),
        ("cpu:" + "9" * 5000, "cpu:9999"),
    ],
)
def test_unknown_topologies_are_named(name, message):
    with pytest.raises(UserError, match=message):
        topology.open_topology(name)


def test_a_missing_compiler_for_gpus_is_named(monkeypatch):
    asked = {}

    def missing(**options):
        asked.update(options)
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topology.topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"h100:8 needs JAX's compiler for CUDA: pip install --no-deps jax-cuda13"):
        topology.open_topology("h100:8")
    assert (asked["platform"], asked["topology"]) == ("cuda", "1x1x8")
    assert "device_memory_size: 80000000000\n" in asked["target_config"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model=vitt", "unknown model: 'vitt'; did you mean vit"),
        ("--model=vit --sweep", "--sweep needs a topology whose memory is known"),
        ("--model=vit --batch-size=12", "--batch-size is 12; it must be a positive multiple of 8"),
        ("--model=vit --batch-size=1000000000", "--batch-size is 1000000000; it must be a whole number from 1 to"),
        ("--classes=1000000000000", "--classes is 1000000000000; it must be a whole number from 1 to 1,000,000"),
        ("--classes=0", "--classes is 0; it must be a whole number"),
        ("--classes=many", "--classes is many; it must be a whole number"),
        ("--clases=3", "unknown option --clases; did you mean --classes?"),
        ("--lr=3", "unknown option --lr; did you mean --optim.lr?"),
        ("--model=vit --model-args depth=100000", "'depth=100000': expected at most 256"),
        ("--model=vit --model-args image_size=1000000", "image_size=1000000: a side must be a whole number from 1 to"),
        ("--model=vit --model-args dim=a", "dim='a': expected int"),
        ("--model=vit --teacher=resnet18 --teacher-weights=IMAGENET1K_V1", "a plan includes no teacher"),
    ],
)
def test_mistakes_end_with_status_2(options, message, capsys, monkeypatch):
    monkeypatch.setattr(planning, "open_topology", lambda name: (jax.devices(), None))
    assert plan.main(options.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
