"""Every module of the package stands somewhere in the import contracts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import zenrepro

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_module_has_its_layer() -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = [layer for c in contracts if c["type"] == "layers" for layer in c["layers"]]
    placed = set(re.findall(r"zenrepro\.(\w+)", " ".join(layers)))
    package = Path(zenrepro.__file__).parent
    modules = {
        p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert modules - placed - {"__init__", "__main__", "setup"} == set()
