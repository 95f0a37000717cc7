"""The flat view has the contract's keys, the median and its interval."""

import json

from zenrepro.records import DeviceClass, Status
from zenrepro.results.flat import encode, flatten

KEYS = [
    "experiment", "quantity", "metric", "unit", "value", "low", "high", "n", "status", "reason",
    "kind", "machine", "device_class", "implementation", "origin", "baseline", "conditions",
]  # fmt: skip


def test_a_measured_record(build):
    flat = flatten(build(samples=[float(x) for x in range(1, 22)], baseline="torch.naive"))
    assert list(flat) == KEYS
    assert (flat["value"], flat["low"], flat["high"], flat["n"]) == (11.0, 6.0, 16.0, 21)
    assert flat["kind"] == "measured"
    assert flat["status"] == "ok"
    assert flat["device_class"]["platform"] == "cpu"


def test_a_record_without_samples_has_no_value(build):
    flat = flatten(build(status=Status.OOM, reason="wanted 90 GiB"))
    assert (flat["value"], flat["low"], flat["high"], flat["n"]) == (None, None, None, 0)
    assert flat["reason"] == "wanted 90 GiB"


def test_encoding_is_an_array_of_plain_objects(build):
    record = build(
        conditions={"op": "decode_step", "causal": True, "optimisations": ("a", "b")},
        device_class=DeviceClass(platform="x", model="é", count=2),
    )
    (flat,) = json.loads(encode([record]))
    assert flat["conditions"] == {"op": "decode_step", "causal": True, "optimisations": ["a", "b"]}
    assert flat["device_class"]["count"] == 2
    assert json.loads(encode([])) == []
