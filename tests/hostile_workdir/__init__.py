"""Workdirs with odd names, damage or malicious content: nothing is lost, hangs, or is written outside."""

from etils import epath

from train.run import integrity

QUICK = ("--steps=4", "--eval-epochs=0.05")


def one_line(capsys, beginning):
    """Return what was printed to stderr: one line with this beginning."""
    err = capsys.readouterr().err
    assert err.startswith(beginning), err
    assert err.count("\n") == 1, err
    return err


def reseal(folder):
    """Recompute the checksums for the present content, as an attacker can."""
    (folder / integrity.FILE).unlink()
    integrity.seal(epath.Path(folder), int(folder.name))
