"""Writers that are killed at random moments, and two at once: nothing but one point is lost."""

import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from zenrepro.results.store import Store

# Puts records one by one and says on its output which are safely in.
WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status
    from zenrepro.results.store import Store
    folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    store = Store(folder)
    for size in range(1, count + 1):
        store.put([Record(
            experiment="attention", quantity="time", metric="call", implementation=name,
            conditions={"op": "attention", "seq_len": size}, unit="s", status=Status.OK,
            kind=Kind.MEASURED, origin=Origin.OURS, machine="cpu-test",
            device_class=DeviceClass(platform="cpu", model="CPU"), environment=Environment(),
            samples=[0.001 * size] * 50,
        )])
        print(size, flush=True)
    """
)


def start(folder, name, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_at_a_random_moment_loses_at_most_the_point_being_written(tmp_path, seed):
    random.seed(seed)
    process = start(tmp_path / "results", "torch.naive", 100_000)
    said = [process.stdout.readline()]
    time.sleep(random.uniform(0.0, 0.15))
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    said += rest.splitlines()
    done = len([line for line in said if line.strip()])
    loaded = Store(tmp_path / "results").load()
    sizes = sorted(record.conditions["seq_len"] for record in loaded)
    # The last one may have been renamed into place before it could be said.
    assert sizes in (list(range(1, done + 1)), list(range(1, done + 2)))
    assert all(len(record.samples) == 50 for record in loaded)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
@pytest.mark.parametrize("dies", [True, False])
def test_a_write_that_ends_halfway_leaves_the_old_file(tmp_path, dies):
    """The system ends it at 40 kB: by a signal, or by an error as on a full disk."""
    folder = tmp_path / "results"
    limited = (
        "import resource, signal\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        f"signal.signal(signal.SIGXFSZ, signal.{'SIG_DFL' if dies else 'SIG_IGN'})\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", limited + WRITER, str(folder), "torch.naive", "100000"],
        capture_output=True,
        text=True,
        check=False,
    )
    done = len(process.stdout.split())
    assert done > 5
    loaded = Store(folder).load()
    assert [record.conditions["seq_len"] for record in loaded] == list(range(1, done + 1))
    if dies:
        assert process.returncode == -signal.SIGXFSZ
        return
    assert "File too large); earlier results are untouched" in process.stderr
    assert [path.name for path in (folder / "cpu-test").iterdir()] == ["attention.json"]


def test_after_kills_the_next_writer_clears_up_and_goes_on(tmp_path, build):
    folder = tmp_path / "results"
    for seed in range(3):
        process = start(folder, f"torch.run{seed}", 100_000)
        process.stdout.readline()
        time.sleep(0.03 * seed)
        process.kill()
        process.communicate()
    store = Store(folder)
    before = len(store.load())
    store.put([build()])
    assert len(store.load()) == before + 1
    assert [path.name for path in (folder / "cpu-test").iterdir()] == ["attention.json"]


def test_two_writers_at_once_lose_nothing(tmp_path):
    folder = tmp_path / "results"
    writers = [start(folder, name, 40) for name in ("torch.naive", "jax.xla", "mlx.fast")]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    loaded = Store(folder).load()
    assert len(loaded) == 120
    assert {record.implementation for record in loaded} == {"torch.naive", "jax.xla", "mlx.fast"}
