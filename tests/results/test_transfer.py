"""Archives carry results unchanged, and nothing else; none is trusted."""

import io
import stat
import zipfile

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zenrepro import records
from zenrepro.errors import InputError
from zenrepro.records import ResultsFile
from zenrepro.results import transfer
from zenrepro.results.store import Store
from zenrepro.results.transfer import export, merge


@pytest.fixture
def filled(store, build):
    store.put([
        build(),
        build(implementation="jax.xla"),
        build(experiment="hardware", conditions={"op": "copy"}),
        build(machine="gpu-other"),
    ])  # fmt: skip
    return store


@pytest.fixture
def target(tmp_path):
    return Store(tmp_path / "target")


def content(build, machine="cpu-test", experiment="attention", **given):
    made = [build(machine=machine, experiment=experiment, **given)]
    return records.encode(
        ResultsFile(schema=1, machine=machine, experiment=experiment, records=made)
    )


def zipped(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def test_there_and_back(filled, target, tmp_path):
    archive = tmp_path / "m.zip"
    assert export(filled, "cpu-test", archive) == 3
    (done,) = merge(target, [archive])
    assert (done.added, done.replaced, done.same, done.kept) == (3, 0, 0, [])
    assert done.machines == ["cpu-test"]
    assert target.load() == filled.load("cpu-test")
    for name in ("attention", "hardware"):
        there, here = (s.folder / "cpu-test" / f"{name}.json" for s in (filled, target))
        assert there.read_bytes() == here.read_bytes()
    (again,) = merge(target, [archive])
    assert (again.added, again.same) == (0, 3)


def test_the_same_results_give_the_same_archive(filled, tmp_path):
    for name in ("a.zip", "b.zip"):
        export(filled, "cpu-test", tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_export_of_a_machine_without_results(filled, tmp_path):
    with pytest.raises(InputError, match="results of: cpu-test, gpu-other"):
        export(filled, "cpu-none", tmp_path / "m.zip")
    with pytest.raises(InputError, match="cannot be written"):
        export(filled, "cpu-test", tmp_path / "nowhere" / "m.zip")
    assert not (tmp_path / "m.zip").exists()


def test_a_newer_record_stays_and_is_told(store, build, tmp_path):
    times = ["2026-01-01T00:00:00Z", "2026-01-01T12:00:00.500+00:00", "2026-01-02T01:00:00+02:00"]
    for new, old, wins in ((1, 0, True), (0, 1, False), (2, 1, True), (1, 2, False), (1, 1, False)):
        source = Store(tmp_path / f"s{new}{old}")
        here = Store(tmp_path / f"h{new}{old}")
        source.put([build(started=times[new], samples=[9.0])])
        here.put([build(started=times[old])])
        export(source, "cpu-test", tmp_path / "m.zip")
        (done,) = merge(here, [tmp_path / "m.zip"])
        assert (here.load()[0].samples == [9.0]) is wins
        assert (done.replaced, len(done.kept)) == ((1, 0) if wins else (0, 1))
        if not wins:
            assert times[old] in done.kept[0]
            assert times[new] in done.kept[0]
            assert len(done.lines()) == 2


DAY = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize("times", [(None, DAY), (DAY, None), (None, None), ("yesterday", DAY)])
def test_without_a_time_what_is_here_stays(store, target, build, tmp_path, times):
    store.put([build(started=times[0], samples=[9.0])])
    target.put([build(started=times[1])])
    export(store, "cpu-test", tmp_path / "m.zip")
    (done,) = merge(target, [tmp_path / "m.zip"])
    assert len(done.kept) == 1
    assert target.load()[0].samples == [1.0, 2.0, 3.0]


def test_two_archives_of_one_machine_keep_the_newest(store, target, build, tmp_path):
    archives = []
    for day in (2, 3, 1):
        store.put([build(started=f"2026-01-0{day}T00:00:00Z", samples=[float(day)])])
        archives.append(tmp_path / f"{day}.zip")
        export(store, "cpu-test", archives[-1])
    done = merge(target, archives)
    assert target.load()[0].samples == [3.0]
    assert [(d.added, d.replaced, len(d.kept)) for d in done] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


BAD_NAMES = [
    "../cpu-test/attention.json", "/cpu-test/attention.json", "cpu-test/../attention.json",
    "cpu-test/../../x.json", "C:/cpu-test/attention.json", "cpu-test\\attention.json",
    "attention.json", "cpu-test/attention.json/x.json", "cpu-test/attention.txt",
    "cpu-test/.attention.json", "cpu-test/attention.json\n", "data/results/cpu-test/attention.json",
    "cpu-test/.json", "../", "CPU-test/attention.json", "cpu-test//attention.json", "README.md",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_only_names_of_results_are_read(target, build, tmp_path, name):
    archive = zipped(
        tmp_path / "m.zip",
        [("cpu-test/hardware.json", content(build, experiment="hardware")), (name, content(build))],
    )
    with pytest.raises(InputError) as caught:
        merge(target, [archive])
    assert str(archive) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not target.folder.exists()


def test_a_plain_folder_entry_is_passed_over(target, build, tmp_path):
    entries = [("cpu-test/", b""), ("cpu-test/attention.json", content(build))]
    merge(target, [zipped(tmp_path / "m.zip", entries)])
    assert len(target.load()) == 1


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(target, build, tmp_path, kind):
    entry = zipfile.ZipInfo("cpu-test/attention.json")
    entry.external_attr = (kind | 0o777) << 16
    archive = zipped(tmp_path / "m.zip", [(entry, b"/etc/passwd")])
    with pytest.raises(InputError, match="link or a device"):
        merge(target, [archive])


def test_a_bomb_is_refused_before_it_fills_memory(target, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "LARGEST_FILE_BYTES", 2 * 2**20)
    archive = zipped(tmp_path / "m.zip", [("cpu-test/attention.json", b" " * (16 * 2**20))])
    assert archive.stat().st_size < 2**16
    with pytest.raises(InputError, match="unpacks to more than 2 MiB"):
        merge(target, [archive])
    monkeypatch.setattr(transfer, "MOST_FILES", 3)
    many = zipped(tmp_path / "n.zip", [(f"cpu-test/e{i}.json", b"") for i in range(4)])
    with pytest.raises(InputError, match="4 entries"):
        merge(target, [many])


def test_files_that_only_together_are_too_large_are_refused(target, build, tmp_path, monkeypatch):
    data = content(build, samples=[1.0] * 1000)
    monkeypatch.setattr(transfer, "LARGEST_ARCHIVE_BYTES", 2 * len(data))
    entries = [
        (f"cpu-test/e{i}.json", content(build, experiment=f"e{i}", samples=[1.0] * 1000))
        for i in range(3)
    ]
    with pytest.raises(InputError, match="unpacks to more"):
        merge(target, [zipped(tmp_path / "m.zip", entries)])


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "not a whole JSON"), (b"{", "not a whole JSON"), (b'{"schema": 2}', "schema version"),
     (b"\xff\xfe", "not a whole JSON")],
)  # fmt: skip
def test_an_entry_that_is_no_results_file_merges_nothing(target, build, tmp_path, data, says):
    good = zipped(tmp_path / "good.zip", [("cpu-test/attention.json", content(build))])
    bad = zipped(tmp_path / "bad.zip", [("cpu-test/attention.json", data)])
    with pytest.raises(InputError, match=says) as caught:
        merge(target, [good, bad])
    assert "bad.zip" in str(caught.value)
    assert not target.folder.exists()


