"""A run starts quickly: it imports no large package that it does not need."""

import subprocess
import sys

CODE = """
import sys
from train.config import Data
from train.data.sources import open_digits
import train.loop
open_digits("", Data())
print([name for name in ("torch", "sklearn", "scipy", "pandas", "matplotlib", "tensorflow") if name in sys.modules])
"""


def test_no_large_package_is_imported_before_it_is_needed():
    assert subprocess.check_output([sys.executable, "-c", CODE], text=True) == "[]\n"
