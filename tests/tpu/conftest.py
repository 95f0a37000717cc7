"""How tests reach the compiler for TPUs where there is no TPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def compile_ahead() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Compiles a list of requests for a v5e: see ahead.py. Looks for libtpu in the folder that
    $ZENREPRO_LIBTPU names, then where the set-up leaves it, beside the environment's packages,
    which keeps it off the path of everything else, then on the path."""
    pytest.importorskip("jax", reason="jax is not installed")
    beside = Path(sys.prefix) / "tpu-compiler"
    folder = os.environ.get("ZENREPRO_LIBTPU") or (str(beside) if beside.is_dir() else None)
    if folder is None and importlib.util.find_spec("libtpu") is None:
        pytest.skip("the compiler for TPUs is not installed: libtpu, or $ZENREPRO_LIBTPU naming it")
    path = os.pathsep.join([str(ROOT), *([folder] if folder else [])])

    def run(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("ahead.py"))],
            input=json.dumps(requests), capture_output=True, text=True, timeout=500,
            env={**os.environ, "PYTHONPATH": path}, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return answers

    return run
