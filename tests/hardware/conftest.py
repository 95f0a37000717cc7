"""A project folder to probe for."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenrepro import paths


@pytest.fixture
def project(tmp_path: Path) -> paths.Project:
    root = tmp_path / "project"
    root.mkdir()
    (root / paths.MARKER).write_text('title = "A report"\n')
    return paths.load(root)
