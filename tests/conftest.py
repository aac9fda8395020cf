"""Settings of all tests: quick compilation, eight CPU devices, strict shapes and dtypes."""

import gc
import os
import signal
import tempfile

from tests import compiler

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # nobody reads the source lines of operations
# With eight devices, tests can show that sharding does not change results.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {compiler.flags(devices=8)}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # runs would use that of the user
    programs = tempfile.TemporaryDirectory(prefix="vit-jax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name

import jax
import jaxtyping
import pytest
from flax.core.scope import Scope

from tests import parameters

jaxtyping.install_import_hook(["vit_jax", "train"], "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
Scope.param = parameters.param
# Shells ignore SIGINT in background jobs, which tests and the processes that they start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Traces are many long-lived objects: scanning them for garbage takes an eighth of the time.
gc.set_threshold(200_000, 50, 100)


def pytest_addoption(parser):
    parser.addoption("--exhaustive", action="store_true", help="run all members of a family, not one alone")
    parser.addoption("--first", action="store_true", help="of the rows of a model run the first alone")


def pytest_collection_modifyitems(config, items):
    left_out = {item for item in items if not _is_chosen(config, item)}
    if left_out:
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]


def _is_chosen(config, item) -> bool:
    if "exhaustive" in item.keywords and not config.getoption("--exhaustive"):
        return False
    params = item.callspec.params if hasattr(item, "callspec") else {}
    case = params.get("case", params.get("row"))  # test_parity.py has rows as a fixture
    return not config.getoption("--first") or not getattr(case, "note", "")


@pytest.fixture
def unchecked_types():
    """Disable the checks of jaxtyping annotations, as outside the tests, to test what happens with wrong types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
