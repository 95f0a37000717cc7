"""`zenrepro run` with real papermill: resume, failure, death, interruption, two runs, drafts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def wait_for(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        assert process is None or process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        time.sleep(0.05)


def test_a_run_measures_once_records_and_leaves_the_executed_notebook(trial: Any) -> None:
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert status == 0, err
    assert trial.measured() == ["torch 1", "torch 2", "torch 3"]
    assert "3 of 3 points to measure" in err
    assert "[3/3] torch.sum n=3 op=copy" in err
    assert sorted(trial.records()) == ["torch.sum 1", "torch.sum 2", "torch.sum 3"]
    assert "3 records" in trial.executed.read_text()
    leftovers = [path.name for path in trial.executed.parent.iterdir() if "running" in path.name]
    assert leftovers == []

    # Nothing to do: the notebook is not even executed.
    before = trial.executed.stat().st_mtime_ns
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert (status, trial.measured()) == (0, [])
    assert "up to date" in err
    assert trial.executed.stat().st_mtime_ns == before

    # More points: only the new one, although the notebook runs again.
    status, _, err = trial.run("run", "sums", "--backend", "torch", "-p", "sizes=4", "--dry-run")
    assert (status, trial.measured()) == (0, [])
    experiment = trial.root / "sums_experiment.py"
    experiment.write_text(experiment.read_text().replace("[float(n)] * 5", "[float(n)] * 6"))
    status, out, err = trial.run("run", "sums", "--backend", "torch", "--dry-run")
    assert (status, trial.measured()) == (0, [])
    assert "sums torch: 3 of 3 points" in out
    assert "source sums_experiment.py changed" in out
    assert out.splitlines()[-1].startswith("total: about ")


def test_a_source_that_is_edited_while_it_runs_is_not_taken_for_what_ran(trial: Any) -> None:
    edit = "open('sums_experiment.py', 'a').write('Y = 1')"
    shown = "print(len(records), 'records')"
    text = trial.notebook.read_text()
    assert shown in text
    trial.notebook.write_text(text.replace(shown, f"{edit}; {shown}"))
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert (status, len(trial.measured())) == (0, 3), err
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert (status, len(trial.measured())) == (0, 3), err
    assert "up to date" not in err


def test_a_point_that_fails_is_a_record_and_exit_status_one(trial: Any) -> None:
    status, _, err = trial.run("run", "sums", "--backend", "torch", RAISE_AT="2")
    assert status == 1
    assert trial.measured() == ["torch 1", "torch 2", "torch 3"]
    assert trial.records()["torch.sum 2"].reason == "ValueError: no such luck"
    assert "failed: ValueError: no such luck" in err
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert (status, trial.measured()) == (0, ["torch 2"])


def test_a_point_that_kills_its_process_is_a_record_and_the_others_are_measured(trial: Any) -> None:
    status, _, err = trial.run("run", "sums", "--backend", "torch", DIE_AT="2")
    assert status == 1, err
    assert trial.measured() == ["torch 1", "torch 2", "torch 3"]
    record = trial.records()["torch.sum 2"]
    assert (record.status, record.samples) == ("failed", [])
    assert record.reason == "the process died while measuring torch.sum n=2 op=copy"
    assert trial.records()["torch.sum 3"].status == "ok"


def test_a_point_that_loses_the_device_is_its_own_failure_and_the_others_are_measured(
    trial: Any,
) -> None:
    status, _, err = trial.run("run", "sums", "--backend", "torch", LOSE_AT="2")
    assert status == 1
    assert trial.measured() == ["torch 1", "torch 2", "torch 3"]
    assert "the process died; going on without it" in err
    records = [trial.records()[f"torch.sum {n}"] for n in (1, 2, 3)]
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert records[1].reason == "RuntimeError: an illegal memory access was encountered"


def test_killed_at_any_moment_a_rerun_measures_only_what_is_missing(trial: Any) -> None:
    process = trial.start("run", "sums", "--backend", "torch", SLEEP_AT="2")
    wait_for(lambda: "torch.sum 1" in trial.records(), process)
    wait_for(lambda: "torch 2" in (trial.root / "measured.log").read_text(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert trial.measured() == ["torch 1", "torch 2"]
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert (status, trial.measured()) == (0, ["torch 2", "torch 3"]), err
    assert not [p for p in trial.executed.parent.iterdir() if "running" in p.name]


def test_an_interrupted_run_stops_at_once_in_one_line_and_keeps_what_it_has(trial: Any) -> None:
    process = trial.start("run", "sums", "--backend", "torch", SLEEP_AT="2")
    wait_for(lambda: "torch.sum 1" in trial.records(), process)
    wait_for(lambda: "torch 2" in (trial.root / "measured.log").read_text(), process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("zenrepro: interrupted")
    assert "Traceback" not in err
    assert list(trial.records()) == ["torch.sum 1"]
    assert not trial.executed.exists()


def test_a_failing_cell_leaves_its_notebook_and_a_record_and_the_other_backend_runs(
    trial: Any,
) -> None:
    from_start = trial.notebook.read_text()
    trial.notebook.write_text(
        from_start.replace("print(len(records), 'records')",
                           "if run.parameters.backend == 'torch': raise KeyError('no figure')")
    )  # fmt: skip
    status, _, err = trial.run("run", "sums")
    assert status == 1
    assert "sums torch: FAILED, cell 6: KeyError: 'no figure'" in err
    assert "Traceback" not in err
    assert "KeyError" in trial.executed.read_text()
    records = trial.records()
    assert records["torch.notebook"].status == "failed"
    assert records["torch.notebook"].reason == "cell 6: KeyError: 'no figure'"
    assert records["jax.sum 3"].status == "ok"
    assert trial.executed.with_name("sums-jax.ipynb").exists()

    trial.notebook.write_text(from_start)
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert status == 0, err
    assert trial.records()["torch.notebook"].status == "ok"

    # One that refuses its input leaves what was there, and says why in one line.
    before = trial.executed.read_text()
    refusal = "from zenrepro.errors import InputError\\nraise InputError('no such shape')"
    trial.notebook.write_text(from_start.replace("print(len(records), 'records')", refusal))
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert (status, err.splitlines()[-1]) == (2, "zenrepro: no such shape")
    assert trial.executed.read_text() == before


def test_two_runs_at_once_share_the_work_and_corrupt_nothing(trial: Any) -> None:
    first = trial.start("run", "sums", "--backend", "torch", SLEEP_AT="1", SLEEP="6")
    wait_for(lambda: (trial.root / "measured.log").exists(), first)
    second = trial.start("run", "sums", "--backend", "torch", SLEEP_AT="1", SLEEP="6")
    assert first.wait(timeout=120) == 0
    assert second.wait(timeout=120) == 0
    assert trial.measured() == ["torch 1", "torch 2", "torch 3"]
    said = second.stderr.read().splitlines()
    assert len([line for line in said if "waiting" in line]) == 1
    assert len(trial.records()) == 3
    for process in (first, second):
        process.communicate()


def test_plain_papermill_measures_the_same_and_refuses_unknown_parameters(
    trial: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out.ipynb"

    def papermill(*parameters: str) -> subprocess.CompletedProcess[str]:
        kernel = ["-k", "python3", "--cwd", str(trial.root / "notebooks"), "--no-progress-bar"]
        return subprocess.run(
            [sys.executable, "-m", "papermill", str(trial.notebook), str(output), *kernel,
             *parameters],
            env=trial.environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    done = papermill("-p", "sizs", "4")
    assert done.returncode != 0
    assert "unknown parameter 'sizs'; did you mean 'sizes'?" in done.stderr
    assert trial.measured() == []
    assert not trial.results.exists()
    done = papermill("-p", "sizes", "1")
    assert done.returncode == 0, done.stderr
    assert trial.measured() == ["torch 1"]
    assert list(trial.records()) == ["torch.sum 1"]
    text = "".join(
        "".join(output.get("text", ""))
        for cell in json.loads(output.read_text())["cells"]
        for output in cell.get("outputs", [])
    )
    assert "[1/1] torch.sum n=1 op=copy" in text


def test_an_edited_notebook_runs_into_the_drafts(trial: Any) -> None:
    names = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "notebooks"], [*names, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(trial.root), *command], check=True)
    text = trial.notebook.read_text()
    trial.notebook.write_text(text.replace("run.table()", "run.table()  # told", 1))
    trial.notebook.write_text(text.replace("'records'", "'better records'"))
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert status == 0, err
    # The edited cell comes after measuring, so what was measured is the project's.
    assert len(trial.records()) == 3
    trial.notebook.write_text(text.replace("run = session", "x = 1\\nrun = session"))
    status, _, err = trial.run("run", "sums", "--backend", "jax")
    assert status == 0, err
    assert "edited notebook, so its records are drafts" in err
    assert len(trial.records()) == 3
    assert (trial.root / ".zenrepro/drafts/results/cpu-test-lab/sums.json").exists()
    assert (trial.root / ".zenrepro/drafts/notebooks/cpu-test-lab/sums-jax.ipynb").exists()
    assert not trial.executed.with_name("sums-jax.ipynb").exists()


def test_a_kernel_that_dies_outside_points_fails_once(trial: Any) -> None:
    died = "import os\\nos._exit(3)"
    trial.notebook.write_text(trial.notebook.read_text().replace("run.table()", died, 1))
    status, _, err = trial.run("run", "sums", "--backend", "torch")
    assert status == 1
    assert "FAILED, the kernel's process died" in err
    assert "KernelDied" in trial.executed.read_text()
    assert trial.measured() == ["torch 1", "torch 2", "torch 3"]


def test_a_missing_framework_is_a_reason_in_the_records_and_no_error(trial: Any) -> None:
    status, _, err = trial.run("run", "sums", "--backend", "jax", HIDE="jax")
    assert (status, trial.measured()) == (0, []), err
    assert "jax is not here: jax is away" in err
    records = trial.records()
    assert {record.status.value for record in records.values()} == {"unsupported"}
    assert {record.reason for record in records.values()} == {"jax is away"}
    status, _, err = trial.run("run", "sums", "--backend", "jax", HIDE="jax")
    assert (status, "up to date" in err) == (0, True)
    status, _, err = trial.run("run", "sums", "--backend", "jax")
    assert (status, len(trial.measured())) == (0, 3)
