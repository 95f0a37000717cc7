"""Make the environment in .venv, or see in a few milliseconds that it is there.

Standard library only: this runs under any Python >= 3.11 before anything is installed, and does
not import the zenrepro package. An older Python must still be able to parse it, so that it can
say in one line what is missing.

One pip step each: the core and the project are mandatory; a framework that cannot be installed
is recorded in .venv/zenrepro-setup.json with its reason, printed in one line, and never an error.
That file is written last. What an interruption leaves is found by .venv/zenrepro-unfinished:
a half-made venv is made again, half-unpacked packages are installed again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

OLDEST_PYTHON = (3, 11)
CUDA_DRIVER = 580  # the oldest NVIDIA driver branch that runs CUDA 13 builds
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

STATE, UNFINISHED, LOG = "zenrepro-setup.json", "zenrepro-unfinished", "zenrepro-setup.log"

# Steps in order; each names extras of pyproject.toml. Only the first two must succeed.
MANDATORY = ("core", "run", "test", "lint", "lab", "project")
STEPS = (
    "core", "run", "test", "lint", "lab", "energy", "torch", "triton", "cuda", "jax", "mlx",
    "tpu-compiler", "project",
)  # fmt: skip
EVERY_RUN = ("core", "run", "energy", "torch", "triton", "cuda", "jax", "mlx", "project")
PURPOSES = {
    "evidence": ("core", "project"),
    "report": EVERY_RUN,
    "lab": (*EVERY_RUN, "lab"),
    "check": ("core", "lint", "project"),
    "test": (*EVERY_RUN, "test", "lint", "tpu-compiler"),
}
SYSTEM = {"report": ("tex",), "evidence": ("tex",), "test": ("tex", "tests")}

# Which lock, and which extra stands for a step where it is not the step's own name.
PLATFORMS: Dict[str, Any] = {
    "linux-x86_64-cpu": {"lock": "linux-x86_64-cpu"},
    "linux-x86_64-cuda": {
        "lock": "linux-x86_64-cuda",
        "extras": {"jax": "jax-cuda", "mlx": "mlx-cuda"},
    },
    "linux-x86_64-tpu": {"lock": "linux-x86_64-tpu", "extras": {"jax": "jax-tpu"}},
    "linux-aarch64-cpu": {"lock": "linux-aarch64-cpu"},
    "linux-aarch64-cuda": {
        "lock": "linux-aarch64-cuda",
        "extras": {"jax": "jax-cuda", "mlx": "mlx-cuda"},
    },
    "linux-aarch64-jetson": {"lock": "linux-aarch64-cpu"},
    "macos-arm64": {"lock": "macos-arm64", "extras": {"energy": "energy-apple"}},
}

Run = Callable[[List[str], Path, int], int]


class SetupError(Exception):
    """Set-up cannot go on; the message is one line that names the thing and the mend."""


def detect_platform(root: Path = Path("/"), system: str = "", machine: str = "") -> str:
    """The name in PLATFORMS for this machine, from files alone (no process is started).

    ``root`` stands for / in tests. ZENREPRO_PLATFORM overrides it. Raises SetupError for a
    machine that no lock describes.
    """
    named = os.environ.get("ZENREPRO_PLATFORM")
    if named:
        if named not in PLATFORMS:
            raise SetupError(f"ZENREPRO_PLATFORM={named}: not one of {', '.join(PLATFORMS)}")
        return named
    system, machine = system or platform.system(), machine or platform.machine()
    if system == "Darwin" and machine == "arm64":
        return "macos-arm64"
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        raise SetupError(
            f"no lock for {system} on {machine}: prepare an environment yourself and name it, "
            "make report PYTHON=/path/to/python3"
        )
    if (root / "etc/nv_tegra_release").exists():
        return "linux-aarch64-jetson"
    if _has_nvidia(root):
        return f"linux-{machine}-cuda"
    if machine == "x86_64" and _has_tpu(root):
        return "linux-x86_64-tpu"
    return f"linux-{machine}-cpu"


def _has_nvidia(root: Path) -> bool:
    wsl = (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/nvidia-smi").exists()
    driver = (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidia0").exists()
    return wsl or driver or (root == Path("/") and shutil.which("nvidia-smi") is not None)


def _has_tpu(root: Path) -> bool:
    if not ((root / "dev/accel0").exists() or (root / "dev/vfio").exists()):
        return False
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors)  # Google's


def driver_warning(root: Path = Path("/")) -> str | None:
    """One line when the NVIDIA driver is too old for the locked CUDA builds, else None."""
    try:
        words = (root / "proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    version = next((w for w in words if w[:1].isdigit() and "." in w), "")
    if not version or int(version.split(".")[0]) >= CUDA_DRIVER:
        return None
    return (
        f"the NVIDIA driver {version} is older than {CUDA_DRIVER}, which the CUDA 13 builds in "
        "the lock need: update it, or use an environment of your own (make report PYTHON=...)"
    )


def say(line: str) -> None:
    print(f"setup: {line}", file=sys.stderr, flush=True)


def run_command(command: list[str], log: Path, keep_open: int) -> int:
    """Run ``command`` with its output in ``log``; the exit status.

    The child inherits the lock's descriptor ``keep_open``: should this process be killed, a
    second set-up still waits until the child has ended.
    """
    started, ticking = time.monotonic(), sys.stderr.isatty()
    with log.open("ab") as out:
        out.write(("\n$ " + " ".join(command) + "\n").encode())
        out.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=(keep_open,),
        )
        while ticking and child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=1)
            print(f"\r{time.monotonic() - started:5.0f} s\r", end="", file=sys.stderr, flush=True)
        return child.wait()


def pip_reason(log: Path, start: int) -> str:
    """The line that says why pip failed, from what it wrote to ``log`` after ``start``."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    retried = [line for line in lines if "Retrying (Retry" in line]
    if retried:
        why = "its certificate is not trusted" if "CERTIFICATE" in retried[-1] else "no network?"
        return f"a package index cannot be reached ({why})"
    errors = [line.split("ERROR:", 1)[1].strip() for line in lines if "ERROR:" in line]
    return (errors or [line.strip() for line in lines if line.strip()] or ["no output"])[-1]


class Setup:
    """The environment of one project folder, for one purpose."""

    def __init__(self, project: Path, purpose: str, run: Run = run_command) -> None:
        self.project, self.purpose, self.run = project, purpose, run
        self.venv = project / ".venv"
        self.python = self.venv / "bin" / "python"
        self.log = self.venv / LOG
        self.platform = detect_platform()
        here = project / "zenrepro" / "setup"
        self.lock = here / "locks" / f"{PLATFORMS[self.platform]['lock']}.txt"
        self.needs = [step for step in STEPS if step in PURPOSES[purpose]]
        self.groups = SYSTEM.get(purpose, ())
        self.heal, self.system = here / "halfinstalled.py", here / "systempackages.py"

    def key(self) -> str:
        """What the environment depends on; another key means: go through the steps again."""
        declared = self.declared()
        relevant = {name: declared.get(name) for name in ("build-system", "project")}
        parts = [self.platform, json.dumps(relevant, sort_keys=True)]
        parts += [file.read_text() for file in (self.lock, self.project / "setup.py")]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def declared(self) -> dict[str, Any]:
        """What pyproject.toml says."""
        import tomllib  # here, so that an older Python gets as far as its one line

        with (self.project / "pyproject.toml").open("rb") as file:
            return tomllib.load(file)

    def state(self) -> dict[str, Any]:
        """What the last finished set-up recorded; empty when there is none to trust."""
        try:
            state = json.loads((self.venv / STATE).read_text())
            whole = self.python.exists() and state["key"] == self.key()
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return state if whole and not (self.venv / UNFINISHED).exists() else {}

    def is_ready(self, state: dict[str, Any]) -> bool:
        """Whether ``state`` covers this purpose: every step and every group of system packages."""
        system = state.get("system", {})
        have = all(system.get(group, {}).get("ok") for group in self.groups)
        return have and set(state.get("steps", {})) >= set(self.needs)

    # -- the way there -----------------------------------------------------------------------

    def make(self, keep_open: int, force: bool) -> dict[str, Any]:
        """Go through every step that is missing; returns the recorded state."""
        old = {} if force else self.state()
        steps = dict(old.get("steps", {}))
        system = dict(old.get("system", {}))
        left = [step for step in self.needs if step not in steps]
        if left:
            self._venv(keep_open)
            say(f"{self.platform}, {len(left)} steps into .venv (log: .venv/{LOG})")
        warning = driver_warning() if self.platform.endswith("-cuda") else None
        if warning:
            say(warning)
        for i, step in enumerate(left, 1):
            started = time.monotonic()
            say(f"[{i}/{len(left)}] {step}")
            reason = self._step(step, keep_open)
            steps[step] = {"ok": reason is None, **({"reason": reason} if reason else {})}
            if reason and step in MANDATORY:
                raise SetupError(
                    f"{step}: {reason} (the whole output: .venv/{LOG}); "
                    "mend that and run the same make again, it carries on from here"
                )
            result = f"not available: {reason}" if reason else "done"
            say(f"[{i}/{len(left)}] {step} {result} ({time.monotonic() - started:.0f} s)")
        for group in self.groups:
            if not system.get(group, {}).get("ok"):
                # Once it has failed it is only looked for again, which needs no network.
                install = group not in system or os.environ.get("INSTALL_TEX") == "1"
                system[group] = self._system_packages(group, install, keep_open)
        state = {
            "key": self.key(),
            "platform": self.platform,
            "python": platform.python_version(),
            "steps": steps,
            "system": system,
        }
        part = self.venv / (STATE + ".part")
        part.write_text(json.dumps(state, indent=1) + "\n")
        part.replace(self.venv / STATE)
        return state

    def _venv(self, keep_open: int) -> None:
        """A venv whose making was not cut short; one that was is removed and made again."""
        marker = self.venv / UNFINISHED
        half_made = marker.exists() and marker.read_text() in ("", "venv")
        if self.venv.exists() and not half_made and any(self.venv.iterdir()):
            if not (self.venv / "pyvenv.cfg").exists():
                raise SetupError(f"{self.venv} is not a virtual environment: move it away")
            check = [str(self.python), "-I", "-m", "pip", "--version"]
            if self.python.exists() and self.run(check, self.log, keep_open) == 0:
                self._heal(keep_open)
                return
            say(".venv does not work any more (no Python or no pip in it): made again")
        # Debian leaves ensurepip out of python3; say so before anything is written.
        for module in ("venv", "ensurepip"):
            if importlib.util.find_spec(module) is None:
                raise SetupError(
                    f"this Python has no {module} ({sys.executable}): on Debian and Ubuntu "
                    "apt-get install python3-venv, or name another Python, make report PYTHON=..."
                )
        shutil.rmtree(self.venv, ignore_errors=True)
        self.venv.mkdir(parents=True, exist_ok=True)
        marker.write_text("venv")
        base = getattr(sys, "_base_executable", "") or sys.executable
        # NVIDIA builds torch for Jetson into the system's Python only.
        jetson = ["--system-site-packages"] if self.platform.endswith("-jetson") else []
        command = [base, "-I", "-m", "venv", *jetson, str(self.venv)]
        start = self._log_size()
        if self.run(command, self.log, keep_open) != 0:
            raise SetupError(f"python -m venv failed: {pip_reason(self.log, start)}")
        marker.unlink()

    def _heal(self, keep_open: int) -> None:
        """After an interrupted or failed pip step: forget packages that are not whole."""
        marker = self.venv / UNFINISHED
        if marker.exists():
            say("a step was cut short or failed: looking for half-installed packages")
            if self.run([str(self.python), "-I", str(self.heal)], self.log, keep_open) != 0:
                raise SetupError(f"checking .venv failed (see .venv/{LOG}); rm -rf .venv mends it")
            marker.unlink()

    def _step(self, step: str, keep_open: int) -> str | None:
        """Install what ``step`` names. None, or in one line why it could not be."""
        if step == "torch" and self.platform.endswith("-jetson"):
            probe = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
            found = self.run([str(self.python), "-c", probe], self.log, keep_open) == 0
            return (
                None if found else "the system's Python has no torch: install NVIDIA's for Jetson"
            )
        reason = None
        for wanted in self._attempts(step):
            start = self._log_size()
            pip = [str(self.python), "-I", "-m", "pip", "install", "--disable-pip-version-check"]
            pip += ["--no-input", "--progress-bar", "off", "--no-user", *wanted]
            (self.venv / UNFINISHED).write_text(step)
            if self.run(pip, self.log, keep_open) == 0:
                (self.venv / UNFINISHED).unlink()
                return None
            reason = pip_reason(self.log, start)
            self._heal(keep_open)
        return reason

    def _attempts(self, step: str) -> list[list[str]]:
        """pip's arguments for ``step``, one list per attempt; the lock constrains all of them."""
        if step == "project":
            return [["--no-deps", "--no-build-isolation", "-e", str(self.project)]]
        declared = self.declared()
        locked = ["-c", str(self.lock)]
        if step == "core":
            needed = [*declared["build-system"]["requires"], *declared["project"]["dependencies"]]
            return [[*locked, *needed]]
        if step == "torch" and self.platform.endswith(("-cpu", "-tpu")):
            # The registry's Linux build brings gigabytes of CUDA; "+cpu" is never that one. It is
            # asked of the configured indexes first, so that a mirror or a local file is enough.
            build = f"torch=={locked_version(self.lock, 'torch')}+cpu"
            return [[*locked, build], [*locked, "--extra-index-url", TORCH_CPU_INDEX, build]]
        if step == "tpu-compiler":  # beside the environment: see pyproject.toml
            beside = ["--no-deps", "--upgrade", "--target", str(self.venv / "tpu-compiler")]
            return [[*beside, *declared["project"]["optional-dependencies"][step]]]
        extra = PLATFORMS[self.platform].get("extras", {}).get(step, step)
        return [[*locked, *declared["project"]["optional-dependencies"][extra]]]

    def _system_packages(self, group: str, install: bool, keep_open: int) -> dict[str, Any]:
        """TeX, the tests' tools: installed where that is allowed, else the line that says what."""
        start = self._log_size()
        command = [sys.executable, "-I", str(self.system), *(["--install"] * install), group]
        if install:
            say(f"system packages: {group}")
        if self.run(command, self.log, keep_open) == 0:
            return {"ok": True}
        return {"ok": False, "line": pip_reason(self.log, start)}

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


def locked_version(lock: Path, name: str) -> str:
    """The version that ``lock`` pins ``name`` to. Raises SetupError when it pins none."""
    for line in lock.read_text().splitlines():
        if line.startswith(name + "=="):
            return line.split("==", 1)[1].split()[0]
    raise SetupError(f"{lock} pins no {name}: make the lock again (docs/decisions/setup.md)")


@contextlib.contextmanager
def only_one(project: Path) -> Iterator[int]:
    """Hold the project's set-up lock; yields its descriptor. A second set-up waits here."""
    import fcntl  # not on Windows, where the check in main comes first

    folder = project / ".zenrepro"
    folder.mkdir(exist_ok=True)
    with (folder / "setup.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another make is setting up here: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def main(arguments: list[str] | None = None) -> int:
    """0 when the environment is there, 1 when it could not be made, 2 for a wrong Python."""
    parser = argparse.ArgumentParser(description="Set up .venv for one of make's targets.")
    parser.add_argument("--for", dest="purpose", choices=sorted(PURPOSES), default="report")
    parser.add_argument("--force", action="store_true", help="go through every step again")
    options = parser.parse_args(arguments)
    try:
        return set_up(options.purpose, options.force)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same make carries on where this one stopped")
        return 130
    except OSError as error:
        say(f"{error.strerror}: {error.filename}; free some space or mend its rights, then again")
        return 1


def set_up(purpose: str, force: bool, project: Path | None = None) -> int:
    """Set ``project`` (this checkout) up for ``purpose``; the exit status."""
    if os.name == "nt":
        say("native Windows is not supported: run this inside WSL2 (wsl --install), as on Linux")
        return 2
    if sys.version_info[:2] < OLDEST_PYTHON:
        have = ".".join(map(str, sys.version_info[:3]))
        say(f"Python {have} is too old: 3.11 or newer, make report PYTHON=/path/to/python3")
        return 2
    setup = Setup(project or Path(__file__).resolve().parents[2], purpose)
    state = {} if force else setup.state()
    if not setup.is_ready(state):
        with only_one(setup.project) as descriptor:
            state = {} if force else setup.state()  # the other make may have done it meanwhile
            if not setup.is_ready(state):
                state = setup.make(descriptor, force)
    for group in setup.groups:
        line = state["system"].get(group, {}).get("line")
        if line:
            say(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
