"""Rows of counters: one a stream, one of its own for every captured launch, never one twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

torch = pytest.importorskip("torch")

from zenrepro.ops.attention import tile_counters  # noqa: E402


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with (
        mock.patch.object(tile_counters, "_slots", {}),
        mock.patch.object(tile_counters, "_ROWS", 64),
        mock.patch("torch.cuda.synchronize"),
        mock.patch("torch.cuda.is_current_stream_capturing", return_value=False),
    ):
        yield


def taken(stream: int, capturing: bool = False) -> int:
    """The address of the row; "device" None is the CPU."""
    with mock.patch("torch.cuda.is_current_stream_capturing", return_value=capturing):
        row = tile_counters.take(None, stream)  # type: ignore[arg-type]
    assert row.shape == (tile_counters.MOST,)
    assert row.dtype == torch.int32
    assert not row.any()
    return int(row.data_ptr())


def test_a_stream_keeps_its_row_and_a_captured_launch_gets_its_own() -> None:
    first = taken(1)
    assert taken(1) == first
    captured = [taken(1, capturing=True) for _ in range(3)]
    assert len({first, taken(2), *captured}) == 5
    assert taken(1) == first


def test_without_rows_every_launch_clears_counters_of_its_own() -> None:
    taken(0, capturing=True)  # before there are any: nothing may be kept
    assert not tile_counters._slots
    rows = {taken(stream) for stream in range(64)}
    kept = tile_counters._slots[None].rows  # type: ignore[index]
    kept.fill_(7)
    assert len(rows) == 64
    taken(64)
    taken(64, capturing=True)
    with pytest.raises(AssertionError):
        taken(0)  # a kept row is not cleared: a launch leaves it at zero


def test_threads_that_launch_at_once_get_different_rows() -> None:
    """Where reading how many rows are used takes long, so that the others read it meanwhile."""
    hidden: dict[int, int] = {}

    def used(slots: tile_counters._Slots) -> int:
        value = hidden[id(slots)]
        time.sleep(0.02)
        return value

    def use(slots: tile_counters._Slots, value: int) -> None:
        hidden[id(slots)] = value

    with mock.patch.object(tile_counters._Slots, "used", property(used, use), create=True):
        taken(0)
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda s: tile_counters.take(None, s).data_ptr(), range(1, 5)))
    assert len(set(rows)) == 4
