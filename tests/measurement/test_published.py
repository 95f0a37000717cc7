"""Records that say exactly what the report prints: verdicts on the project's own claims.

The audit computes derived claims from printed numbers, measurement from records. Where the records
repeat the printed numbers, the two must agree.
"""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro import audit, claims, specs
from zenrepro.audit.measurement import ANY_HARDWARE, ORDER, judge
from zenrepro.conditions import KEYS
from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status

DATA = Path(__file__).resolve().parents[2] / "data"
OPS = {("bandwidth", "peak"): "copy", ("flop_rate", "dense"): "matmul"}
COUNTED = ("count", "size")


def is_condition(claim):
    return claim.quantity == "count" and claim.metric in KEYS


def repeated(publication, claim):
    """The record that a machine of the claimed class would write if the claim were exact."""
    conditions = {key: value for key, value in claim.conditions.items() if key != "platform"}
    op = OPS.get((claim.quantity, claim.metric))
    if op:
        conditions["op"] = op
    platform = claim.conditions.get("platform", "nowhere")
    named = publication.implementations.get(claim.implementation or "")
    return Record(
        experiment="repeated", quantity=claim.quantity, metric=claim.metric,
        implementation=named[0] if named else f"torch.{claim.implementation or 'any'}",
        conditions=conditions, unit=claim.unit, status=Status.OK,
        kind=Kind.COUNTED if claim.quantity in COUNTED else Kind.MEASURED, origin=Origin.OURS,
        machine=platform,
        device_class=DeviceClass(platform=platform, model=platform,
                                 count=claim.conditions.get("chips", 1)),
        environment=Environment(), samples=[float(claim.value)] * 8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def publication():
    return claims.load(DATA / "published" / "zen.yaml")


@pytest.fixture(scope="module")
def best(publication):
    """The best verdict of each claim over all machines. One machine a platform."""
    records = {}
    for claim in publication.claims:
        if claim.kind == "scalar" and not is_condition(claim):
            made = repeated(publication, claim)
            records.setdefault(made.identity(), made)
    out = {}
    for measurement in judge(publication, records.values()):
        rank = ORDER.index(measurement.verdict)
        if measurement.claim not in out or rank < ORDER.index(out[measurement.claim]):
            out[measurement.claim] = measurement.verdict
    return out


def test_every_number_is_reproduced_by_itself(publication, best):
    numbers = [c for c in publication.claims if c.kind in ("scalar", "interval")]
    assert len(numbers) > 100
    for claim in numbers:
        expected = "not run" if is_condition(claim) else "reproduced"
        assert best[claim.id] == expected, claim.id


def test_derived_claims_agree_with_the_audit(publication, best):
    found = audit.run(publication, specs.load(DATA / "hardware")).verdicts
    derived = [claim for claim in publication.claims if claim.kind in ("ratio", "share")]
    seen = {found[claim.id] for claim in derived}
    assert {"consistent", "inconsistent"} <= seen
    for claim in derived:
        if found[claim.id] == "consistent":
            assert best[claim.id] == "reproduced", claim.id
        if found[claim.id] == "inconsistent":
            assert best[claim.id] in ("not reproduced", "exceeded"), claim.id


QUANTITIES = [
    ("throughput", "rate", "token/s"), ("latency", "tpot", "ms/token"), ("size", "weights", "GB"),
    ("energy_per_token", "rate", "token/J"), ("bandwidth", "peak", "GB/s"),
    ("flop_rate", "dense", "TFLOP/s"), ("flop_rate", "rate", "FLOP/s"), ("quality", "mmlu", "%"),
    ("utilisation", "compute", "%"), ("memory", "capacity", "B"), ("ratio", "speedup", "x"),
]  # fmt: skip
MODELS = ["zen-mode-7b", "zen-mode-72b"]
PLATFORMS = ["nvidia-h100-sxm", "nvidia-a100-sxm-80gb", "nvidia-h200-sxm", "cpu-x"]


@st.composite
def any_record(draw):
    quantity, metric, symbol = draw(st.sampled_from(QUANTITIES))
    conditions = {
        "op": draw(st.sampled_from(["attention", "moe_layer", "copy", "matmul", "serve"])),
        "model": draw(st.sampled_from(MODELS)),
        "batch": draw(st.sampled_from([1, 32, 64])),
        "dtype": draw(st.sampled_from(["fp16", "bf16"])),
        "seq_len": draw(st.sampled_from([64, 4096])),
        "policy": draw(st.sampled_from(["fp16", "int4"])),
    }
    kept = draw(st.sets(st.sampled_from(sorted(conditions))))
    status = draw(st.sampled_from(list(Status)))
    samples = draw(st.lists(st.floats(0, 1e15), min_size=1, max_size=9))
    return Record(
        experiment="any", quantity=quantity, metric=metric, unit=symbol,
        implementation=draw(st.sampled_from(["torch.naive", "jax.fused", "torch.sdpa_flash"])),
        conditions={key: conditions[key] for key in kept}, status=status,
        kind=draw(st.sampled_from(list(Kind))), origin=Origin.OURS,
        machine=draw(st.sampled_from(["one", "two"])), environment=Environment(),
        device_class=DeviceClass(platform=draw(st.sampled_from(PLATFORMS)), model="m"),
        samples=samples if status in (Status.OK, Status.DISTURBED) else [],
        reason="so it was",
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(any_record(), max_size=25))
def test_any_records_give_sound_verdicts(publication, records):
    machines = {record.machine for record in records}
    found = judge(publication, records)
    assert len(found) == len(machines) * len(publication.claims)
    for one in found:
        if one.verdict == "not run":
            assert one.reason
            assert (one.value, one.ratio, one.record) == (None, None, None)
            continue
        assert one.low <= one.value <= one.high
        assert all(math.isfinite(x) for x in (one.low, one.value, one.high))
        assert {record.machine for record in (one.record, *one.against)} == {one.machine}
        assert all(r.status is Status.OK for r in (one.record, *one.against))
        claim = publication.by_id()[one.claim]
        if claim.kind == "scalar" and one.verdict != "different hardware":
            same = one.record.device_class.platform == claim.conditions.get("platform")
            assert same or claim.quantity in ANY_HARDWARE
