"""Prints each `name>=version` of pyproject.toml as `name==version`: pip constraints for the oldest set."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in sum(project["optional-dependencies"].values(), project["dependencies"]):
    if ">=" in requirement:
        print(re.sub(r"(\[.*\])?>=", "==", requirement))
