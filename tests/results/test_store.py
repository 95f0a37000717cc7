"""The store keeps what was put, replaces by identity and refuses what is not a results file."""

import errno
import json
import os
import random
from pathlib import Path

import filelock
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import records
from zenrepro.errors import InputError
from zenrepro.records import ResultsFile, Status
from zenrepro.results import store as store_module
from zenrepro.results.store import Store, check_slug, merged


def path_of(store, machine="cpu-test", experiment="attention"):
    return store.folder / machine / f"{experiment}.json"


def test_empty_store_is_empty(store):
    assert store.machines() == []
    assert store.load() == []
    assert store.load("cpu-test") == []
    with pytest.raises(InputError, match="no machine 'cpu-test'"):
        store.known("cpu-test")


def test_what_is_put_is_loaded_in_a_fresh_store(store, build):
    put = [
        build(),
        build(quantity="memory", metric="peak", unit="B", samples=[5.0]),
        build(implementation="torch.gone", status=Status.UNSUPPORTED),
        build(experiment="hardware", conditions={"op": "copy"}),
        build(machine="gpu-other"),
    ]
    store.put(put)
    fresh = Store(store.folder)
    assert sorted(fresh.load(), key=str) == sorted((records.check(r, "") for r in put), key=str)
    assert fresh.machines() == ["cpu-test", "gpu-other"]
    assert fresh.experiments("cpu-test") == ["attention", "hardware"]
    assert len(fresh.load("cpu-test", "attention")) == 3
    assert len(fresh.load(experiment="attention")) == 4
    assert fresh.known("gpu-other") == "gpu-other"


def test_equal_identity_replaces_and_others_stay(store, build):
    other = {"op": "attention", "batch": 2, "seq_len": 128, "dtype": "fp16"}
    store.put([build(), build(conditions=other)])
    store.put([build(samples=[9.0])])
    loaded = store.load()
    assert [r.samples for r in loaded] == [[9.0], [1.0, 2.0, 3.0]]


def test_a_list_condition_replaces_itself_after_a_round_trip(store, build):
    conditions = {"op": "decode_step", "optimisations": ["b", "a"]}
    store.put([build(conditions=conditions)])
    Store(store.folder).put([build(conditions=conditions, samples=[4.0])])
    assert [r.samples for r in store.load()] == [[4.0]]


@given(st.permutations(list(range(8))))
def test_order_in_the_file_does_not_depend_on_the_order_of_measuring(build, order):
    sizes = [1, 2, 9, 10, 100, 1000, 128, 64]
    made = [build(conditions={"op": "attention", "seq_len": sizes[i]}) for i in order]
    assert [r.conditions["seq_len"] for r in merged([], made)] == sorted(sizes)


def test_one_more_record_changes_one_place_of_the_file(store, build):
    sizes = (1, 2, 4, 8, 16)
    for size in (1, 2, 8, 16):
        store.put([build(conditions={"op": "attention", "batch": size})])
    before = path_of(store).read_text().splitlines()
    store.put([build(conditions={"op": "attention", "batch": 4})])
    after = path_of(store).read_text().splitlines()
    same = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
    assert [r.conditions["batch"] for r in store.load()] == list(sizes)
    tail = len(before) - same
    assert after[-tail:] == before[-tail:]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "x.", "A100", "a b", "a\n", "ä",
     "a\0", "x" * 101, "-x", "con:"],
)  # fmt: skip
def test_a_machine_cannot_be_a_path_trick(store, build, name):
    with pytest.raises(InputError, match="machine"):
        store.put([build(machine=name)])
    with pytest.raises(InputError, match="machine"):
        store.load(name)
    with pytest.raises(InputError, match="experiment"):
        store.put([build(experiment=name)])
    assert not store.folder.exists()


