"""Two result sets, compared by identity without the machine."""

import pytest

from zenrepro import paths
from zenrepro.errors import InputError
from zenrepro.records import DeviceClass, Kind, Status
from zenrepro.results.compare import compare, load
from zenrepro.results.store import Store
from zenrepro.results.transfer import export

A, B = [1.0 + i / 100 for i in range(20)], [2.0 + i / 100 for i in range(20)]


def one(a, b):
    (row,) = compare([a], [b], ("a", "b")).rows
    return row


def test_ratio_interval_and_significance(build):
    row = one(build(samples=A), build(samples=B, machine="gpu-other"))
    assert row.ratio == pytest.approx(2.095 / 1.095)
    assert row.ratio_low < row.ratio < row.ratio_high
    assert row.differs is True
    assert (row.a_n, row.b_n, row.unit, row.notes) == (20, 20, "s", [])
    assert one(build(samples=A), build(samples=A)).differs is False
    assert one(build(samples=A[:3]), build(samples=B)).differs is None


def test_units_are_converted(build):
    row = one(build(samples=A), build(samples=[1000 * x for x in A], unit="ms"))
    assert row.ratio == pytest.approx(1.0)
    assert row.differs is False
    row = one(build(samples=A), build(samples=A, unit="B"))
    assert row.ratio is None
    assert row.b is None
    assert "not comparable" in row.notes[0]


def test_only_common_identities_are_compared_and_the_others_counted(build):
    a = [build(), build(implementation="jax.xla")]
    b = [build(machine="m", metric=metric) for metric in ("call", "other", "another")]
    table = compare(a, b, ("a", "b"))
    assert len(table.rows) == 1
    assert (table.only_a, table.only_b) == (1, 2)
    assert "interval" in table.method


def test_a_record_without_a_value_is_a_note(build):
    row = one(build(samples=A), build(status=Status.OOM, reason="90 GiB"))
    assert (row.a, row.b, row.ratio, row.differs) == (pytest.approx(1.095), None, None, None)
    assert row.notes == ["B is oom: 90 GiB"]
    row = one(build(samples=A, status=Status.DISTURBED, reason="hot"), build(samples=A))
    # Its samples were kept, so they are compared, and the note tells.
    assert row.ratio == pytest.approx(1.0)
    assert row.notes == ["A is disturbed: hot"]


def test_counted_is_not_compared_with_measured(build):
    row = one(build(samples=A), build(samples=[1.0], kind=Kind.COUNTED))
    assert row.ratio is None
    assert row.differs is None
    assert row.notes == ["A is measured, B is counted"]
    counted = {"kind": Kind.COUNTED, "quantity": "size", "unit": "B"}
    row = one(build(samples=[4.0], **counted), build(samples=[5.0], **counted))
    assert (row.differs, row.ratio) == (True, 1.25)


def test_another_device_is_a_note(build):
    row = one(build(), build(device_class=DeviceClass(platform="gpu", model="New")))
    assert row.notes == ["A on Some CPU, B on New"]


def test_sets_are_machines_folders_or_archives(tmp_path, build, monkeypatch):
    (tmp_path / "zenrepro.toml").write_text('title = "t"\n')
    project = paths.load(tmp_path)
    store = Store(project.results)
    store.put([build(samples=A), build(machine="gpu-other")])
    export(store, "cpu-test", tmp_path / "m.zip")
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.put([build(samples=A)])
    expected = store.load("cpu-test")
    for name in ("cpu-test", str(tmp_path / "m.zip"), str(tmp_path / "elsewhere"),
                 str(tmp_path / "elsewhere" / "cpu-test")):  # fmt: skip
        assert load(project, name) == expected
    with pytest.raises(InputError, match=r"cpu-test, gpu-other; compare one"):
        load(project, str(project.results))
    with pytest.raises(InputError, match=r"'nothing' is no machine.*cpu-test, gpu-other"):
        load(project, "nothing")
    with pytest.raises(InputError, match="holds no results"):
        load(project, str(tmp_path))
