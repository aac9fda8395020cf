"""The table of docs/faults.md names tests that exist, and all tests of this folder."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_the_table_names_tests_that_exist():
    table = (TESTS.parent / "docs/faults.md").read_text().partition("\n## Faults\n")[2]
    rows = [row for row in table.splitlines() if row.startswith("| ") and not row.startswith("| fault |")]
    rows = [row.split("|")[1:-1] for row in rows]
    assert len(rows) > 15
    names = [re.findall(r"`([\w/]+)\.py::(test_\w+)`", row[-1]) for row in rows]
    for row, found in zip(rows, names, strict=True):
        assert found, row
        for file, test in found:
            assert f"\ndef {test}(" in (TESTS / f"{file}.py").read_text(), test
    listed = {name for found in names for name in found}
    for path in (TESTS / "faults").glob("test_*.py"):
        if path != Path(__file__):
            for test in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE):
                assert (f"faults/{path.stem}", test) in listed
