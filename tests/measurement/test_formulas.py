"""What records say of formulas: exponents, caches and exactness, case by case."""

import msgspec
import pytest

from zenrepro import claims as claims_module
from zenrepro.audit.measurement import judge
from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status

LENGTHS = (512, 1024, 2048, 4096, 8192)


def order(right, quantity="traffic", metric="device", **given):
    method = {"traffic": "attention-traffic", "memory": "attention-intermediates"}.get(quantity)
    return {
        "id": "c", "where": {"part": "formula", "line": 1}, "kind": "formula",
        "quantity": quantity, "metric": metric, "implementation": "naive",
        "method": method or "attention-flops", "conditions": {"op": "attention"},
        "formula": {
            "left": "moved", "relation": "order", "right": right,
            "symbols": {
                "moved": {"meaning": "m", "unit": "FLOP" if quantity == "count" else "B"},
                "N": {"meaning": "length"}, "d": {"meaning": "width"},
            },
        },
        **given,
    }  # fmt: skip


def one(length, value, **given):
    conditions = {"op": "attention", "batch": 1, "heads": 4, "dtype": "bf16", "seq_len": length}
    out = {
        "experiment": "traffic", "quantity": "traffic", "metric": "device",
        "implementation": "torch.naive", "unit": "B", "status": Status.OK, "kind": Kind.MEASURED,
        "origin": Origin.OURS, "machine": "m", "environment": Environment(),
        "device_class": DeviceClass(platform="p", model="p"), "samples": [value],
        "conditions": conditions | given.pop("conditions", {}), **given,
    }  # fmt: skip
    if out["status"] is not Status.OK:
        out["samples"] = []
    return Record(**out)


def grown(power, lengths=LENGTHS, **given):
    return [one(n, 10.0 * n**power, **given) for n in lengths]


def verdict(a_claim, records, names=None):
    publication = claims_module.parse(
        {"schema": 1, "report": {"title": "t", "version": "1"}, "claims": [a_claim],
         "implementations": names or {}}, "test",
    )  # fmt: skip
    (found,) = judge(publication, records)
    return found


@pytest.mark.parametrize(
    ("stated", "power", "expected"),
    [
        ("N**2", 2.0, "reproduced"),
        ("N**2 * d", 2.0, "reproduced"),
        ("N", 1.05, "reproduced"),
        ("N", 2.0, "not reproduced"),
        ("N", 1.3, "not reproduced"),
        ("N**2", 1.0, "exceeded"),  # less traffic than stated is better
        ("N + N**2", 2.0, "reproduced"),
    ],
)
def test_growth_with_the_length(stated, power, expected):
    found = verdict(order(stated), grown(power))
    assert found.verdict == expected
    assert found.value == pytest.approx(power)
    assert (found.power_of, found.n, found.unit) == ("N", 4, "1")
    assert found.reason == "power of N over 1024 to 8192 tokens, 4 lengths"
    assert len(found.against) == 3


def test_a_bend_is_told_by_its_interval():
    found = verdict(order("N"), [one(n, 1e6 * n + n**2 * 200) for n in LENGTHS])
    assert found.low < found.value < found.high
    assert found.verdict == "reproduced" or found.low > 1.1
    assert verdict(order("N"), [one(n, n + n**2) for n in LENGTHS]).verdict == "not reproduced"


