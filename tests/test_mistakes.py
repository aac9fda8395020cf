"""Invalid command lines of a run: each prints one line, exits with status 2, and leaves nothing on disk."""

import re

import jax
import numpy as np
import pytest

import train.build
import train.loop
import train.memory
import train.setup
from tests.runs import error
from tests.runs import train as run
from train.capacity import check_compiled
from train.config import Config
from train.errors import UserError
from train.main import main, parse
from train.sharding import make_mesh
from train.validation import validate

FREE = "--optim.name=schedule_free_adamw"

# Found before any data is read. The first options follow --model-args.
EARLY = [
    ("dmi=3", "--model vit/tiny: unknown argument of model 'vit': 'dmi'; did you mean dim"),
    ("depth", "--model-args 'depth': expected KEY=VALUE"),
    (f"dim={10**20}", "--model-args 'dim=100000000000000000000': whole numbers are at most 1,048,576"),
    ("dim=-1048577", "whole numbers are at most 1,048,576"),
    ("dim=" + "9" * 900, "whole numbers are at most 1,048,576"),
    ("dim=" + "9" * 5000, "--model-args dim: its value has 5,000 characters; at most 1,000 are read"),
    ("dropout=1e999", "expected finite numbers"),
    ("dim=2j", "expected finite numbers"),
    ("depth=100000", "--model-args 'depth=100000': expected at most 256"),
    ("depth=(400, 400)", "expected at most 256"),
    ("dim=" + "[" * 100 + "]" * 100, "nested more than 8 deep"),
    ("dim={{}: 1}", "its value is not a Python literal (unhashable type: 'dict')"),
    ("--model=vti", "--model vti: unknown model: 'vti'; did you mean vit"),
    ("--model=ViT", "unknown model: 'ViT'; did you mean vit"),
    ("--model=" + "v" * 10000, "unknown model: 'vvvv"),
    ("--model=vit/huge", "unknown preset of model 'vit': 'huge'; expected one of tiny, "),
    ("--model=vit/TINY", "unknown preset of model 'vit': 'TINY'; did you mean tiny"),
    ("--model=", "--model is ''; it must be text that is not empty"),
    ("--objective=", "--objective is ''"),
    ("--objective=MAE", "unknown objective: 'MAE'; did you mean mae"),
    ("--objective-args a=1", "--objective classify: unknown argument of objective 'classify': 'a'"),
    ("--init=", "--init is ''"),
    ("--init-from=", "--init-from is ''"),
    ("--data.split=0.5", "--data.split is 0.5; it is used only with --data=folder:PATH"),
    ("--init=/nowhere.pth", "--init /nowhere.pth does not exist"),
    ("--init-from=/nowhere", "--init-from /nowhere does not exist"),
    ("--mesh=", "--mesh is ''"),
    ("--data=", "--data.name is ''"),
    (
        "--data=mnist",
        "unknown data 'mnist': expected digits, folder:PATH, table:FILE, ",
    ),
    ("--data=folder:", "unknown data 'folder:'"),
    ("--data.target=multilabel", "--data.target is multilabel, but digits has only classes"),
    (
        "--data.image-column=jpg",
        "--data.image-column is 'jpg'; it is used only with --data=table:FILE or --data=hf:NAME",
    ),
    ("--data.dir=here", "--data.dir is 'here'; it is used only with --data=tfds:NAME"),
    ("--recipe=nope", "--recipe nope: expected one of digits"),
    ("--recipe=", "--recipe : expected one of digits"),
    ("--recipe", "--recipe needs a value"),
    ("--nonsense", "unknown option --nonsense; --help lists all options"),
    ("--lr=3", "unknown option --lr; did you mean --optim.lr?"),
    ("--name=adamw", "unknown option --name; did you mean --data.name or --optim.name?"),
    ("--warmup-epoch=3", "unknown option --warmup-epoch; did you mean --optim.warmup-epochs?"),
    ("--modle=vit", "unknown option --modle; did you mean --model"),
    ("--" + "x" * 5000, "unknown option --xxx"),
    ("--steps=abc", "--steps is abc; it must be a whole number from 1 to 2,147,483,647"),
    ("--steps=" + "9" * 5000, "--steps is 9999"),
    (
        "--steps=99999999999999999999999",
        "--steps is 99999999999999999999999; it must be a whole number from 1 to 2,147,",
    ),
    ("--steps 3 4", "--steps is 3 4; it must be a whole number"),
    ("--steps=1.5", "--steps is 1.5; it must be a whole number"),
    ("--steps=0", "--steps is 0; it must be a whole number from 1 to 2,147,483,647"),
    ("--dtype=float16", "--dtype is float16; it must be float32 or bfloat16"),
    (
        "--optim.name=adam",
        "--optim.name is adam; it must be adamw or sgd or lamb or lion or muon or schedule_free_adamw",
    ),
    ("--augment.flip=maybe", "--augment.flip takes no value; it was given maybe"),
    ("--tpu=yes", "--tpu takes no value"),
    ("--tpu yes", "--tpu takes no value"),
    ("--epochs=0", "--epochs is 0.0; it must be a number above 0 and at most 1,000,000,000"),
    ("--epochs=nan", "--epochs is nan"),
    ("--epochs=1e300", "--epochs is 1e+300"),
    ("--eval-epochs=0", "--eval-epochs is 0.0"),
    ("--eval-epochs=inf", "--eval-epochs is inf"),
    ("--batch-size=1000000000", "--batch-size is 1000000000; it must be a whole number from 1 to 1,048,576"),
    ("--batch-size=33", "--batch-size is 33; it must be a positive multiple of 8: 8 devices share a batch"),
    ("--eval-batch-size=1000000000", "--eval-batch-size is 1000000000; it must be a whole number from 1 to 1,048,576"),
    ("--eval-batch-size=33", "--eval-batch-size is 33; it must be a positive multiple of 8"),
    ("--log-steps=0", "--log-steps is 0"),
    ("--keep=0", "--keep is 0"),
    ("--save-steps=-1", "--save-steps is -1; it must be a whole number from 0 to"),
    ("--seed=-1", "--seed is -1"),
    ("--seed=4294967296", "--seed is 4294967296; it must be a whole number at least 0 and below 4,294,967,296"),
    ("--label-smoothing=1", "--label-smoothing is 1.0; it must be a number at least 0 and below 1"),
    ("--auxiliary-weight=nan", "--auxiliary-weight is nan"),
    ("--data.image-size=0", "--data.image-size is (0, 0); it must be 2 values, each a whole number from 1 to 16,384"),
    ("--data.image-size 1 2 3", "--data.image-size is 1 2 3; it must be 2 values"),
    ("--data.image-size=big", "--data.image-size is big; it must be 2 values"),
    ("--data.image-size=1000000000", "--data.image-size is (1000000000, 1000000000)"),
    ("--data.min-crop=0", "--data.min-crop is 0.0; it must be a number from 0.001 to 1"),
    ("--data.eval-crop=nan", "--data.eval-crop is nan"),
    (
        "--data.mean 123.7 0 0",
        "--data.mean is (123.7, 0.0, 0.0); it must be one or more values, each a number from 0 to 1",
    ),
    ("--data.mean nan", "--data.mean is (nan,)"),
    ("--data.std inf", "--data.std is (inf,)"),
    ("--data.std 0", "--data.std is (0.0,)"),
    ("--data.workers=-1", "--data.workers is -1"),
    (
        "--augment.crop-padding=1000000000",
        "--augment.crop-padding is 1000000000; it must be a whole number from 0 to 1,024",
    ),
    ("--augment.randaugment-layers=1000000", "--augment.randaugment-layers is 1000000"),
    ("--augment.randaugment-magnitude=11", "--augment.randaugment-magnitude is 11.0; it must be a number from 0 to 10"),
    ("--augment.erasing=1.5", "--augment.erasing is 1.5; it must be a number from 0 to 1"),
    ("--augment.mixup=-1", "--augment.mixup is -1.0"),
    ("--augment.mixup=1e300", "--augment.mixup is 1e+300; it must be a number 0 or from 1e-06 to 1,000"),
    ("--augment.mixup=1e-300", "--augment.mixup is 1e-300"),
    ("--augment.cutmix=inf", "--augment.cutmix is inf"),
    (
        "--data.random-crop=simple --data.min-crop=0.5",
        "--data.min-crop is 0.5 with --data.random-crop=simple: pass one",
    ),
    ("--augment.mixed-targets=both", "--augment.mixed-targets is both, which needs --loss=sigmoid"),
    ("--optim.lr=0", "--optim.lr is 0.0; it must be a number from 1e-35 to 1e+35"),
    ("--optim.lr -1", "--optim.lr is -1.0"),
    ("--optim.lr=nan", "--optim.lr is nan"),
    ("--optim.warmup-epochs=1e300", "--optim.warmup-epochs is 1e+300; it must be a number from 0 to 1,000,000,000"),
    ("--optim.beta2=0.9999999999", "--optim.beta2 is 0.9999999999; it must be a number from 0 to 0.999999"),
    ("--optim.clip-norm=nan", "--optim.clip-norm is nan"),
    ("--optim.ema=1", "--optim.ema is 1.0"),
    ("--optim.lr-batch-size=0", "--optim.lr-batch-size is 0; it must be a whole number from 1 to 1,048,576"),
    ("--optim.decay-share=0.1", "--optim.decay-share 0.1 needs --optim.schedule=wsd; it is cosine"),
    (f"{FREE} --optim.schedule=cosine", "schedule_free_adamw has a constant learning rate: leave out --optim.schedule"),
    (f"{FREE} --optim.ema=0.9", "schedule_free_adamw evaluates an average of its own: leave out --optim.ema=0.9"),
    (f"{FREE} --optim.cautious", "schedule_free_adamw has no momentum, so all its updates agree with gradients: leave"),
    (f"{FREE} --optim.beta1=0", "--optim.beta1 is 0; with --optim.name schedule_free_adamw it must be above 0"),
    ("--optim.accumulate=0", "--optim.accumulate is 0"),
    ("--optim.accumulate=3", "--batch-size is 32; it must be a positive multiple of 24: 8 devices share a batch in 3"),
    ("--mesh=tensor=3", "--mesh tensor=3: its sizes need 6 devices; there are 8"),
    ("--mesh=data=" + "9" * 5000, "--mesh data=9999"),
    ("--mesh=data=0", "--mesh data=0: expected sizes of data, fsdp, tensor, each once"),
    ("--processes=2", "expected all of --coordinator HOST:PORT, --processes and --process, or none of them"),
    (
        "--coordinator=::: --processes=2 --process=0",
        "--coordinator is :::; it must be HOST:PORT with a port from 1 to 65535",
    ),
    ("--coordinator=host --processes=2 --process=0", "--coordinator is host; it must be HOST:PORT"),
    ("--coordinator=host:99999 --processes=2 --process=0", "--coordinator is host:99999"),
    ("--coordinator=:1234 --processes=2 --process=0", "--coordinator is :1234"),
    ("--coordinator=host:1234 --processes=2 --process=2", "--process is 2; it must be from 0 to --processes - 1 = 1"),
    ("--distill.image-size 0 8", "--distill.image-size is (0, 8); it must be own or 2 values"),
    ("--distill.image-size=mine", "--distill.image-size is mine; it must be own or 2 values"),
    ("--distill.views=-1", "--distill.views is -1"),
    ("--distill.temperature=0", "--distill.temperature is 0.0"),
    ("--distill.temperature=nan", "--distill.temperature is nan"),
    ("--distill.alpha=1.1", "--distill.alpha is 1.1"),
    ("--teacher-weights=x.pth", "--distill.weights is set without --distill.teacher"),
    ("--distill.hard", "--distill.hard is set without --distill.teacher"),
    ("--teacher=vit/tiny", "--distill.teacher vit/tiny: expected a workdir with checkpoints, published weights"),
    ("--teacher=vit --teacher-weights=/x.pth", "--distill.weights /x.pth does not exist: expected a .pth, .pt or"),
    ("--teacher=resnet50 --teacher-weights=V3", "--distill.weights V3 does not exist: expected a .pth, .pt or"),
    ("--teacher=vti --teacher-weights=x.pth", "--distill.teacher vti: unknown model: 'vti'; did you mean vit"),
]