@given(st.text(max_size=30))
def test_a_name_that_passes_is_one_path_component(name):
    try:
        check_slug(name, "machine", "here")
    except InputError:
        return
    assert Path(name).name == name
    assert not name.startswith(".")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text[: len(text) // 2], "not a whole JSON"),
        (lambda text: "", "not a whole JSON"),
        (lambda text: "[]", "schema version"),
        (lambda text: text.replace('"schema":1', '"schema":99'), "schema version"),
        (lambda text: text.replace("2.0,", "NaN,"), "not a whole JSON"),
        (lambda text: text.replace("2.0,", "-2.0,"), "negative"),
        (lambda text: text.replace('"machine":"cpu-test"', '"machine":"other"'), "machine"),
        (lambda text: text.replace('"quantity":"time"', '"quantity":"tme"'), "tme"),
        (lambda text: text.replace('"unit":"s"', '"unit":"parsec"'), "parsec"),
        (lambda text: text.replace('"seq_len":128', '"seqlen":128'), "seqlen"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(store, build, spoil, says):
    store.put([build()])
    path = path_of(store)
    spoilt = spoil(path.read_text())
    assert spoilt != path.read_text()
    path.write_text(spoilt)
    for act in (store.load, lambda: Store(store.folder).load(), lambda: store.put([build()])):
        with pytest.raises(InputError) as caught:
            act()
        assert str(path) in str(caught.value)
        assert says in str(caught.value)
        assert any(mend in str(caught.value) for mend in ("delete it and run", "move the file"))
        assert "\n" not in str(caught.value)
    assert path.read_text() == spoilt


def test_a_duplicated_identity_is_refused(store, build):
    store.put([build()])
    path = path_of(store)
    content = json.loads(path.read_text())
    content["records"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="same identity"):
        store.load()


def test_a_file_in_the_wrong_folder_is_refused(store, build):
    store.put([build()])
    moved = path_of(store, machine="gpu-other")
    moved.parent.mkdir()
    path_of(store).rename(moved)
    with pytest.raises(InputError, match="'cpu-test', but the path says 'gpu-other'"):
        store.load()


def test_a_wrong_record_is_refused_before_anything_is_written(store, build):
    store.put([build()])
    before = path_of(store).read_bytes()
    with pytest.raises(InputError, match="negative"):
        store.put([build(samples=[8.0]), build(samples=[-1.0], implementation="torch.other")])
    assert path_of(store).read_bytes() == before


def test_a_full_disk_keeps_the_old_file(store, build, monkeypatch):
    store.put([build()])
    before = path_of(store).read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left.*untouched.*free some space"):
        store.put([build(samples=[7.0])])
    monkeypatch.undo()
    assert path_of(store).read_bytes() == before
    assert [p.name for p in path_of(store).parent.iterdir()] == ["attention.json"]
    store.put([build(samples=[7.0])])
    assert store.load()[0].samples == [7.0]


def test_a_read_only_folder_is_one_line(store, build, monkeypatch):
    store.put([build()])
    before = path_of(store).read_bytes()

    # By a fake, since a test that runs as root may write anywhere.
    def refuse(**_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store_module.tempfile, "mkstemp", refuse)
    with pytest.raises(InputError, match=r"Permission denied.*untouched.*writable"):
        store.put([build(samples=[7.0])])
    monkeypatch.undo()
    assert path_of(store).read_bytes() == before


def test_leftovers_of_killed_writers_are_ignored_and_cleared(store, build):
    store.put([build()])
    leftover = path_of(store).parent / ".attention.json.abc.tmp"
    other = path_of(store).parent / ".hardware.json.abc.tmp"
    for path in (leftover, other):
        path.write_text("{half")
    assert len(store.load()) == 1
    assert store.experiments("cpu-test") == ["attention"]
    store.put([build(samples=[4.0])])
    assert not leftover.exists()
    # It may belong to a live writer of the other file, which another lock guards.
    assert other.exists()


def test_the_results_folder_holds_results_only(store, build):
    store.put([build()])
    found = sorted(str(p.relative_to(store.folder)) for p in store.folder.rglob("*"))
    assert found == ["cpu-test", "cpu-test/attention.json"]


def test_in_a_project_the_lock_is_local_state(tmp_path, build):
    (tmp_path / "zenrepro.toml").write_text('title = "t"\n')
    Store(tmp_path / "data" / "results").put([build()])
    (lock,) = (tmp_path / ".zenrepro" / "locks").iterdir()
    # The same project mounted elsewhere has the same lock.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "zenrepro.toml").write_text('title = "t"\n')
    Store(elsewhere / "data" / "results").put([build()])
    (other,) = (elsewhere / ".zenrepro" / "locks").iterdir()
    assert other.name == lock.name


def test_a_second_store_sees_what_the_first_wrote(store, build):
    second = Store(store.folder)
    store.put([build()])
    assert len(second.load()) == 1
    store.put([build(samples=[5.0, 6.0])])
    assert second.load()[0].samples == [5.0, 6.0]


def test_encoding_is_a_fixed_point(store, build):
    store.put([build(), build(implementation="jax.xla")])
    data = path_of(store).read_bytes()
    content = records.decode(data, "")
    assert isinstance(content, ResultsFile)
    assert records.encode(content) == data
    random.Random(0).shuffle(content.records)
    content.records = merged([], content.records)
    assert records.encode(content) == data


def test_records_of_several_files_are_put_all_or_none(store, build, monkeypatch):
    both = [build(), build(experiment="hardware", conditions={"op": "copy"})]
    store.put(both)
    before = {path: path.read_bytes() for path in store.folder.rglob("*.json")}
    real, calls = os.fsync, []

    def full_at_the_second(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(store_module.os, "fsync", full_at_the_second)
    with pytest.raises(InputError, match="No space left"):
        store.put([msgspec.structs.replace(record, samples=[7.0]) for record in both])
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before


def test_an_earlier_record_may_stay(store, build):
    store.put([build()])
    store.put([build(samples=[9.0]), build(implementation="jax.xla")], lambda new, old: False)
    assert [r.samples for r in store.load()] == [[1.0, 2.0, 3.0]] * 2


def test_a_lock_that_is_held_too_long_is_one_line(store, build, monkeypatch):
    store.put([build()])
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT_S", 0.05)
    held = filelock.FileLock(store_module._lock_path(path_of(store)))
    with held, pytest.raises(InputError, match="another process has been writing"):
        store.put([build()])
    store.put([build()])


def test_a_full_disk_says_which_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        store_module.write_atomically(tmp_path / "x.json", b"{}")
    assert caught.value.filename == str(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_refuses_says_which_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(OSError, match="x") as caught:
        store_module.write_atomically(tmp_path / "x" / "y.json", b"{}")
    assert caught.value.filename == str(tmp_path / "x" / "y.json")
