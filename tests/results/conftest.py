"""Makes records for the tests of the store."""

import pytest

from zenrepro.records import DeviceClass, Environment, Inputs, Kind, Origin, Record, Status


def build(**changes):
    given = {
        "experiment": "attention",
        "quantity": "time",
        "metric": "call",
        "implementation": "torch.naive",
        "conditions": {"op": "attention", "batch": 1, "seq_len": 128, "dtype": "fp16"},
        "unit": "s",
        "status": Status.OK,
        "kind": Kind.MEASURED,
        "origin": Origin.PEER,
        "machine": "cpu-test",
        "device_class": DeviceClass(platform="cpu", model="Some CPU"),
        "environment": Environment(os="linux", packages={"torch": "2.0"}),
        "samples": [1.0, 2.0, 3.0],
        "inputs": Inputs(sources={"zenrepro/records.py": "0"}),
        "started": "2026-01-01T00:00:00Z",
    }
    given.update(changes)
    if given["status"] not in (Status.OK, Status.DISTURBED):
        given["samples"] = []
        given.setdefault("reason", "a reason")
    return Record(**given)


@pytest.fixture(name="build", scope="session")
def _build():
    return build


@pytest.fixture
def store(tmp_path):
    from zenrepro.results.store import Store

    return Store(tmp_path / "results")
