"""Points of one group: sampled in turn, stored one by one, none taken down by another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zenrepro import backends, measure
from zenrepro.cli.watch import Watch
from zenrepro.experiments import events, freshness
from zenrepro.experiments import session as session_module
from zenrepro.experiments.point import Point, Prepared, Result, together
from zenrepro.records import Environment, Origin, Status
from zenrepro.results.store import Store


def point(group: str | None, prepared: bool = True) -> Point:
    call: Any = dict if prepared else list
    return Point(
        implementation="torch.x", conditions={}, produces=[], origin=Origin.OURS, group=group,
        prepare=call if prepared else None, measure=None if prepared else call,
    )  # fmt: skip


def test_neighbours_of_one_group_are_together() -> None:
    a1, a2, b, plain, none, a3 = (
        point("a"), point("a"), point("b"), point("a", prepared=False), point(None), point("a"),
    )  # fmt: skip
    assert list(together([a1, a2, b, plain, none, a3])) == [[a1, a2], [b], [plain], [none], [a3]]
    assert list(together([a1, a2, a3], alone={id(a2)})) == [[a1], [a2], [a3]]
    assert list(together([])) == []


@pytest.mark.parametrize("given", [{}, {"measure": list, "prepare": list}])
def test_a_point_has_one_kind_of_work(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"torch\.x: wants either `measure` or `prepare`"):
        Point(
            implementation="torch.x", conditions={}, produces=[], origin=Origin.OURS, **given
        )  # fmt: skip


def test_a_group_is_prepared_then_sampled_in_turn_and_recorded(bench: Any) -> None:
    bench.groups = {1: "g", 2: "g", 3: "h"}
    records = bench.run()[1]
    assert bench.rounds == [["1", "2"], ["3"]]
    assert bench.prepared == bench.measured == [1, 2, 3]
    assert [record.samples for record in records] == [[1.0] * 5, [2.0] * 5, [3.0] * 5]
    assert records[0].method == "in turn with 1"
    assert Store(bench.project.results).load() == sorted(records, key=lambda r: r.conditions["n"])
    bench.run()
    assert bench.rounds == []
    assert bench.prepared == []


def test_only_what_is_missing_of_a_group_is_measured(bench: Any) -> None:
    bench.groups = {1: "g", 2: "g", 3: "g", 4: "g"}
    bench.run(sizes=2)
    bench.module.Parameters.selecting = ("sizes", "implementations")
    try:
        bench.run(sizes=4)
    finally:
        del bench.module.Parameters.selecting
    assert bench.rounds == [["3", "4"]]


def test_a_failed_gate_or_an_exception_leaves_the_others_in_turn(bench: Any) -> None:
    bench.groups = dict.fromkeys(range(1, 6), "g")

    def wrong() -> list[Result]:
        return [
            Result(
                quantity="time", metric="per_call", unit="s", status=Status.FAILED, reason="wrong"
            )
        ]

    def breaks() -> Prepared:
        raise ValueError("the kernel broke")

    def grows() -> Prepared:
        raise MemoryError("no room")

    bench.does = {1: wrong, 2: breaks, 4: grows}
    records = bench.run(sizes=5)[1]
    assert bench.rounds == [["3", "5"]]
    assert [record.status for record in records] == ["failed", "failed", "ok", "oom", "ok"]
    assert [record.reason for record in records[:2]] == ["wrong", "ValueError: the kernel broke"]


def test_what_fails_in_the_rounds_has_its_reason_and_the_others_their_samples(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampled(backend: Any, calls: Any, *, scale: str) -> dict[str, measure.Sampled]:
        out = bench.sample_together(backend, calls, scale=scale)
        failed = out["torch.sum (2)"]
        failed.seconds, failed.status = [], Status.FAILED
        failed.reason = f"RuntimeError: cannot read {Path.home()}/x"
        return out

    monkeypatch.setattr(measure, "sample_together", sampled)
    bench.groups = {1: "g", 2: "g", 3: "g"}
    records = bench.run()[1]
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert records[1].reason == "RuntimeError: cannot read ~/x"


def test_a_finish_that_raises_is_its_own_failure(bench: Any) -> None:
    def finish(sampled: measure.Sampled) -> list[Result]:
        raise ZeroDivisionError("in the arithmetic")

    bench.groups = {1: "g", 2: "g", 3: "g"}
    bench.does[1] = lambda: Prepared(lambda: 1, finish)
    records = bench.run()[1]
    assert [record.status for record in records] == ["failed", "ok", "ok"]
    assert records[0].reason == "ZeroDivisionError: in the arithmetic"


def test_an_interruption_in_the_rounds_keeps_the_groups_before(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(backend: Any, calls: Any, *, scale: str) -> Any:
        if len(calls) > 1:
            raise KeyboardInterrupt
        return bench.sample_together(backend, calls, scale=scale)

    monkeypatch.setattr(measure, "sample_together", interrupted)
    bench.groups = {1: "g", 2: "h", 3: "h"}
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert [r.conditions["n"] for r in Store(bench.project.results).load()] == [1]


def told(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    file = bench.project.root / "events"
    file.write_bytes(b"")
    monkeypatch.setenv(events.VARIABLE, str(file))
    bench.run()
    decoder = msgspec.json.Decoder(events.Event)
    return [decoder.decode(line) for line in file.read_bytes().splitlines()]


def test_progress_counts_every_point_once(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.groups = {1: "g", 2: "g", 3: "g"}
    seen = told(bench, monkeypatch)
    assert [e.index for e in seen if isinstance(e, events.Measured)] == [0, 1, 2]
    begun = [e for e in seen if isinstance(e, events.Measuring)]
    assert [(e.index, e.rounds) for e in begun] == [(0, 0), (1, 0), (2, 0), (0, 3)]
    assert "in turn" in begun[-1].name
    # Should it die while it prepares, one point failed; in the rounds, nobody knows which.
    assert [len(e.if_it_dies) for e in begun] == [1, 1, 1, 3]
    assert all(freshness.DIED_TOGETHER in r.flags for r in begun[-1].if_it_dies)
    assert not any(r.flags for e in begun[:3] for r in e.if_it_dies)
    durations = next((bench.project.local / "durations").rglob("*.json"))
    assert len(json.loads(durations.read_text())) == 3


def test_the_watch_knows_what_was_running(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.groups = {1: "g", 2: "g", 3: "g"}
    watch = Watch(bench.project.root / "other")
    for event in told(bench, monkeypatch):
        watch._take(event)
        if isinstance(event, events.Measuring) and event.rounds:
            assert watch.measuring is not None
            assert len(watch.measuring.if_it_dies) == 3
    assert watch.measured == 3
    assert watch.measuring is None


def test_after_a_death_in_the_rounds_each_is_sampled_by_itself(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENREPRO_RUN_STARTED", "2000-01-01T00:00:00.000+00:00")
    bench.groups = {1: "g", 2: "g", 3: "g"}
    begun = [e for e in told(bench, monkeypatch) if isinstance(e, events.Measuring)]
    monkeypatch.delenv(events.VARIABLE)
    dead = [
        msgspec.structs.replace(r, reason="the process died while measuring them in turn")
        for r in begun[-1].if_it_dies
    ]
    Store(bench.project.results).put(dead)
    records = bench.run()[1]  # the same run, its kernel started anew
    assert bench.rounds == [["1"], ["2"], ["3"]]
    assert [record.status for record in records] == ["ok"] * 3
    # One that dies by itself is left as it is in this run, and tried again in the next.
    Store(bench.project.results).put(
        [msgspec.structs.replace(r, flags=[]) for r in dead if r.conditions["n"] == 2]
    )
    bench.run()
    assert bench.rounds == []
    monkeypatch.delenv("ZENREPRO_RUN_STARTED")
    bench.run()
    assert bench.rounds == [["2"]]


def test_the_state_while_sampling_goes_into_each_record(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampled(backend: Any, calls: Any, *, scale: str) -> Any:
        out = bench.sample_together(backend, calls, scale=scale)
        for one in out.values():
            one.state = Environment(temperature_c=61.0)
        return out

    monkeypatch.setattr(measure, "sample_together", sampled)
    bench.groups = {1: "g", 2: "g", 3: "g"}
    assert {r.environment.temperature_c for r in bench.run()[1]} == {61.0}


def breaks_the_device(bench: Any, monkeypatch: pytest.MonkeyPatch, culprit: int) -> list[int]:
    """Sampling ``culprit`` loses the device; a new process (``renew``) has it again."""
    gone: list[int] = []

    def sampled(backend: Any, calls: Any, *, scale: str) -> Any:
        if str(culprit) in [str(call()) for call in calls.values()]:
            bench.rounds.append([str(call()) for call in calls.values()])
            gone.append(1)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return bench.sample_together(backend, calls, scale=scale)

    def leave(code: int) -> None:
        gone.clear()
        raise SystemExit(code)

    monkeypatch.setattr(measure, "sample_together", sampled)
    monkeypatch.setattr(session_module, "_exit", leave)
    monkeypatch.setattr(backends.open("torch", "cpu"), "lost", lambda: bool(gone))
    return gone


def test_a_lost_device_ends_the_process_and_the_run_goes_on_without_the_culprit(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_the_device(bench, monkeypatch, culprit=2)
    monkeypatch.setenv("ZENREPRO_RUN_STARTED", "2000-01-01T00:00:00.000+00:00")
    monkeypatch.setenv(events.VARIABLE, str(bench.project.root / "events"))
    bench.groups = {1: "g", 2: "g", 3: "g"}
    for rounds in ([["1", "2", "3"]], [["1"], ["2"]]):
        with pytest.raises(SystemExit):
            bench.run()
        assert bench.rounds == rounds
    records = bench.run()[1]  # as a run does it: a new process each time
    assert bench.rounds == [["3"]]
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert records[1].reason == "the device was lost while it was sampled"


def test_by_hand_a_lost_device_is_an_error_that_says_what_to_do(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_the_device(bench, monkeypatch, culprit=2)
    bench.groups = {1: "g", 2: "h", 3: "h"}
    with pytest.raises(RuntimeError, match="restart the kernel and run again"):
        bench.run()
    found = {r.conditions["n"]: r.status for r in Store(bench.project.results).load()}
    assert found == {1: "ok", 2: "failed", 3: "failed"}


def test_a_device_lost_in_a_gate_is_that_points_failure(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[int] = []

    def faults() -> Prepared:
        gone.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def leave(code: int) -> None:
        gone.clear()
        raise SystemExit(code)

    monkeypatch.setattr(session_module, "_exit", leave)
    monkeypatch.setattr(backends.open("torch", "cpu"), "lost", lambda: bool(gone))
    file = bench.project.root / "events"
    monkeypatch.setenv(events.VARIABLE, str(file))
    monkeypatch.setenv("ZENREPRO_RUN_STARTED", "2000-01-01T00:00:00.000+00:00")
    bench.groups = {1: "g", 2: "g", 3: "g"}
    bench.does[2] = faults
    with pytest.raises(SystemExit):
        bench.run()
    last = msgspec.json.Decoder(events.Event).decode(file.read_bytes().splitlines()[-1])
    assert isinstance(last, events.Measuring)  # the run sees that it died, and in which point
    assert "illegal memory access" in str(last.if_it_dies[0].reason)
    del bench.does[2]
    records = bench.run()[1]
    assert bench.rounds == [["1", "3"]]
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert "illegal memory access" in str(records[1].reason)


def test_what_fails_as_a_whole_without_losing_the_device_is_recorded(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampled(backend: Any, calls: Any, *, scale: str) -> Any:
        if len(calls) > 1:
            raise MemoryError("no room for the buffers that empty the cache")
        return bench.sample_together(backend, calls, scale=scale)

    monkeypatch.setattr(measure, "sample_together", sampled)
    bench.groups = {1: "g", 2: "g", 3: "h"}
    assert [record.status for record in bench.run()[1]] == ["oom", "oom", "ok"]
