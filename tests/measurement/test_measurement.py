"""Verdicts of claims against records, case by case."""

import msgspec
import pytest

from zenrepro import claims as claims_module
from zenrepro.audit.measurement import judge
from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status

H100 = "nvidia-h100-sxm"
POINT = {"op": "attention", "model": "m", "batch": 4, "seq_len": 1024}


def claim(name, printed, **given):
    out = {
        "id": name, "where": {"part": "table", "line": 1}, "kind": "scalar",
        "quantity": "throughput", "metric": "rate", "printed": printed, "unit": "token/s",
        "conditions": {**POINT, "platform": H100}, **given,
    }  # fmt: skip
    if printed is not None:
        out["value"] = float(printed.replace(",", ""))
    return out


def record(value, platform=H100, **given):
    samples = value if isinstance(value, list) else [value * f for f in (0.99, 1.0, 1.01) * 3]
    out = {
        "experiment": "attention", "quantity": "throughput", "metric": "rate",
        "implementation": "torch.naive", "conditions": POINT, "unit": "token/s",
        "status": Status.OK, "kind": Kind.MEASURED, "origin": Origin.PEER,
        "machine": f"{platform}-lab", "environment": Environment(), "samples": samples,
        "device_class": DeviceClass(platform=platform, model=platform), **given,
    }  # fmt: skip
    if out["status"] not in (Status.OK, Status.DISTURBED):
        out["samples"] = []
    return Record(**out)


def verdicts(claims, records, names=None):
    publication = claims_module.parse(
        {"schema": 1, "report": {"title": "t", "version": "1"}, "claims": claims,
         "implementations": names or {}}, "test",
    )  # fmt: skip
    return {m.claim: m for m in judge(publication, records)}


def verdict(a_claim, *records, names=None):
    return verdicts([a_claim], records, names)[a_claim["id"]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1000, "reproduced"), (1100, "reproduced"), (920, "reproduced"), (1500, "exceeded"),
     (700, "not reproduced")],
)  # fmt: skip
def test_a_rate_within_above_and_below(value, expected):
    found = verdict(claim("c", "1,001"), record(value))
    assert found.verdict == expected
    assert found.value == pytest.approx(value)
    assert found.ratio == pytest.approx(value / 1001)
    assert found.unit == "token/s"
    assert found.record.implementation == "torch.naive"


@pytest.mark.parametrize(("value", "expected"), [(0.5, "exceeded"), (2.0, "not reproduced")])
def test_of_times_the_lower_is_better_and_units_convert(value, expected):
    given = {"quantity": "latency", "metric": "tpot"}
    found = verdict(claim("c", "1.00", unit="ms/token", **given),
                    record(value * 1000, unit="us/token", **given))  # fmt: skip
    assert found.verdict == expected
    assert found.value == pytest.approx(value)


def test_energy_is_better_by_its_unit():
    given = {"quantity": "energy_per_token", "metric": "rate"}
    per_joule = claim("c", "10.0", unit="token/J", **given)
    assert verdict(per_joule, record(20, unit="token/J", **given)).verdict == "exceeded"
    # Joules a token have another dimension: not comparable as they stand.
    assert verdict(per_joule, record(20, unit="J/token", **given)).verdict == "not run"
    per_token = claim("c", "10.0", unit="J/token", **given)
    assert verdict(per_token, record(20, unit="J/token", **given)).verdict == "not reproduced"


def test_the_tolerance_is_the_claims_own():
    assert verdict(claim("c", "1,000", tolerance=0.6), record(650)).verdict == "reproduced"
    assert verdict(claim("c", "1,001", tolerance=0.0), record(900)).verdict == "not reproduced"


def test_printed_digits_stand_for_all_that_rounds_to_them():
    # 1,000 may be anything from 500 to 2,000: all its zeros may be rounding.
    assert verdict(claim("c", "1,000", tolerance=0.0), record(1600)).verdict == "reproduced"
    assert verdict(claim("c", "1,001", tolerance=0.0), record(1600)).verdict == "exceeded"


