"""Encoders of one run as the start of another: fine-tuning and probing."""

import json
import os
import re
import signal

import jax
import numpy as np
import pytest

from tests.faults.stopping import before_batch
from tests.runs import TINY, flat, recording
from tests.runs import train as run
from train import probe, probing
from train.build import build_objective
from train.run.stored import load_run, read_run_file
from train.trunk import trunk_of

MAE = ("--objective=mae", "--steps=3", "--optim.warmup-epochs=1", "--optim.ema=0.5")
CLASSIFY = ("--steps=90", "--optim.warmup-epochs=1")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mae")
    assert run(workdir, *MAE) == 0
    return workdir


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classifier")
    assert run(workdir, *CLASSIFY) == 0
    return workdir


def encoder_of(workdir):
    return flat(trunk_of(load_run(workdir)).variables)


def started(workdir, *options):
    """The parameters that a run starts with, by path: its learning rate rises from zero, so one step changes none."""
    with pytest.MonkeyPatch.context() as patch:
        states = recording(patch)
        before_batch(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(workdir, *options) == 143
    return flat({"params": states[1].params})


def test_a_classifier_starts_from_a_pretrained_encoder(pretrained, tmp_path, capsys):
    options = (*CLASSIFY, f"--init-from={pretrained}")
    ours, theirs = started(tmp_path, *options), encoder_of(pretrained)
    config, info = read_run_file(tmp_path)
    fresh = flat(jax.jit(build_objective(config, info).init)(jax.random.key(0), info.images)[0])
    assert len(theirs) > 10
    for path, leaf in ours.items():
        expected = theirs[path] if path in theirs else fresh[path.removeprefix("['params']")]  # the head is new
        np.testing.assert_allclose(leaf, expected, atol=1e-7, err_msg=path)
    changed = [path for path in theirs if not np.allclose(theirs[path], fresh[path.removeprefix("['params']")])]
    assert len(changed) > 10

    random = ["mlp_head/bias", "mlp_head/kernel"]
    counts = rf"start from +{pretrained}: {len(theirs)} variables loaded, 0 resampled, 2 left random"
    assert re.search(rf"{counts} \({', '.join(random)}\)\n", capsys.readouterr().out)
    stored = json.loads((tmp_path / "config.json").read_text())["init"]
    assert (stored["source"], stored["resampled"], stored["random"]) == (str(pretrained), [], random)
    assert sorted(stored["loaded"]) == stored["loaded"]
    assert len(stored["loaded"]) == len(theirs)
    assert "transformer/attn_0/to_qkv/kernel" in stored["loaded"]
    assert run(tmp_path, *options) == 0  # the same run, to be continued
    assert "continues after step 1" in capsys.readouterr().out


def test_pretraining_goes_on_from_a_classifier_without_its_head(classifier, tmp_path):
    ours, theirs = started(tmp_path, *MAE, f"--init-from={classifier}"), encoder_of(classifier)
    assert not any("mlp_head" in path for path in theirs)
    found = {path.replace("['encoder']", ""): leaf for path, leaf in ours.items() if "['encoder']" in path}
    assert found.keys() == theirs.keys()
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, theirs[path], atol=1e-7, err_msg=path)


def test_an_encoder_that_does_not_fit_is_named(pretrained, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run(workdir, f"--init-from={pretrained}", base=(*TINY, "dim=24")) == 2
    said = capsys.readouterr().err
    assert f"--init-from {pretrained} does not fit this model" in said
    assert "transformer/attn_0/to_qkv/kernel is (16, 48) there and (24, 48) here" in said
    assert not workdir.exists()


def test_objectives_of_the_command_line(tmp_path, capsys):
    for options, message in (
        (("--objective=mea",), "--objective: unknown objective: 'mea'; did you mean mae"),
        (("--objective=distill",), "--objective distill needs a --teacher"),
        (("--objective=mae", "--teacher=resnet18"), "--objective mae does not use a --teacher"),
        (("--objective=mae", "--objective-args", "ratio=1"), "unknown argument of objective 'mae': 'ratio'"),
        (("--objective=mae", "--objective-args", "masking_ratio=2.0"), "masking_ratio=2.0: expected"),
        (
            ("--objective=classify", "--objective-args", "label_smoothing=0.1"),
            "label_smoothing: is set by another option",
        ),
    ):
        assert run(tmp_path / "run", *options, base=("--model=vit",)) == 2
        assert message in capsys.readouterr().err


def test_an_encoder_tells_no_classes(pretrained, capsys):
    from train.predict import main

    assert main(["--workdir", str(pretrained), "image.png"]) == 2
    assert "contains an encoder without a classifier" in capsys.readouterr().err


def test_a_probe_tells_a_trained_encoder_from_an_untrained_one(classifier, capsys):
    assert probe.main(["--workdir", str(classifier)]) == 0
    assert probe.main(["--workdir", str(classifier), "--untrained"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line]  # the oldest rich leaves empty ones
    assert said[0].startswith(f"encoder of {classifier}: 20 nearest neighbours")
    assert said[1].startswith(f"untrained encoder of {classifier}: 20 nearest neighbours")
    trained, untrained = ([float(share) / 100 for share in re.findall(r"([\d.]+)%", line)] for line in said[:2])
    for kind, low, high in zip(("knn", "linear"), untrained, trained, strict=True):
        assert 0.1 < low < high <= 1, kind


def test_a_probes_features_are_those_of_the_encoder(classifier):
    """The kNN and linear probes are fitted to every image once, in the order of the data."""
    run_there = load_run(classifier)
    dataset = probing.load_dataset(probing.data_of(run_there.config.data, None, run_there.info))
    trunk = trunk_of(run_there)
    (features, labels), _ = probing.splits(trunk, dataset, run_there.config.data, 100)
    assert features.shape == (len(dataset.train), 16)
    np.testing.assert_array_equal(labels, dataset.train.labels)
    pixels = probing.normalize(dataset.train.images[-3:], dataset.mean, dataset.std)
    tokens = jax.jit(trunk.module.apply)(trunk.variables, pixels)
    np.testing.assert_allclose(features[-3:], tokens[:, 0], atol=1e-5)  # pool="cls"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--neighbours=0",), "--neighbours is 0; it must be a whole number from 1"),
        (("--neighbours=1438",), "--neighbours is 1438; expected 1 to 1437"),
        (("--batch-size=0",), "--batch-size is 0; it must be a whole number from 1 to 1,048,576"),
        (("--seed=-1",), "--seed is -1; it must be a whole number"),
        (("--data=cifar",), "unknown data 'cifar'"),
    ],
)
def test_what_a_probe_cannot_do_is_named(classifier, options, message, capsys):
    assert probe.main(["--workdir", str(classifier), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_probe_needs_a_run(tmp_path, capsys):
    assert probe.main(["--workdir", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err
