"""The command line imports only what a command needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "jax", "mlx", "triton", "matplotlib", "papermill", "nbconvert", "nbformat")


def imported(code: str) -> set[str]:
    shown = f"{code}\nimport sys\nprint(','.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split(","))


@pytest.mark.parametrize(
    "code",
    [
        "import zenrepro",
        "from zenrepro.cli import _parser; _parser()",
        "import zenrepro.experiments.session",
        "import zenrepro.experiments.attention, zenrepro.experiments.hardware",
        "import zenrepro.cli.running, zenrepro.cli.stamps, zenrepro.cli.manifest",
        "import zenrepro.audit, zenrepro.results.store, zenrepro.report",
    ],
)
def test_no_framework_is_imported_unasked(code: str) -> None:
    assert imported(code).isdisjoint(HEAVY)


def test_help_needs_next_to_nothing() -> None:
    loaded = imported("from zenrepro.cli import _parser; _parser()")
    assert loaded.isdisjoint({"numpy", "yaml", "msgspec", "rich", "jinja2", *HEAVY})
