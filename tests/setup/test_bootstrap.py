"""The bootstrap with a fake venv and pip: what it runs, records, and finds again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from zenrepro.setup import bootstrap

REPOSITORY = Path(__file__).resolve().parents[2]


class FakeCommands:
    """Stands for python -m venv, pip and the rest; can fail or be interrupted at a call."""

    def __init__(self, interrupt_at: int = 0, failing: tuple[str, ...] = ()) -> None:
        self.calls: list[list[str]] = []
        self.interrupt_at, self.failing = interrupt_at, failing

    def __call__(self, command: list[str], log: Path, keep_open: int) -> int:
        self.calls.append(command)
        os.fstat(keep_open)  # the lock's descriptor must be open while anything runs
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir()
            python.write_text("a fake Python")
            (python.parent.parent / "pyvenv.cfg").write_text("home = nowhere\n")
        for name in self.failing:
            if any(argument.startswith(name) for argument in command):
                log.write_text(f"Collecting {name}\nERROR: No matching distribution for {name}\n")
                return 1
        return 0

    def installed(self) -> list[str]:
        """The last argument of each pip install: tells the steps apart."""
        return [command[-1] for command in self.calls if "install" in command]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "zenrepro/setup", tmp_path / "zenrepro/setup")
    monkeypatch.setenv("ZENREPRO_PLATFORM", "linux-x86_64-cpu")
    return tmp_path


def make(project: Path, run: FakeCommands, purpose: str = "report", force: bool = False) -> dict:
    with bootstrap.only_one(project) as descriptor:
        return bootstrap.Setup(project, purpose, run).make(descriptor, force)


def is_ready(project: Path, purpose: str = "report") -> bool:
    setup = bootstrap.Setup(project, purpose)
    return setup.is_ready(setup.state())


def test_a_first_set_up_makes_the_venv_and_records_every_step(project: Path) -> None:
    run = FakeCommands()
    state = make(project, run)
    assert "venv" in run.calls[0]
    assert list(state["steps"]) == list(bootstrap.EVERY_RUN)
    assert all(step == {"ok": True} for step in state["steps"].values())
    assert is_ready(project)
    pips = [command for command in run.calls if "install" in command]
    assert all("-c" in command or "-e" in command for command in pips), "every step is locked"


def test_ready_needs_no_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(project, FakeCommands())

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    assert bootstrap.set_up("report", force=False, project=project) == 0


TOTAL_CALLS = 11  # venv, eight pip steps, the system's packages


def test_total_calls_is_right(project: Path) -> None:
    run = FakeCommands()
    make(project, run)
    assert len(run.calls) == TOTAL_CALLS


@pytest.mark.parametrize("at", range(1, TOTAL_CALLS + 1))
def test_interrupted_anywhere_then_made_again(project: Path, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(project, FakeCommands(interrupt_at=at))
    assert not is_ready(project)
    again = FakeCommands()
    make(project, again)
    assert is_ready(project)
    assert not (project / ".venv" / bootstrap.UNFINISHED).exists()
    assert len(again.installed()) >= 8 or at == TOTAL_CALLS
    made_again = any("venv" in command for command in again.calls)
    assert made_again == (at == 1), "only a half-made venv is made again"
    looked = any(str(command[-1]).endswith("halfinstalled.py") for command in again.calls)
    assert looked == (2 <= at < TOTAL_CALLS), "packages are looked at after an interrupted pip"


def test_half_made_venv_keeps_nothing(project: Path) -> None:
    venv = project / ".venv"
    venv.mkdir()
    (venv / bootstrap.UNFINISHED).write_text("venv")
    (venv / "half").write_text("left over")
    make(project, FakeCommands())
    assert not (venv / "half").exists()


def test_a_folder_that_is_no_venv_is_left_alone(project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(bootstrap.SetupError, match="not a virtual environment: move it away"):
        make(project, FakeCommands())
    assert (project / ".venv" / "thesis.txt").read_text() == "irreplaceable"


def test_a_venv_whose_python_is_gone_is_made_again(project: Path) -> None:
    make(project, FakeCommands())
    (project / ".venv/bin/python").unlink()
    assert not is_ready(project)
    make(project, FakeCommands())
    assert is_ready(project)


def test_a_failing_framework_is_a_reason_not_an_error(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = make(project, FakeCommands(failing=("mlx",)))
    assert state["steps"]["mlx"] == {"ok": False, "reason": "No matching distribution for mlx"}
    assert state["steps"]["project"] == {"ok": True}
    said = capsys.readouterr().err.splitlines()
    assert sum("mlx not available: No matching distribution" in line for line in said) == 1
    assert is_ready(project), "it is not tried again by itself"
    assert make(project, FakeCommands(), force=True)["steps"]["mlx"] == {"ok": True}


def test_a_failing_core_stops_with_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(bootstrap.SetupError, match=r"^core: No matching .*carries on from here$"):
        make(project, FakeCommands(failing=("msgspec",)))
    assert not is_ready(project)


@pytest.mark.parametrize("changed", ["pyproject.toml", "zenrepro/setup/locks/linux-x86_64-cpu.txt"])
def test_a_changed_lock_or_dependency_is_noticed(project: Path, changed: str) -> None:
    make(project, FakeCommands())
    file = project / changed
    file.write_text(file.read_text().replace("msgspec", "msgspec_renamed"))
    assert not is_ready(project)


def test_a_changed_lint_rule_is_not_a_new_environment(project: Path) -> None:
    make(project, FakeCommands())
    file = project / "pyproject.toml"
    file.write_text(file.read_text().replace("line-length = 100", "line-length = 99"))
    assert is_ready(project)


def test_purposes_add_up(project: Path) -> None:
    make(project, FakeCommands(), "evidence")
    assert not is_ready(project, "report")
    run = FakeCommands()
    make(project, run, "report")
    assert "msgspec>=0.19" not in run.installed()
    assert is_ready(project, "evidence")
    assert is_ready(project, "report")
    assert not is_ready(project, "test")


def test_torch_on_a_cpu_is_never_the_cuda_build(project: Path) -> None:
    run = FakeCommands(failing=("torch==",))
    reason = make(project, run)["steps"]["torch"]
    asked = [a for command in run.calls for a in command if a.startswith("torch")]
    assert asked == ["torch==2.13.0+cpu"] * 2
    assert not reason["ok"]


def test_cuda_asks_for_cuda_builds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENREPRO_PLATFORM", "linux-x86_64-cuda")
    run = FakeCommands()
    make(project, run)
    asked = " ".join(" ".join(command) for command in run.calls)
    assert "jax[cuda13]" in asked
    assert "mlx[cuda13]" in asked
    assert "+cpu" not in asked


def test_jetson_uses_the_systems_torch(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENREPRO_PLATFORM", "linux-aarch64-jetson")
    run = FakeCommands()
    make(project, run)
    assert "--system-site-packages" in run.calls[0]
    assert not any("torch" in name for name in run.installed())


def test_missing_tex_is_said_and_not_an_error(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "no PDF (HTML and experiments work): latexmk not found; sudo apt-get install latexmk"
    looks: list[bool] = []

    class NoTex(FakeCommands):
        def __call__(self, command: list[str], log: Path, keep_open: int) -> int:
            if "systempackages" in " ".join(command):
                looks.append("--install" in command)
                log.write_text(f"ERROR: {line}\n")
                return 1
            return super().__call__(command, log, keep_open)

    monkeypatch.delenv("INSTALL_TEX", raising=False)
    make(project, NoTex())
    assert not is_ready(project)
    capsys.readouterr()
    again = NoTex()
    make(project, again)
    assert again.calls == [], "nothing but TeX is looked at again"
    monkeypatch.setenv("INSTALL_TEX", "1")
    make(project, NoTex())
    assert looks == [True, False, True]
    make(project, FakeCommands())
    assert is_ready(project), "TeX has come meanwhile"


def test_the_line_about_tex_ends_the_set_up(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"steps": {}, "system": {"tex": {"ok": False, "line": "no PDF: install latexmk"}}}
    monkeypatch.setattr(bootstrap.Setup, "make", lambda *arguments: state)
    assert bootstrap.set_up("report", force=True, project=project) == 0
    assert capsys.readouterr().err == "setup: no PDF: install latexmk\n"


def test_a_second_set_up_waits_for_the_first(project: Path) -> None:
    with (
        bootstrap.only_one(project),
        (project / ".zenrepro/setup.lock").open("w") as second,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_real_interruption_of_a_real_process(project: Path) -> None:
    """Killed outright while a step runs; the step's own process keeps the lock until it ends."""
    script = project / "first.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, sys
            from pathlib import Path
            sys.path.insert(0, {str(project / "zenrepro/setup")!r})
            import bootstrap
            def run(command, log, keep_open):
                status = bootstrap.run_command(["cat"], log, keep_open)
                if "venv" in command:
                    (project / ".venv/pyvenv.cfg").write_text("")
                    return 0
                os.kill(os.getpid(), signal.SIGKILL)
            project = Path({str(project)!r})
            with bootstrap.only_one(project) as descriptor:
                bootstrap.Setup(project, "evidence", run).make(descriptor, False)
            """
        )
    )
    killed = subprocess.run([sys.executable, script], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    assert (project / ".venv" / bootstrap.UNFINISHED).read_text() == "core"
    assert not is_ready(project, "evidence")
    make(project, FakeCommands(), "evidence")
    assert is_ready(project, "evidence")


def test_windows_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Windows:
        name = "nt"

    monkeypatch.setattr(bootstrap, "os", Windows)
    assert bootstrap.set_up("report", force=False, project=tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_old_python_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 6, "final", 0))
    assert bootstrap.set_up("report", force=False, project=tmp_path) == 2
    assert "3.9.6 is too old" in capsys.readouterr().err


def test_no_ensurepip_names_the_package(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = bootstrap.importlib.util.find_spec
    monkeypatch.setattr(
        bootstrap.importlib.util,
        "find_spec",
        lambda name: None if name == "ensurepip" else find(name),
    )
    with pytest.raises(bootstrap.SetupError, match="apt-get install python3-venv"):
        make(project, FakeCommands())
    assert not (project / ".venv").exists()


def test_a_full_disk_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device", str(project / ".venv"))

    monkeypatch.setattr(bootstrap, "set_up", full)
    assert bootstrap.main(["--for", "report"]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_pip_reason_reads_only_this_step(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("ERROR: of the step before\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("Looking\nERROR: Could not find it\nERROR: No matching distribution for it\n")
    assert bootstrap.pip_reason(log, start) == "No matching distribution for it"
    with log.open("a") as file:
        file.write("WARNING: Retrying (Retry(total=0)) after connection broken: refused\n")
    assert bootstrap.pip_reason(log, start) == "a package index cannot be reached (no network?)"
    with log.open("a") as file:
        file.write("WARNING: Retrying (Retry(total=0)) after CERTIFICATE_VERIFY_FAILED\n")
    assert "certificate is not trusted" in bootstrap.pip_reason(log, start)


def test_state_is_what_others_read(project: Path) -> None:
    make(project, FakeCommands(failing=("jax",)))
    state = json.loads((project / ".venv" / bootstrap.STATE).read_text())
    assert state["platform"] == "linux-x86_64-cpu"
    assert set(state["steps"]["jax"]) == {"ok", "reason"}