@pytest.mark.parametrize(
    ("relation", "value", "expected"),
    [("≥", 5000, "reproduced"), ("≥", 500, "not reproduced"), ("≤", 500, "reproduced"),
     ("≤", 5000, "exceeded"), ("≈", 5000, "exceeded")],
)  # fmt: skip
def test_one_sided_claims(relation, value, expected):
    assert verdict(claim("c", "1,001", relation=relation), record(value)).verdict == expected


def test_an_interval_that_is_claimed():
    given = claim("c", None, kind="interval", value=[10, 20])
    assert verdict(given, record(15)).verdict == "reproduced"
    assert verdict(given, record(30)).verdict == "exceeded"


def test_another_device_class_prints_value_and_ratio():
    found = verdict(claim("c", "1,001"), record(3003, platform="nvidia-h200-sxm"))
    assert found.verdict == "different hardware"
    assert found.ratio == pytest.approx(3.0)
    assert found.record is not None


def test_more_chips_are_another_class():
    eight = DeviceClass(platform=H100, model="x", count=8)
    found = verdict(claim("c", "1,001"), record(1001, device_class=eight))
    assert found.verdict == "reproduced"  # the claim does not say how many
    one = claim("c", "1,001", conditions={**POINT, "platform": H100, "chips": 1})
    assert verdict(one, record(1001)).verdict == "reproduced"
    assert verdict(one, record(1001, device_class=eight)).verdict == "not run"


def test_hardware_that_the_report_does_not_name():
    found = verdict(claim("c", "1,001", conditions=POINT), record(1001))
    assert (found.verdict, found.reason) == (
        "different hardware", "the report names no hardware for it",
    )  # fmt: skip


def test_what_any_machine_can_settle():
    given = {"quantity": "size", "metric": "weights", "unit": "GB"}
    counted = record([144.2], kind=Kind.COUNTED, platform="cpu", **given)
    assert verdict(claim("c", "144", **given), counted).verdict == "reproduced"
    assert verdict(claim("c", "72", **given), counted).verdict == "not reproduced"


@pytest.mark.parametrize("kind", [Kind.PREDICTED, Kind.COMPILED, Kind.COUNTED])
def test_no_other_kind_stands_in_for_a_measurement(kind):
    assert verdict(claim("c", "1,001"), record(1001, kind=kind)).verdict == "not run"


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_a_record_without_a_sound_value_is_not_run_with_its_status(status):
    found = verdict(claim("c", "1,001"), record(1001, status=status, reason="so it was"))
    assert (found.verdict, found.reason) == ("not run", f"{status}: so it was")
    assert found.value is None
    # A sound one beside it wins.
    beside = record(1001, implementation="jax.xla")
    bad = record(1001, status=status, reason="r")
    assert verdict(claim("c", "1,001"), bad, beside).verdict == "reproduced"


def test_the_reason_names_what_the_nearest_record_differs_in():
    far = record(1001, conditions={**POINT, "seq_len": 64, "batch": 1})
    near = record(1001, conditions={**POINT, "seq_len": 64})
    found = verdict(claim("c", "1,001"), far, near)
    assert found.verdict == "not run"
    assert found.reason.endswith("nearest record has 64 seq_len instead of 1024")


def test_a_condition_may_be_relaxed_and_is_reported():
    other = record(1001, conditions={**POINT, "seq_len": 64})
    found = verdict(claim("c", "1,001", relax=["seq_len"]), other)
    assert (found.verdict, found.relaxed) == ("reproduced", {"seq_len": 64})
    # One that agrees is preferred to one that does not.
    found = verdict(claim("c", "1,001", relax=["seq_len"]), other, record(1050))
    assert found.relaxed == {}


def test_match_names_what_must_agree_and_lets_the_rest_be_unrecorded():
    bare = record(1001, conditions={"op": "attention", "batch": 4, "seq_len": 1024})
    assert verdict(claim("c", "1,001"), bare).verdict == "not run"
    found = verdict(claim("c", "1,001", match=["op", "batch"]), bare)
    assert (found.verdict, found.relaxed) == ("reproduced", {"model": None})
    wrong = record(1001, conditions={**POINT, "model": "other"})
    assert verdict(claim("c", "1,001", match=["op", "batch"]), wrong).verdict == "not run"