# Found once the data is known.
LATE = [
    ("depth=many", "--model vit/tiny: depth='many': expected int"),
    ("heads=0", "--model vit/tiny: "),
    ("image_size=8", "--model-args image_size: is set by the data; see --data.image-size"),
    ("patch_size=3", "image_size=8: expected multiples of patch_size=3"),
    ("--data=folder:/nowhere", "/nowhere"),
    ("--data=tfds:nothing", "tfds:nothing is not prepared in "),
    ("--epochs=1e9", "the run has 44,906,250,000 steps, 44.9062 an epoch; it must be at most 2,147,483,647"),
    ("--optim.warmup-epochs=1e9", "--optim.warmup-epochs makes 44,906,250,000 steps"),
]


@pytest.mark.parametrize(("option", "expected"), EARLY, ids=[option[:40] for option, _ in EARLY])
def test_mistakes_are_found_before_any_data_is_read(option, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.setup, "load_dataset", lambda _: pytest.fail("data was read"))
    options = option.split(" ") if option.startswith("--") else [option]
    assert expected in error(capsys, tmp_path / "run", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_table_too_large_to_be_made_is_named(tmp_path, capsys, monkeypatch):
    """For example, building cct with `padding=1000000` allocates 8 TiB of sine positions."""

    def build(*_, **__):
        raise MemoryError("Unable to allocate 8.00 TiB")

    monkeypatch.setattr(train.build, "make_network", build)
    assert "--model vit/tiny: Unable to allocate 8.00 TiB" in error(capsys, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_workdir_is_refused(capsys):
    assert main(["--workdir="]) == 2
    assert "--workdir is ''; it must be text that is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "expected"), LATE, ids=[option for option, _ in LATE])
def test_mistakes_are_one_line_and_leave_nothing(option, expected, tmp_path, capsys):
    assert expected in error(capsys, tmp_path / "run", option)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_into_memory_is_refused_with_both_numbers(tmp_path, capsys, monkeypatch):
    message = error(capsys, tmp_path / "run", "dim=1048576", "mlp_dim=1048576")  # two matrices of 4 TiB, and moments
    assert re.search(
        r"--model vit needs 2\d\d,\d+\.\d\d GiB for its state .* but there are only .* GiB of memory", message
    )
    monkeypatch.setattr(train.memory, "host_memory", lambda: 2**20)
    message = error(capsys, tmp_path / "run", "--eval-batch-size=8192")
    # 8,192 images of 8x8 pixels as uint8 and float32
    assert "--eval-batch-size 8192 at least 2.50 MiB for images, but there are only 1.00 MiB of memory" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("memory", "step"),
    [(600_000, "a training step of --batch-size 32"), (1_000_000, "an evaluation step of 256 images")],
)
def test_a_run_whose_steps_do_not_fit_leaves_nothing(memory, step, tmp_path, capsys, monkeypatch):
    """The state and a batch alone would fit, in about 430,000 bytes."""
    monkeypatch.setattr(train.memory, "host_memory", lambda: memory)
    assert f"MiB for {step}, but there are only " in error(capsys, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_step_that_does_not_fit_is_refused(monkeypatch):
    step = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((512, 512), np.float32)).compile()
    config, mesh = Config(model="vit", batch_size=64), make_mesh(devices=jax.devices()[:1])
    what = "a training step of --batch-size 64"
    check_compiled(step, what, config, mesh)
    monkeypatch.setattr(train.memory, "host_memory", lambda: 2**20)
    # A matrix of 1 MiB comes in, another goes out.
    said = r"--model vit needs 2\.00 MiB for a training step of --batch-size 64, .* only 1\.00 MiB .* --remat=full"
    with pytest.raises(UserError, match=said):
        check_compiled(step, what, config, mesh)
    monkeypatch.setattr(train.memory, "host_memory", lambda: 2**21 + 5)
    check_compiled(step, what, config, mesh, kept=5)
    with pytest.raises(UserError, match=r"needs 2\.00 MiB"):
        check_compiled(step, what, config, mesh, kept=6)


@pytest.mark.parametrize(("module", "where"), [(train.setup, "compile_step"), (train.loop, "to_devices")])
def test_memory_that_runs_out_is_one_line(module, where, tmp_path, capsys, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 5 bytes.")

    monkeypatch.setattr(module, where, exhausted)
    assert run(tmp_path / "run") == 1
    assert (tmp_path / "run").exists() == (where == "to_devices")
    err = capsys.readouterr().err
    assert err.startswith("stopped: memory ran out (RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.). In ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--loss=sigmoid", "--label-smoothing=0.2", "--auxiliary-weight=2"])
def test_options_that_an_objective_does_not_use_are_refused(option):
    name, value = option.split("=")
    with pytest.raises(UserError, match=f"{name} is {value}.*, but objective 'mae' does not use it"):
        validate(parse(["--objective=mae", option]))
    validate(parse(["--model=vit", option]))
    validate(parse(["--objective=mae", "--recipe=deit", "--data=tfds:x"]))  # its label smoothing is for classifiers
