"""Which lock a machine gets, from faked files, and what the locks hold."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from zenrepro.setup import bootstrap

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = sorted({platform["lock"] for platform in bootstrap.PLATFORMS.values()})


def fake_root(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("system", "machine", "files", "expected"),
    [
        ("Linux", "x86_64", {}, "linux-x86_64-cpu"),
        ("Linux", "aarch64", {}, "linux-aarch64-cpu"),
        ("Linux", "arm64", {}, "linux-aarch64-cpu"),
        ("Linux", "x86_64", {"dev__nvidia0": ""}, "linux-x86_64-cuda"),
        ("Linux", "x86_64", {"proc__driver__nvidia__version": "NVRM"}, "linux-x86_64-cuda"),
        ("Linux", "aarch64", {"dev__nvidia0": ""}, "linux-aarch64-cuda"),
        ("Linux", "x86_64", {"dev__dxg": ""}, "linux-x86_64-cpu"),
        (
            "Linux",
            "x86_64",
            {"dev__dxg": "", "usr__lib__wsl__lib__nvidia-smi": ""},
            "linux-x86_64-cuda",
        ),
        (
            "Linux",
            "aarch64",
            {"etc__nv_tegra_release": "# R38", "dev__nvidia0": ""},
            "linux-aarch64-jetson",
        ),
        (
            "Linux",
            "x86_64",
            {"dev__accel0": "", "sys__bus__pci__devices__0000:00:04.0__vendor": "0x1ae0\n"},
            "linux-x86_64-tpu",
        ),
        (
            "Linux",
            "x86_64",
            {"dev__accel0": "", "sys__bus__pci__devices__0000:00:04.0__vendor": "0x1022\n"},
            "linux-x86_64-cpu",
        ),
        ("Darwin", "arm64", {}, "macos-arm64"),
    ],
)
def test_platform(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    files: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.delenv("ZENREPRO_PLATFORM", raising=False)
    assert bootstrap.detect_platform(fake_root(tmp_path, **files), system, machine) == expected


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "x86_64"), ("FreeBSD", "riscv64")])
def test_an_unlocked_machine_is_told_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.delenv("ZENREPRO_PLATFORM", raising=False)
    with pytest.raises(bootstrap.SetupError, match=f"{system} on {machine}.*PYTHON="):
        bootstrap.detect_platform(tmp_path, system, machine)


def test_the_platform_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENREPRO_PLATFORM", "macos-arm64")
    assert bootstrap.detect_platform() == "macos-arm64"
    monkeypatch.setenv("ZENREPRO_PLATFORM", "amiga")
    with pytest.raises(bootstrap.SetupError, match="ZENREPRO_PLATFORM=amiga: not one of linux-"):
        bootstrap.detect_platform()


@pytest.mark.parametrize(
    ("version", "warned"), [("580.159.03", False), ("610.1", False), ("550.54.15", True)]
)
def test_an_old_driver_is_said(tmp_path: Path, version: str, warned: bool) -> None:
    text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue\nGCC version:  12.2.0\n"
    root = fake_root(tmp_path, proc__driver__nvidia__version=text)
    line = bootstrap.driver_warning(root)
    assert (line is not None) == warned
    assert line is None or version in line


def pins(lock: str) -> dict[str, str]:
    lines = (REPOSITORY / f"zenrepro/setup/locks/{lock}.txt").read_text().splitlines()
    exact = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pair) == 2 for pair in exact), "every line is one exact pin"
    return {plain(name): version for name, version in exact}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_all_that_is_declared(lock: str) -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["run"], *extras["test"], *extras["lint"]]
    declared += [*extras["lab"], *extras["energy"], *extras["torch"], *extras["jax"]]
    names = {plain(re.split(r"[\[><=; ]", line)[0]) for line in declared} | {"mlx", "setuptools"}
    assert names <= pins(lock).keys()


def test_locks_agree_on_what_they_share() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, version in pins(lock).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_cpu_locks_hold_no_cuda_but_the_compiler() -> None:
    compiler = {"cuda-bindings", "cuda-pathfinder", "nvidia-cuda-nvrtc"}
    for lock in ("linux-x86_64-cpu", "linux-aarch64-cpu", "linux-x86_64-tpu", "macos-arm64"):
        found = {n for n in pins(lock) if n.startswith(("nvidia-cu", "cuda-", "jax-cuda"))}
        assert found == (compiler if lock.startswith("linux") else set())


def test_this_environment_is_the_locked_one() -> None:
    """Where the bootstrap made the running environment: every package in it is pinned."""
    if not (Path(sys.prefix) / bootstrap.STATE).exists() or sys.version_info[:2] != (3, 11):
        pytest.skip("not an environment the bootstrap made with the locked Python")
    locked = pins(bootstrap.PLATFORMS[bootstrap.detect_platform()]["lock"])
    own = {"pip", "setuptools", "zenrepro", "uv"}
    there = {plain(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
    differing = {
        name: (version, locked.get(name))
        for name, version in there.items()
        if name not in own and version.split("+")[0] != locked.get(name)
    }
    assert differing == {}