def test_what_the_claim_leaves_open_any_record_may_fill():
    fills = [
        record(v, conditions={**POINT, "dtype": d}) for v, d in ((300, "fp32"), (1001, "fp16"))
    ]
    found = verdict(claim("c", "1,001"), *fills)
    assert found.verdict == "reproduced"
    assert found.candidates == 2
    assert found.record.conditions["dtype"] == "fp16"


@pytest.mark.parametrize(
    ("named", "measured", "names", "runs"),
    [
        ("naive", "torch.naive", None, True),
        ("naive", "jax.naive", None, True),
        ("torch.naive", "torch.naive", None, True),
        ("torch.naive", "jax.naive", None, False),
        ("flash", "torch.sdpa_flash", None, False),
        ("flash", "torch.sdpa_flash", {"flash": ["torch.sdpa_flash"]}, True),
        ("naive", "torch.naive", {"naive": ["torch.eager"]}, False),
    ],
)
def test_implementations(named, measured, names, runs):
    given = claim("c", "1,001", implementation=named)
    found = verdict(given, record(1001, implementation=measured), names=names)
    assert (found.verdict == "reproduced") is runs
    relaxed = verdict(
        {**given, "relax": ["implementation"]}, record(1001, implementation=measured), names=names
    )
    assert relaxed.verdict == "reproduced"
    assert relaxed.relaxed == ({} if runs else {"implementation": measured})


def test_a_reading_may_name_another_implementation_and_metric():
    fused = claim(
        "c", "1,000", implementation="fused",
        readings=[
            {"text": "all of it", "conditions": {"op": "mla_prefill"}},
            {"text": "a part", "implementation": "plain", "metric": "part",
             "conditions": {"op": "mla_prefill"}},
        ],
    )  # fmt: skip
    names = {"fused": ["torch.fused"], "plain": ["torch.fa3"]}
    mla = {**POINT, "op": "mla_prefill"}
    # What another implementation does as the claim stands says nothing of it.
    assert verdict(fused, record(1000, implementation="torch.fa3"), names=names).value is None
    part = record(1000, implementation="torch.fa3", metric="part", conditions=mla)
    found = verdict(fused, part, names=names)
    assert (found.verdict, found.reading) == ("reproduced", "a part")
    whole = record(400, implementation="torch.fused", conditions=mla)
    found = verdict(fused, whole, names=names)
    assert (found.verdict, found.reading) == ("not reproduced", "all of it")
    assert verdict(fused, whole, part, names=names).reading == "a part"


def test_a_reading_may_hold_where_the_words_do_not():
    given = claim(
        "c", "1,001",
        readings=[{"text": "for each sequence", "conditions": {"batch": 1}}, {"text": "idle"}],
    )  # fmt: skip
    four, one = record(5000), record(1001, conditions={**POINT, "batch": 1})
    found = verdict(given, four, one)
    assert (found.verdict, found.reading) == ("reproduced", "for each sequence")
    assert verdict(given, four).reading is None


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("categorical", {"value": "x"}),
     ("trend", {}),
     ("formula", {"formula": {"left": "a", "relation": "=", "right": "b",
                              "symbols": {"a": {"meaning": "a"}, "b": {"meaning": "b"}}}})],
)  # fmt: skip
def test_what_prints_no_number_is_not_run_with_a_reason(kind, extra):
    found = verdict(claim("c", None, kind=kind, **extra), record(1))
    assert found.verdict == "not run"
    assert found.reason


def test_a_condition_that_is_stated_as_a_number_is_not_a_measurement():
    given = claim("c", "32", quantity="count", metric="batch", unit="count")
    assert verdict(given, record(1)).reason == "states a condition"


def test_a_parts_speed_is_not_the_wholes():
    whole = claim("c", "1,001", conditions={"platform": H100, "model": "m"})
    found = verdict(whole, record(1001))
    assert (found.verdict, found.reason[:17]) == ("not run", "only single ops w")
    step = record(1001, conditions={"op": "decode_step", "model": "m"})
    assert verdict(whole, record(9000), step).verdict == "reproduced"
    assert verdict({**whole, "relax": ["op"]}, record(1001)).verdict == "reproduced"