def test_batches_are_divided_out_and_other_conditions_are_not():
    batched = [
        one(n, 32768 / n * n**2.0, conditions={"batch": 32768 // n}) for n in LENGTHS
    ]  # 32768 tokens each: the bytes grow with N, those of a sequence with N²
    assert verdict(order("N**2"), batched).verdict == "reproduced"
    mixed = [one(n, n**2.0, conditions={"heads": n // 256}) for n in LENGTHS]
    found = verdict(order("N**2"), mixed)
    assert found.verdict == "not run"
    assert "not at 3 lengths with all else equal" in found.reason


def test_what_cannot_be_told_is_not_run_and_says_why():
    other = verdict(order("N"), grown(1.0, quantity="traffic", metric="l2"))
    assert (other.verdict, other.reason) == ("not run", "no traffic (device) was measured")
    named = verdict(order("N", implementation="flash_attention_3"), grown(1.0))
    assert named.reason == "no implementation of flash_attention_3 was measured"
    few = verdict(order("N"), grown(1.0, lengths=(512, 1024)))
    assert "not at 3 lengths" in few.reason
    near = verdict(order("N"), grown(1.0, lengths=(512, 513, 514)))
    assert "over a factor of 4" in near.reason
    gone = grown(1.0, status=Status.UNSUPPORTED, reason="no hardware counters: why")
    assert verdict(order("N"), gone).reason == "unsupported: no hardware counters: why"
    counted = grown(1.0, kind=Kind.COUNTED)  # counting does not stand in for measuring traffic
    assert verdict(order("N"), counted).reason == "no traffic (device) was measured"
    apart = [one(n, float(n), conditions={"op": "mla_prefill"}) for n in LENGTHS]
    assert verdict(order("N"), apart).verdict == "not run"


def test_counting_settles_operations():
    made = [
        one(n, 4.0 * n * n * 128, quantity="count", metric="flops", unit="FLOP", kind=Kind.COUNTED)
        for n in LENGTHS
    ]
    found = verdict(order("N**2 * d", "count", "flops"), made)
    assert (found.verdict, found.power_of) == ("reproduced", "N")
    assert verdict(order("N * d", "count", "flops"), made).verdict == "not reproduced"


def test_a_reading_of_another_quantity_is_tried():
    reading = {"text": "the footprint", "quantity": "memory", "metric": "working"}
    both = [*grown(2.0), *grown(1.0, quantity="memory", metric="working")]
    found = verdict(order("N", readings=[reading]), both)
    assert (found.verdict, found.reading) == ("reproduced", "the footprint")
    assert verdict(order("N"), both).verdict == "not reproduced"


def test_the_publications_names_are_followed():
    records = grown(1.0, implementation="torch.fa3")
    a_claim = order("N", implementation="flash_attention_3")
    assert verdict(a_claim, records).verdict == "not run"
    found = verdict(a_claim, records, {"flash_attention_3": ["torch.fa3"]})
    assert found.verdict == "reproduced"


# -- caches ----------------------------------------------------------------------------------------

SYMBOLS = {name: {"meaning": name} for name in ("ratio", "h", "d_k", "d_c", "d_r")}


def latent(printed="6", right="h * d_k / d_c", readings=()):
    def formula(side):
        return {"left": "ratio", "relation": "=", "right": side, "symbols": SYMBOLS}

    return {
        "id": "c", "where": {"part": "formula", "line": 1}, "kind": "formula",
        "quantity": "ratio", "metric": "reduction_factor", "printed": printed,
        "value": float(printed), "unit": "x", "relation": "≈", "method": "latent-cache",
        "formula": formula(right),
        "readings": [{"text": text, "formula": formula(side)} for text, side in readings],
    }  # fmt: skip


def cache(form, size, heads, width, value_width, model="7b", **conditions):
    given = {
        "model": model, "dtype": "bf16", "kv_heads": heads, "head_dim": width,
        "value_dim": value_width, **conditions,
    }  # fmt: skip
    made = one(
        1, size, quantity="size", metric="cache", unit="B/token", kind=Kind.COUNTED,
        implementation=f"torch.{form}",
    )  # fmt: skip
    return msgspec.structs.replace(made, conditions=given)


SEVEN = [
    cache("mha", 24 * 256 * 2.0, 24, 128, 128),
    cache("gqa", 8 * 256 * 2.0, 8, 128, 128),
    cache("mla", 576 * 2.0, 1, 576, 512),
    cache("mla", 656.0, 1, 576, 512, format="fp8_e4m3"),
]
LARGE = [
    cache("mha", 64 * 256 * 2.0, 64, 128, 128, "72b"), cache("mla", 1152.0, 1, 576, 512, "72b"),
]  # fmt: skip


def test_six_is_keys_alone_of_the_one_model_that_has_it():
    found = verdict(latent(), [*SEVEN, *LARGE])
    assert (found.verdict, found.value, found.candidates) == ("reproduced", 6.0, 2)
    assert found.reason == (
        "7b: 6 times by keys over the latent, 12 by keys and values, 10.7 by all that is kept"
    )
    assert found.record.implementation == "torch.mla"
    assert verdict(latent(), LARGE).verdict != "reproduced"


@pytest.mark.parametrize(
    ("printed", "side"), [("12", "2 * h * d_k / d_c"), ("10.7", "2 * h * d_k / (d_c + d_r)")]
)
def test_other_readings_give_other_numbers(printed, side):
    given = latent(printed, readings=[("other", side)])
    found = verdict(given, SEVEN)
    assert (found.verdict, found.reading) == ("reproduced", "other")
    assert verdict(latent(printed), SEVEN).verdict != "reproduced"


def test_without_counted_caches_nothing_is_said():
    for records in ([], SEVEN[:2], [SEVEN[0], SEVEN[3]]):
        found = verdict(latent(), [*records, one(512, 1.0)])
        assert (found.verdict, found.reason) == ("not run", "no size (cache) was counted")
    strange = verdict(latent(right="h * q"), SEVEN)
    assert strange.reason == "its symbols are none that a cache has"


# -- exactness -------------------------------------------------------------------------------------


def exact():
    return {
        "id": "c", "where": {"part": "formula", "line": 1}, "kind": "formula",
        "quantity": "error", "metric": "absolute", "implementation": "flash_attention_3",
        "method": "tiled-softmax", "conditions": {"op": "attention"},
        "formula": {"left": "", "relation": "=", "right": "", "symbols": {}},
    }  # fmt: skip


def error(value, length=512, **given):
    given = {"implementation": "torch.fa3", "quantity": "error", "metric": "relative", **given}
    return one(length, value, unit="1", **given)


def test_tiles_are_exact_where_every_output_passed_its_gate():
    names = {"flash_attention_3": ["torch.fa3"]}
    found = verdict(exact(), [error(0.001), error(0.003, 1024)], names)
    assert (found.verdict, found.value) == ("reproduced", 0.003)
    assert found.reason == "largest error of 2 outputs, each within its bound"
    wrong = error(0.0, 2048, status=Status.FAILED, reason="torch.fa3: wrong output")
    found = verdict(exact(), [error(0.001), wrong], names)
    assert (found.verdict, found.reason) == ("not run", "failed: torch.fa3: wrong output")
    gone = error(0.0, status=Status.UNSUPPORTED, reason="runs on sm_90")
    assert verdict(exact(), [gone], names).reason == "unsupported: runs on sm_90"
    assert "no error of flash_attention_3" in verdict(exact(), [one(512, 1.0)], names).reason


def test_a_formula_that_no_record_can_speak_of_is_as_before():
    unknown = order("N", method="expected-tokens")
    assert verdict(unknown, grown(1.0)).reason == "states a formula"
