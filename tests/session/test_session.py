"""The session: resume, failure, missing frameworks, freshness, drafts, the device's lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from zenrepro import backends, hardware
from zenrepro.errors import InputError
from zenrepro.experiments import drafts
from zenrepro.experiments.point import Point, Result
from zenrepro.records import Origin, Status
from zenrepro.results.store import Store


def test_everything_is_measured_once_and_recorded_whole(bench: Any) -> None:
    run, records = bench.run(seed=7)
    assert bench.measured == [1, 2, 3]
    assert [record.samples for record in records] == [[1.0] * 5, [2.0] * 5, [3.0] * 5]
    record = records[0]
    assert record.machine == run.hardware.machine
    assert record.machine.endswith("-lab")
    assert record.parameters == {
        "backend": "torch", "device": run.hardware.device, "scale": run.scale, "seed": 7,
        "sizes": 3, "implementations": None,
    }  # fmt: skip
    assert record.inputs.sources.keys() >= {"sums_module.py", "sums.ipynb"}
    assert record.seed == 7
    assert record.started is not None
    assert Store(bench.project.results).load() == sorted(records, key=lambda r: r.conditions["n"])


def test_a_second_session_measures_nothing(bench: Any) -> None:
    first = bench.run()[1]
    second = bench.run()[1]
    assert bench.measured == []
    assert second == first


def test_a_larger_session_measures_only_what_is_new(bench: Any) -> None:
    bench.run(sizes=2)
    bench.module.Parameters.selecting = ("sizes", "implementations")
    try:
        bench.run(sizes=4)
    finally:
        del bench.module.Parameters.selecting
    assert bench.measured == [3, 4]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 1}, [1, 2, 3]),
        ({"scale": "smoke"}, []),  # what was measured at a larger scale serves
        ({"scale": "full"}, [1, 2, 3]),
        ({"implementations": "sum"}, []),  # only selects
        ({"device": "cpu"}, []),  # was resolved to it before
    ],
)
def test_parameters_decide_what_is_measured_again(
    bench: Any, change: dict[str, Any], expected: list[int]
) -> None:
    bench.run(device="cpu", scale="small")
    bench.run(**{"device": "cpu", "scale": "small", **change})
    assert bench.measured == expected


def test_editing_the_experiment_makes_its_records_stale_and_a_comment_does_not(bench: Any) -> None:
    bench.run()
    source = bench.project.root / "sums_module.py"
    source.write_text("# told better\nSIZE = 1\n")
    bench.run()
    assert bench.measured == []
    source.write_text("SIZE = 2\n")
    bench.run()
    assert bench.measured == [1, 2, 3]


def test_another_environment_or_device_is_measured_again(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = hardware.probe
    bench.run()

    def upgraded(*given: Any) -> Any:
        seen = probe(*given)
        environment = msgspec.structs.replace(seen.environment, packages={"torch": "99"})
        return msgspec.structs.replace(seen, environment=environment)

    def warmer(*given: Any) -> Any:
        seen = upgraded(*given)
        environment = msgspec.structs.replace(seen.environment, temperature_c=99.0)
        return msgspec.structs.replace(seen, environment=environment)

    monkeypatch.setattr(hardware, "probe", upgraded)
    run = bench.start()
    why = [why for _, why in run.plan(bench.points(run))]
    assert all(reason is not None and "torch" in reason for reason in why)
    bench.run()
    assert bench.measured == [1, 2, 3]
    monkeypatch.setattr(hardware, "probe", warmer)
    bench.run()
    assert bench.measured == []


def test_a_point_that_raises_is_recorded_and_the_others_go_on(bench: Any) -> None:
    def fails() -> list[Result]:
        raise ValueError("the kernel\nreturned nonsense")

    bench.does[2] = fails
    records = bench.run()[1]
    assert bench.measured == [1, 2, 3]
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert records[1].reason == "ValueError: the kernel returned nonsense"
    assert records[1].samples == []
    del bench.does[2]
    assert [record.status for record in bench.run()[1]] == ["ok"] * 3
    assert bench.measured == [2]


def test_a_reason_holds_no_folder_of_this_machine(bench: Any) -> None:
    def fails() -> list[Result]:
        raise FileNotFoundError(f"{Path.home()}/secret and {Path(__file__).parent}/x")

    bench.does[1] = fails
    reason = bench.run()[1][0].reason
    assert str(Path.home()) not in reason
    assert str(Path(__file__).parents[2]) not in reason
    assert "secret" in reason


def test_running_out_of_memory_is_told_apart_from_failing(bench: Any) -> None:
    def grows() -> list[Result]:
        raise MemoryError("out")

    bench.does[1] = grows
    assert bench.run()[1][0].status is Status.OOM


@pytest.mark.parametrize("samples", [[float("nan")], [-1.0], [float("inf")], []])
def test_what_is_no_measurement_becomes_a_failed_record(bench: Any, samples: list[float]) -> None:
    bench.does[1] = lambda: [Result(quantity="time", metric="per_call", unit="s", samples=samples)]
    record = bench.run()[1][0]
    assert record.status is Status.FAILED
    assert record.samples == []


def test_a_result_that_was_not_announced_is_a_failure_and_one_left_out_too(bench: Any) -> None:
    bench.does[1] = lambda: [Result(quantity="power", metric="mean", unit="W", samples=[1.0])]
    bench.does[2] = list
    first, second, _ = bench.run()[1]
    assert (first.status, second.status) == (Status.FAILED, Status.FAILED)
    assert "power/mean" in first.reason
    assert "no result" in second.reason


def test_an_interruption_stops_at_once_and_keeps_what_was_measured(bench: Any) -> None:
    def interrupted() -> list[Result]:
        raise KeyboardInterrupt

    bench.does[2] = interrupted
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert bench.measured == [1, 2]
    assert len(Store(bench.project.results).load()) == 1
    del bench.does[2]
    bench.run()
    assert bench.measured == [2, 3]


def test_every_point_is_stored_before_the_next_begins(bench: Any) -> None:
    stored: list[int] = []

    def counts() -> list[Result]:
        stored.append(len(Store(bench.project.results).load()))
        return [Result(quantity="time", metric="per_call", unit="s", samples=[1.0])]

    bench.does |= {1: counts, 2: counts, 3: counts}
    bench.run()
    assert stored == [0, 1, 2]


def test_a_missing_framework_is_a_reason_and_takes_no_number_away(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(sizes=2)
    monkeypatch.setattr(
        hardware, "absent", lambda backend, device: "torch is gone" if backend == "torch" else None
    )
    records = bench.run(sizes=3)[1]
    assert bench.measured == []
    assert [record.status for record in records] == ["ok", "ok", "unsupported"]
    assert records[2].reason == "torch is gone"
    assert "torch" not in records[2].environment.packages
    monkeypatch.setattr(hardware, "absent", lambda backend, device: None)
    bench.run(sizes=3)
    assert 3 in bench.measured


def test_a_backend_that_cannot_be_opened_is_a_reason_too(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, device: str) -> Any:
        raise backends.Unavailable("libcuda.so.1 is missing")

    monkeypatch.setattr(backends, "open", broken)
    records = bench.run()[1]
    assert {(record.status.value, record.reason) for record in records} == {
        ("unsupported", "libcuda.so.1 is missing")
    }


def test_a_point_that_cannot_run_is_recorded_without_measuring_and_again_once_it_can(
    bench: Any,
) -> None:
    bench.unavailable[2] = (Status.UNSUPPORTED, "wants a GPU")
    records = bench.run()[1]
    assert bench.measured == [1, 3]
    assert (records[1].status, records[1].reason) == (Status.UNSUPPORTED, "wants a GPU")
    bench.run()
    assert bench.measured == []
    bench.unavailable.clear()
    bench.run()
    assert bench.measured == [2]


def test_two_points_of_one_identity_are_refused(bench: Any) -> None:
    run = bench.start()
    with pytest.raises(ValueError, match="two points write time/per_call"):
        run.measure([*bench.points(run), *bench.points(run)])
    assert bench.measured == []


def test_force_measures_what_is_fresh_but_not_what_this_run_measured(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    monkeypatch.setenv("ZENREPRO_FORCE", "1")
    bench.run()
    assert bench.measured == [1, 2, 3]
    monkeypatch.setenv("ZENREPRO_RUN_STARTED", "2000-01-01T00:00:00.000+00:00")
    bench.run()
    assert bench.measured == []


def test_the_device_is_locked_while_measuring_and_what_another_run_measured_is_not_repeated(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from contextlib import contextmanager

    other = bench.start()
    asked: list[bool] = []

    @contextmanager
    def lock(device: Any, wait: bool) -> Any:
        asked.append(wait)
        if not wait:
            raise InputError("in use")
        # The other run ends while this one waits: it measured points 1 and 2.
        for point in list(bench.points(other))[:2]:
            other._measure([point], 0, 1)
        bench.measured.clear()
        yield

    monkeypatch.setattr(hardware, "lock", lock)
    bench.run()
    assert asked == [False, True]
    assert bench.measured == [3]
    assert capsys.readouterr().out.count("waiting") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sizs": 3}, "did you mean 'sizes'"),
        ({"sizes": "3"}, "'sizes' wants a whole number, got '3'"),
        ({"backend": "mlx"}, "'backend' wants one of torch, jax"),
        ({"scale": "huge"}, "'scale' wants one of smoke, small, full"),
        ({"device": "gpu:99"}, "device 'gpu:99'"),
    ],
)
def test_bad_parameters_are_one_line_before_anything_runs(
    bench: Any, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as error:
        bench.start(**given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not bench.project.results.exists()


def test_a_notebooks_globals_may_hold_anything_else(bench: Any) -> None:
    from zenrepro.experiments import session

    given = {"__name__": "__main__", "sizes": 1, "figure": object(), "session": session}
    assert session.start("sums", given, bench.project).parameters.sizes == 1


def test_the_names_that_papermill_injects_are_checked(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zenrepro.experiments import session

    cells = ["backend: str = 'torch'\nsizes: int = 3", "# Parameters\nsizs = 4\n"]
    monkeypatch.setattr(drafts, "history", lambda: cells)
    with pytest.raises(InputError, match="unknown parameter 'sizs'; did you mean 'sizes'"):
        session.start("sums", {"__name__": "__main__", "sizes": 3, "sizs": 4}, bench.project)


def test_an_edited_notebooks_records_are_drafts(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ["backend: str = 'torch'\nsizes: int = 2", "run()  # as committed"]
    monkeypatch.setattr(drafts, "history", lambda: cells)
    bench.run(sizes=2)
    assert len(Store(bench.project.results).load()) == 2
    cells.append("cheat()")
    bench.run(sizes=3)
    assert len(Store(bench.project.results).load()) == 2
    assert len(Store(bench.project.local / "drafts" / "results").load()) == 3
    assert "'cheat()' is not in sums.ipynb" in capsys.readouterr().out


def test_results_that_cannot_be_written_stop_the_session_in_one_line(bench: Any) -> None:
    bench.project.results.parent.mkdir()
    bench.project.results.write_text("a file where the folder should be")
    with pytest.raises(InputError):
        bench.run()


def test_estimates_come_from_earlier_runs(bench: Any) -> None:
    run = bench.start()
    assert [run.estimate(point) for point in bench.points(run)] == [None] * 3
    run.measure(bench.points(run))
    run = bench.start(sizes=4)
    assert all(run.estimate(point) is not None for point in bench.points(run))
    folder = bench.project.local / "durations"
    next(folder.rglob("*.json")).write_text("{ torn")
    assert bench.start().estimate(next(bench.points(run))) is None


def test_the_table_shows_medians_and_reasons(bench: Any) -> None:
    bench.does[2] = lambda: (_ for _ in ()).throw(RuntimeError("<no> luck"))
    run = bench.run()[0]
    assert "failed: RuntimeError: <no> luck" in repr(run.table())
    assert "&lt;no&gt; luck" in run.table()._repr_html_()
    assert "3" in repr(run.table()).splitlines()[3]


def test_commit_and_dirty_flag_come_from_git_or_from_the_environment(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    root: Path = bench.project.root
    monkeypatch.delenv("ZENREPRO_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    record = bench.run()[1][0]
    assert (record.commit, record.dirty) == (None, None)
    monkeypatch.setenv("ZENREPRO_COMMIT", "abc")
    assert bench.start()._commit == ("abc", None)
    monkeypatch.delenv("ZENREPRO_COMMIT")
    names = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    (root / ".gitignore").write_text(".zenrepro\n*.lock\n")
    for command in (["init", "-q"], ["add", "."], [*names, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    commit, dirty = bench.start()._commit
    assert len(commit) == 40
    assert dirty is False
    bench.run(seed=2)  # new results make nothing dirty
    assert bench.start()._commit == (commit, False)
    (root / "sums_module.py").write_text("SIZE = 3\n")
    assert bench.start()._commit == (commit, True)


def test_the_sessions_own_names_are_what_an_experiment_imports() -> None:
    from zenrepro.experiments import session

    assert session.Point is Point
    assert Origin.OURS in Origin