def test_the_length_of_the_sequence_in_decode_is_that_of_its_cache():
    decode = {"op": "attention", "model": "m", "batch": 4, "cache_len": 1024, "query_len": 1}
    assert verdict(claim("c", "1,001"), record(1001, conditions=decode)).verdict == "reproduced"
    short = {**decode, "cache_len": 512}
    assert verdict(claim("c", "1,001"), record(1001, conditions=short)).verdict == "not run"


# -- ratios --------------------------------------------------------------------------------------

FAST, SLOW = {"implementation": "torch.fast"}, {"implementation": "torch.naive"}


def speedup(printed="2.50", **given):
    return [
        claim("slow", "1,001", implementation="naive"),
        claim("fast", "2,502", implementation="fast"),
        claim("c", printed, **{"kind": "ratio", "quantity": "ratio", "metric": "speedup",
              "unit": "x", "of": ["fast"], "baseline": "slow", **given}),
    ]  # fmt: skip


def ratio(claims, *records):
    return verdicts(claims, records)["c"]


def test_a_speedup_from_the_records_of_its_operands():
    found = ratio(speedup(), record(2500, **FAST), record(1000, **SLOW))
    assert found.verdict == "reproduced"
    assert found.value == pytest.approx(2.5)
    assert found.low < 2.5 < found.high
    assert found.record.implementation == "torch.fast"
    assert [r.implementation for r in found.against] == ["torch.naive"]
    assert ratio(speedup(), record(5000, **FAST), record(1000, **SLOW)).verdict == "exceeded"
    assert ratio(speedup(), record(900, **FAST), record(1000, **SLOW)).verdict == "not reproduced"


def test_a_ratio_compares_across_classes_marked():
    found = ratio(speedup(), record(25, platform="cpu", **FAST), record(10, platform="cpu", **SLOW))
    assert (found.verdict, found.across) == ("reproduced", True)
    assert ratio(speedup(), record(2500, **FAST), record(1000, **SLOW)).across is False


def test_operands_must_agree_in_what_the_report_leaves_open():
    fp16, fp32 = ({**POINT, "dtype": d} for d in ("fp16", "fp32"))
    slow = record(1000, conditions=fp32, **SLOW)
    found = ratio(speedup(), record(2500, conditions=fp16, **FAST), slow)
    assert found.verdict == "not run"
    assert "different conditions" in found.reason
    found = ratio(
        speedup(), record(9000, conditions=fp16, **FAST), slow,
        record(2500, conditions=fp32, **FAST),
    )  # fmt: skip
    assert found.value == pytest.approx(2.5)


def test_operands_of_two_backends_are_no_ratio():
    found = ratio(
        speedup(),
        record(2500, implementation="jax.fast"),
        record(1000, implementation="torch.naive"),
    )
    assert found.verdict == "not run"


def test_operands_of_two_machines_are_no_ratio():
    made = verdicts(speedup(), [record(2500, **FAST), record(1000, platform="cpu", **SLOW)])
    assert made["c"].verdict == "not run"


def test_times_give_the_speedup_the_other_way_round():
    given = {"quantity": "time", "metric": "call", "unit": "s"}
    made = [{**c, **given} if c["id"] != "c" else c for c in speedup()]
    found = ratio(made, record(0.4, **FAST, **given), record(1.0, **SLOW, **given))
    assert found.value == pytest.approx(2.5)


def test_a_missing_baseline_says_so():
    found = ratio(speedup(), record(2500, **FAST))
    assert found.verdict == "not run"
    assert "naive" in found.reason
    assert "baseline" in found.reason
    found = ratio(speedup(), record(2500, **FAST), record(1, status=Status.OOM, reason="r", **SLOW))
    assert found.reason == "oom: r (its baseline)"
    alone = speedup(of=[], baseline=None)
    assert "relative" in ratio(alone, record(2500, **FAST)).reason


