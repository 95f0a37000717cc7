"""`zenrepro models`: what an architecture costs, its cache included."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenrepro.cli import main

ROOT = Path(__file__).parents[2]


def test_the_cache_stands_below_the_parts_under_every_reading(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--project", str(ROOT), "models"]) == 0
    shown = capsys.readouterr().out
    seven = shown[shown.index("zen-mode-7b") :]
    assert "cache, kB/token in bf16: mha 393.2, gqa 131.1, mla 36.9" in seven
    assert "6 (keys alone over the latent), 12 (" in seven
    assert "10.7 (keys and values over all that is kept)" in seven
