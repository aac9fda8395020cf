"""The trainer and its commands, such as `python -m train.main` and `python -m train.predict`.

`train.load_run(WORKDIR)` loads a trained run into Python.
"""

import importlib

import absl.logging

# Grain and Orbax log through absl, partly on import; users of the trainer can do nothing about these messages.
absl.logging.set_verbosity(absl.logging.ERROR)


def __getattr__(name: str):
    if name == "load_run":  # `from train import load_run`, which imports JAX
        return importlib.import_module("train.run.stored").load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