@pytest.mark.parametrize(
    ("metric", "unit", "printed", "value"),
    [("ratio", "x", "2.50", 2.5), ("increase", "%", "150", 150.0),
     ("reduction_factor", "x", "0.40", 0.4), ("time_share", "%", "40", 40.0),
     ("share", "%", "250", 250.0), ("reduction", "%", "-150", -150.0)],
)  # fmt: skip
def test_every_derivation(metric, unit, printed, value):
    kind = "share" if "share" in metric else "ratio"
    made = speedup(printed, metric=metric, unit=unit, kind=kind)
    found = ratio(made, record(2500, **FAST), record(1000, **SLOW))
    assert found.value == pytest.approx(value)
    assert found.verdict == "reproduced"
    assert found.low <= found.value <= found.high


def test_differences_and_sums_keep_their_unit():
    made = speedup("1,501", metric="difference", unit="token/s", quantity="throughput")
    made[2]["id"] = "d"
    found = verdicts(made, [record(2500, **FAST), record(1000, **SLOW)])["d"]
    assert (found.value, found.verdict) == (pytest.approx(1500), "reproduced")
    made = speedup("3,501", metric="sum", unit="token/s", of=["fast", "slow"], baseline=None)
    found = ratio(made, record(2500, **FAST), record(1000, **SLOW))
    assert found.value == pytest.approx(3500)


def test_of_several_operands_the_ratio_is_any_between_them():
    made = speedup("3.00", of=["fast", "faster"])
    made.insert(0, claim("faster", "4,004", implementation="faster"))
    found = ratio(made, record(2500, **FAST), record(1000, **SLOW),
                  record(4000, implementation="torch.faster"))  # fmt: skip
    assert found.value == pytest.approx(3.25)
    assert found.low < 2.5
    assert found.high > 4.0
    assert len(found.against) == 2


def test_a_rate_a_chip_divides_by_the_stated_chips():
    chips = {**POINT, "platform": H100, "chips": 4}
    made = [
        claim("total", "4,004", conditions=chips),
        claim("chips", "4", quantity="count", metric="chips", unit="count", conditions=chips),
        claim("c", "1,001", kind="ratio", metric="ratio", unit="token/s/chip",
              of=["total"], baseline="chips", conditions=chips),
    ]  # fmt: skip
    four = DeviceClass(platform=H100, model="x", count=4)
    found = ratio(made, record(4004, device_class=four))
    assert found.value == pytest.approx(1001)
    assert found.verdict == "reproduced"
    assert found.across is False


def test_operands_of_the_wrong_dimension_are_told():
    made = speedup(unit="token/s", metric="ratio")
    found = ratio(made, record(2500, **FAST), record(1000, **SLOW))
    assert found.verdict == "not run"
    assert "token/s" in found.reason


def test_a_ratio_of_ratios_and_a_circle():
    made = speedup()
    made.append(claim("cc", "1.00", kind="ratio", quantity="ratio", metric="ratio", unit="x",
                      of=["c"], baseline="c"))  # fmt: skip
    found = verdicts(made, [record(2500, **FAST), record(1000, **SLOW)])
    assert found["cc"].value == pytest.approx(1.0)
    circle = speedup(of=["c"], baseline="c")
    assert "circle" in ratio(circle, record(2500, **FAST)).reason


# -- ceilings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3.0, "reproduced"), (1.0, "reproduced"), (3.6, "reproduced"), (5.0, "exceeded")],
)
def test_a_stated_peak_is_an_upper_limit(value, expected):
    given = claim("c", "3.35", quantity="bandwidth", metric="peak", unit="TB/s",
                  conditions={"platform": H100})  # fmt: skip
    made = {"quantity": "bandwidth", "metric": "rate", "unit": "GB/s"}
    found = verdict(
        given,
        record(value * 1000, conditions={"op": "copy"}, **made),
        record(value * 500, conditions={"op": "read"}, **made),
        record(9000, conditions={"op": "attention"}, **made),
    )
    assert found.verdict == expected
    assert found.value == pytest.approx(value)
    assert f"{value / 3.35:.0%}" in found.reason
    elsewhere = record(1000, platform="cpu", conditions={"op": "copy"}, **made)
    assert verdict(given, elsewhere).verdict == "different hardware"