def test_an_entry_of_another_machine_or_experiment_is_refused(target, build, tmp_path):
    for name in ("cpu-other/attention.json", "cpu-test/hardware.json"):
        archive = zipped(tmp_path / "m.zip", [(name, content(build))])
        with pytest.raises(InputError, match="its name says otherwise"):
            merge(target, [archive])


def test_an_entry_that_is_there_twice_is_refused(target, build, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = zipped(tmp_path / "m.zip", [("cpu-test/attention.json", content(build))] * 2)
    with pytest.raises(InputError, match="there twice"):
        merge(target, [archive])


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip", b"PK\x05\x06" + b"\0" * 18])
def test_what_is_no_archive_is_one_line(target, tmp_path, data):
    (tmp_path / "m.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"m\.zip: (not a whole zip|holds no results)"):
        merge(target, [tmp_path / "m.zip"])
    with pytest.raises(InputError, match="cannot be read"):
        merge(target, [tmp_path / "none.zip"])
    with pytest.raises(InputError, match="cannot be read"):
        merge(target, [tmp_path])


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.data())
def test_a_damaged_archive_merges_all_or_nothing_and_never_breaks(target, build, tmp_path, data):
    """Any bytes flipped, cut or inserted: InputError, or records that are whole."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cpu-test/attention.json", content(build))
    whole = bytearray(packed.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            whole[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del whole[at : at + data.draw(st.integers(1, 20))]
        else:
            whole[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not whole:
            break
    (tmp_path / "m.zip").write_bytes(bytes(whole))
    try:
        found = transfer.read(tmp_path / "m.zip")
    except InputError:
        return
    assert found == [records.check(build(), "here")]


def test_a_run_that_measures_meanwhile_loses_nothing(store, target, build, tmp_path, monkeypatch):
    store.put([build(started="2026-01-02T00:00:00Z", samples=[2.0])])
    export(store, "cpu-test", tmp_path / "m.zip")
    target.put([build(started="2026-01-01T00:00:00Z", samples=[1.0])])
    real = Store.put

    def late(self, new, replaces=None):
        newest = msgspec.structs.replace(new[0], started="2026-01-03T00:00:00Z", samples=[3.0])
        real(Store(self.folder), [newest])
        real(self, new, replaces)

    monkeypatch.setattr(Store, "put", late)
    merge(target, [tmp_path / "m.zip"])
    assert target.load()[0].samples == [3.0]
