"""A sweep: its runs by hand, what is refused before any starts, and how it continues after failures and signals."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import train.sweep
from tests.runs import TINY
from train.main import main

SWEEP = ("--sweep", "optim.lr=1e-3,0.003", "seed=0,1")
NAMES = [f"optim.lr={lr},seed={seed}" for lr in ("0.001", "0.003") for seed in (0, 1)]


@pytest.fixture
def started(monkeypatch):
    """The command lines of the runs that were started, instead of processes; each leaves an evaluation."""
    argvs, compared, statuses = [], [], []

    def start(argv):
        argvs.append(argv)
        workdir = Path(argv[-1].removeprefix("--workdir="))
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "metrics.jsonl").write_text('{"step": 10, "split": "eval", "loss": 0.5}\n')
        return statuses.pop(0) if statuses else 0

    monkeypatch.setattr(train.sweep, "start", start)
    monkeypatch.setattr("train.evaluation.comparison.show_comparison", lambda *given: compared.append(given))
    return SimpleNamespace(argvs=argvs, compared=compared, statuses=statuses)


def sweep(folder, *options):
    return main([*TINY, f"--workdir={folder}", *SWEEP, *options])


def test_every_combination_is_run_and_compared(started, tmp_path):
    assert sweep(tmp_path, "--steps=20") == 0
    assert [argv[-1] for argv in started.argvs] == [f"--workdir={tmp_path}/{name}" for name in NAMES]
    for argv, (lr, seed) in zip(started.argvs, (("1e-3", 0), ("1e-3", 1), ("0.003", 0), ("0.003", 1)), strict=True):
        assert argv[-3:-1] == [f"--optim.lr={lr}", f"--seed={seed}"]
        assert "--steps=20" in argv
        assert not any("sweep" in token for token in argv)
        main_config = train.main.parse(argv)
        assert (main_config.optim.lr, main_config.seed, main_config.model_args[-1]) == (float(lr), seed, "mlp_dim=32")
    assert started.compared == [([f"{tmp_path}/{name}" for name in NAMES], tmp_path / "compare.html")]


def test_a_sweep_continues(started, tmp_path, capsys):
    started.statuses[:] = [0, 1, 130]
    assert sweep(tmp_path) == 130
    assert capsys.readouterr().err == "interrupted: the same command continues the sweep\n"
    started.statuses[:] = [2, 0]
    assert sweep(tmp_path) == 1
    said = capsys.readouterr()
    assert f"run 1/4    {NAMES[0]}: has finished" in said.out
    expected = f"stopped: 1 of 4 runs failed: {NAMES[1]} (status 2); the same command tries them again\n"
    assert said.err == expected
    assert sweep(tmp_path) == 0
    starts = [argv[-1].rpartition("/")[2] for argv in started.argvs]
    assert starts == [NAMES[i] for i in (0, 1, 2, 1, 2, 3, 1)]
    assert sweep(tmp_path, "--epochs=70", "--extend=constant") == 0  # other options: all runs again
    assert len(started.argvs) == len(starts) + 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("optim.lr=1e-3,", "--sweep optim.lr=1e-3,: expected OPTION=VALUE,VALUE,..., as in optim.lr=1e-3,3e-3"),
        ("optim.lr", "--sweep optim.lr: expected OPTION=VALUE"),
        ("optim.rl=1,2", "unknown option --optim.rl; did you mean --optim.lr"),
        ("optim.lr=1,-2", "--optim.lr is -2.0; it must be a number from"),
        ("model=vit,vti", "--model vti"),
        ("model-args=depth=1,dpth=2", "dpth"),
        ("seed=0,1 seed=2", "--sweep seed=2: --seed is given twice"),
        ("workdir=a,b", "--sweep workdir=a,b: --workdir is the same for all runs of a sweep"),
        ("optim.lr=1e-3,0.001", "--sweep gives two runs the name optim.lr=0.001"),
        ("augment.flip=yes,no", "--sweep: --augment.flip is yes; it must be true or false"),
        (f"seed={','.join(map(str, range(40)))} epochs={','.join(map(str, range(1, 40)))}", "more than 1,000 comb"),
    ],
)
def test_mistakes_are_found_before_any_run_starts(settings, said, started, tmp_path, capsys):
    assert main(["--model=vit", f"--workdir={tmp_path / 'sweep'}", "--sweep", *settings.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert started.argvs == []
    assert list(tmp_path.iterdir()) == []


def test_values_of_every_kind(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("augment.flip=true,false", "data.image_size=8 8,16 16", "model=cct,cct/tiny")
    assert main(["--sweep", *settings]) == 0
    found = [train.main.parse(argv) for argv in started.argvs]
    assert [c.augment.flip for c in found] == [True] * 4 + [False] * 4
    assert [c.data.image_size for c in found[::2]] == [(8, 8), (16, 16)] * 2
    # A default workdir would have the name of one of the models.
    assert found[1].workdir == "runs/sweep/augment.flip=true,data.image-size=8-8,model=cct-tiny"


def test_a_run_is_a_process_that_gets_the_signals(tmp_path, monkeypatch):
    """This one waits for SIGINT in place of training."""
    program = "import signal, sys; open(sys.argv[1], 'w'); sys.exit(7 if signal.sigwait([2, 15]) == 2 else 8)"
    (tmp_path / "train").mkdir()
    (tmp_path / "train/__init__.py").touch()
    (tmp_path / "train/main.py").write_text(f"import signal; signal.pthread_sigmask(0, [2, 15])\n{program}")
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, status in ((signal.SIGINT, 7), (signal.SIGTERM, 8)):
        ready = tmp_path / str(number)

        def send(number=number, ready=ready):
            while not ready.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        before = signal.getsignal(number)
        thread = threading.Thread(target=send)
        thread.start()
        assert train.sweep.start([str(ready)]) == status
        thread.join()
        assert signal.getsignal(number) is before