def test_a_matrix_rate_is_tried_in_its_own_format():
    given = claim("c", "989", quantity="flop_rate", metric="dense", unit="TFLOP/s",
                  conditions={"platform": H100, "dtype": "bf16"})  # fmt: skip
    made = {"quantity": "flop_rate", "metric": "dense", "unit": "TFLOP/s"}
    bf16, fp8 = ({"op": "matmul", "dtype": d} for d in ("bf16", "fp8_e4m3"))
    assert verdict(given, record(1500, conditions=fp8, **made)).verdict == "not run"
    found = verdict(given, record(700, conditions=bf16, **made),
                    record(1500, conditions=fp8, **made))  # fmt: skip
    assert found.value == pytest.approx(700)


def test_utilisation_is_a_share_of_the_machines_own_ceiling():
    compute = claim("c", "68.0", quantity="utilisation", metric="compute", unit="%")
    rate = {"quantity": "flop_rate", "metric": "rate", "unit": "TFLOP/s"}
    bf16 = record(350, conditions={**POINT, "dtype": "bf16"}, **rate)
    top = {"quantity": "flop_rate", "metric": "dense", "unit": "TFLOP/s"}
    ceilings = [
        record(value, conditions={"op": "matmul", "dtype": dtype, "m": 1}, **top)
        for value, dtype in ((500, "bf16"), (300, "fp32"))
    ]
    found = verdict(compute, bf16, *ceilings)
    assert (found.value, found.verdict) == (pytest.approx(70.0), "reproduced")
    assert found.reason == "of the ceiling measured on this machine"
    assert [r.conditions["op"] for r in (found.record, *found.against)] == ["attention", "matmul"]
    assert verdict(compute, bf16).reason == "no flop_rate ceiling was measured"
    assert verdict(compute, *ceilings).verdict == "not run"
    # A utilisation that was recorded as such comes first.
    own = record(50, quantity="utilisation", metric="compute", unit="%")
    assert verdict(compute, bf16, own, *ceilings).value == pytest.approx(50.0)


def test_utilisation_of_bandwidth_knows_no_format():
    given = claim("c", "68.0", quantity="utilisation", metric="bandwidth", unit="%")
    rate = {"quantity": "bandwidth", "metric": "rate", "unit": "GB/s"}
    decode = record(2000, conditions={**POINT, "dtype": "bf16"}, **rate)
    copy = record(4000, quantity="bandwidth", metric="peak", unit="GB/s",
                  conditions={"op": "copy", "dtype": "fp32"})  # fmt: skip
    found = verdict(given, decode, copy)
    assert (found.value, found.verdict) == (pytest.approx(50.0), "not reproduced")


# -- the whole -----------------------------------------------------------------------------------


def test_every_claim_gets_one_verdict_on_every_machine():
    records = [record(2500, **FAST), record(1000, platform="cpu", **SLOW)]
    publication = claims_module.parse(
        {"schema": 1, "report": {"title": "t", "version": "1"}, "claims": speedup()}, "test"
    )
    found = judge(publication, records)
    assert [(m.machine, m.claim) for m in found] == [
        (machine, name) for machine in ("cpu-lab", f"{H100}-lab") for name in ("slow", "fast", "c")
    ]
    assert judge(publication, []) == []
    for measurement in found:
        assert (measurement.value is None) == (measurement.verdict == "not run")
        assert measurement.reason or measurement.verdict != "not run"


def test_names_and_order_do_not_matter():
    records = [record(2500, **FAST), record(1000, **SLOW)]
    found = verdicts(speedup(), records)
    renamed = msgspec.json.decode(
        msgspec.json.encode(speedup()).replace(b'"fast"', b'"x"').replace(b'"slow"', b'"y"')
    )
    renamed[1]["implementation"] = "fast"
    again = verdicts(renamed[::-1], records[::-1])
    assert {m.verdict for m in again.values()} == {m.verdict for m in found.values()}
    assert again["c"].value == found["c"].value
