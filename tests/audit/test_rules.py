"""The smallest example that each rule objects to, and the nearest one that it lets pass."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zenrepro import audit, claims, specs
from zenrepro.audit import rules
from zenrepro.audit.engine import number
from zenrepro.errors import InputError

SHEETS = {
    "board": specs.Datasheet(
        schema=1, platform="board", name="Board", vendor="Maker", form_factor="SXM4",
        memory_type="HBM2e", native=["bf16"],
        sources=[specs.Source(title="t", url="https://example.org", publisher="Maker")],
        figures=[
            specs.Figure(quantity=q, metric=m, value=v, unit=u, source=0, dtype=d)  # type: ignore[arg-type]
            for q, m, v, u, d in (
                ("flop_rate", "dense", 312, "TFLOP/s", "bf16"),
                ("flop_rate", "sparse", 624, "TFLOP/s", "bf16"),
                ("bandwidth", "peak", 2039, "GB/s", None),
                ("memory", "capacity", 80, "GB", None),
                ("power", "tdp", 400, "W", None),
            )
        ],
    ),
    "myth": specs.Datasheet(
        schema=1, platform="myth", name="Myth", vendor="Maker", sources=[], exists=False,
        nearest=["board"],
    ),
}  # fmt: skip

ON = {"platform": "board", "model": "m", "policy": "half", "batch": 4, "chips": 1}
DECODE = {**ON, "phase": "decode"}
PARTS = [{"name": "core", "read": "always"}, {"name": "table", "read": "gather"}]
POLICIES = [
    {"name": "half", "parts": {"core": "fp16", "table": "fp16"}},
    {"name": "small", "parts": {"core": "int4", "table": "int4"}},
    {"name": "mixed", "parts": {"core": "int4", "table": "fp16"}},
    {"name": "turned", "parts": {"core": "fp16", "table": "int4"}},
]


def cell(
    name: str, quantity: str, metric: str, printed: str | None, unit: str, **more: Any
) -> dict[str, Any]:
    made = {
        "id": name, "kind": "scalar", "quantity": quantity, "metric": metric, "unit": unit,
        "where": {"part": "table", "line": 1}, **more,
    }  # fmt: skip
    if printed is not None:
        made |= {"printed": printed, "value": float(printed.replace(",", ""))}
    return made


def rate(name: str, printed: str, **more: Any) -> dict[str, Any]:
    return cell(name, "throughput", "rate", printed, "token/s", **{"conditions": ON, **more})


def ratio(name: str, metric: str, printed: str, unit: str = "x", **more: Any) -> dict[str, Any]:
    return cell(name, "ratio", metric, printed, unit, kind="ratio", **more)


PARAMETERS = cell(
    "p", "count", "parameters", "10.0", "Gparameter", conditions={"model": "m"}
)  # fmt: skip
EXPERTS = {**PARAMETERS, "unstated": ["active_parameters"]}


def formula(
    name: str, left: str, relation: str, right: str, units: dict[str, str], **more: Any
) -> dict[str, Any]:
    symbols = {s: {"meaning": s, "unit": u} for s, u in units.items()}
    given = {"left": left, "relation": relation, "right": right, "symbols": symbols}
    for key in ("increases_with", "decreases_with"):
        if key in more:
            given[key] = more.pop(key)
    return cell(name, "error", "squared", None, "1", kind="formula", formula=given, **more)


def run(*made: dict[str, Any]) -> audit.Audit:
    raw = {
        "schema": 1, "report": {"title": "t", "version": "1"}, "claims": list(made),
        "parts": PARTS, "policies": POLICIES,
    }  # fmt: skip
    return audit.run(claims.parse(raw, "test"), SHEETS)


PLAIN = rate("b", "101", implementation="plain")
ERROR, IMPOSSIBLE, OPEN, NOTE = "inconsistent", "impossible", "unverifiable", "note"
LATENCY = ("latency", "tpot")
JOULE = ("energy_per_token", "rate")

# (rule, verdict, claims that it objects to, claims that it lets pass)
EXAMPLES: list[tuple[str, str, list[dict[str, Any]], list[dict[str, Any]]]] = [
    (
        "range", IMPOSSIBLE,
        [cell("a", "utilisation", "compute", "104", "%")],
        [cell("a", "utilisation", "compute", "94", "%")],
    ),
    (
        "derivation", ERROR,
        [rate("a", "333"), PLAIN, ratio("r", "speedup", "2.6", of=["a"], baseline="b")],
        [rate("a", "264"), PLAIN, ratio("r", "speedup", "2.6", of=["a"], baseline="b")],
    ),
    (
        "product", NOTE,
        [rate("a", "90,480"), rate("b", "31,200", implementation="plain"),
         ratio("r", "speedup", "2.9", of=["a"], baseline="b")],
        [rate("a", "90,520"), rate("b", "31,200", implementation="plain"),
         ratio("r", "speedup", "2.9", of=["a"], baseline="b")],
    ),
    (
        "baseline", OPEN,
        [ratio("r", "reduction", "41", "%")],
        [rate("a", "59.0"), rate("b", "100.0", implementation="plain"),
         ratio("r", "reduction", "41", "%", of=["a"], baseline="b")],
    ),
    (
        "repeat", ERROR,
        [rate("a", "48.4"),
         rate("b", "58", conditions={"platform": "board", "model": "m"},
              where={"part": "text", "line": 2})],
        [rate("a", "48.4"),
         rate("b", "48", conditions={"platform": "board", "model": "m"},
              where={"part": "text", "line": 2})],
    ),
    (
        "shared-number", NOTE,
        [rate("a", "31,200"), rate("b", "31,200", conditions={**ON, "batch": 8})],
        [rate("a", "31,200"), rate("b", "31,900", conditions={**ON, "batch": 8})],
    ),
    (
        "latency", ERROR,
        [rate("a", "400", conditions=DECODE),
         cell("l", *LATENCY, "100.0", "ms", conditions=DECODE)],
        [rate("a", "400", conditions=DECODE),
         cell("l", *LATENCY, "10.0", "ms", conditions=DECODE)],
    ),
    (
        "energy", ERROR,
        [rate("a", "4,000"), cell("w", "power", "draw", "200.0", "W", conditions=ON),
         cell("e", *JOULE, "10.0", "token/J", conditions=ON)],
        [rate("a", "4,000"), cell("w", "power", "draw", "200.0", "W", conditions=ON),
         cell("e", *JOULE, "20.0", "token/J", conditions=ON)],
    ),
    (
        "draw", NOTE,
        [cell("w", "power", "draw", "520", "W", conditions=ON)],
        [cell("w", "power", "draw", "390", "W", conditions=ON)],
    ),
    (
        "size", ERROR,
        [PARAMETERS, cell("s", "size", "weights", "5.0", "GB",
                          conditions={"model": "m", "policy": "half"})],
        [PARAMETERS, cell("s", "size", "weights", "20.0", "GB",
                          conditions={"model": "m", "policy": "half"})],
    ),
    (
        # The two hold each part once in 16 and once in 4 bits: together 25 GB and scales.
        "sizes-together", ERROR,
        [PARAMETERS,
         cell("s", "size", "weights", "9.0", "GB", conditions={"model": "m", "policy": "turned"}),
         cell("t", "size", "weights", "9.0", "GB", conditions={"model": "m", "policy": "mixed"})],
        [PARAMETERS,
         cell("s", "size", "weights", "16.0", "GB", conditions={"model": "m", "policy": "turned"}),
         cell("t", "size", "weights", "9.0", "GB", conditions={"model": "m", "policy": "mixed"})],
    ),
    (
        "memory", ERROR,
        [PARAMETERS, cell("g", "memory", "peak", "12.0", "GB", conditions=ON)],
        [PARAMETERS, cell("g", "memory", "peak", "22.0", "GB", conditions=ON)],
    ),
    (
        "capacity", IMPOSSIBLE,
        [cell("g", "memory", "peak", "144", "GB", conditions=ON)],
        [cell("g", "memory", "peak", "75", "GB", conditions=ON)],
    ),
    (
        # At least half of 20 GB is read at each step: at most 4 × 2039 / 9.9 tokens a second.
        "memory-roofline", IMPOSSIBLE,
        [PARAMETERS, rate("a", "990", conditions={**ON, "phase": "decode"})],
        [PARAMETERS, rate("a", "390", conditions={**ON, "phase": "decode"})],
    ),
    (
        "compute-roofline", IMPOSSIBLE,
        [PARAMETERS, rate("a", "99,000", conditions={"platform": "board", "model": "m"})],
        [PARAMETERS, rate("a", "29,000", conditions={"platform": "board", "model": "m"})],
    ),
    (
        "part", ERROR,
        [rate("a", "500"), rate("b", "250", conditions={**ON, "op": "moe_layer"})],
        [rate("a", "500"), rate("b", "9,000", conditions={**ON, "op": "moe_layer"})],
    ),
    (
        "work-per-token", NOTE,
        [rate("a", "124", implementation="x"), rate("b", "516", implementation="y"),
         cell("u", "utilisation", "compute", "41", "%", conditions=ON, implementation="x"),
         cell("v", "utilisation", "compute", "87", "%", conditions=ON, implementation="y")],
        [rate("a", "243", implementation="x"), rate("b", "516", implementation="y"),
         cell("u", "utilisation", "compute", "41", "%", conditions=ON, implementation="x"),
         cell("v", "utilisation", "compute", "87", "%", conditions=ON, implementation="y")],
    ),
    (
        "speculation", ERROR,
        [rate("b", "100"), rate("a", "490", conditions={**ON, "draft_model": "d", "gamma": 3}),
         ratio("r", "speedup", "4.9", of=["a"], baseline="b",
               conditions={**ON, "draft_model": "d", "gamma": 3})],
        [rate("b", "100"), rate("a", "290", conditions={**ON, "draft_model": "d", "gamma": 3}),
         ratio("r", "speedup", "2.9", of=["a"], baseline="b",
               conditions={**ON, "draft_model": "d", "gamma": 3})],
    ),
    (
        "datasheet", ERROR,
        [cell("h", "bandwidth", "peak", "1.6", "TB/s", conditions={"platform": "board"})],
        [cell("h", "bandwidth", "peak", "2.0", "TB/s", conditions={"platform": "board"})],
    ),
    (
        "formula-dimension", ERROR,
        [formula("f", "t", "=", "n / r", {"t": "s", "n": "B", "r": "FLOP/s"})],
        [formula("f", "t", "=", "n / r", {"t": "s", "n": "B", "r": "B/s"})],
    ),
    (
        "formula-slope", ERROR,
        [formula("f", "e", "=", "1 / g", {"e": "1", "g": "1"}, increases_with=["g"])],
        [formula("f", "e", "=", "1 / g", {"e": "1", "g": "1"}, decreases_with=["g"])],
    ),
    (
        "formula-trial", ERROR,
        [formula("f", "e", "<=", "variance / (g * 2 ** (2 * b))",
                 {"e": "1", "variance": "1", "g": "1", "b": "1"}, method="group-quantisation")],
        [formula("f", "e", "<=", "variance * g * 256 * 1024",
                 {"e": "1", "variance": "1", "g": "1"}, method="group-quantisation")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "verdict", "wrong", "right"), EXAMPLES, ids=[e[0] for e in EXAMPLES]
)
def test_smallest_examples(
    rule: str, verdict: str, wrong: list[dict[str, Any]], right: list[dict[str, Any]]
) -> None:
    found = [f for f in run(*wrong).findings if f.rule == rule]
    assert [f.verdict for f in found] == [verdict]
    assert found[0].severity == ("error" if verdict in (ERROR, IMPOSSIBLE) else "note")
    assert found[0].arithmetic
    assert "\n" not in found[0].arithmetic
    assert found[0].mend
    assert not [f for f in run(*right).findings if f.rule == rule]
    assert not run(*right).errors()


def test_every_rule_has_an_example() -> None:
    tried = {example[0].split("-")[0] if example[0].startswith("formula") else example[0]
             for example in EXAMPLES}  # fmt: skip
    assert tried == {name for name, _ in rules.RULES}


def only(found: audit.Audit, rule: str) -> audit.Finding:
    (finding,) = [f for f in found.findings if f.rule == rule]
    return finding


def test_a_reading_that_holds_makes_a_note_that_names_it() -> None:
    made = ratio(
        "r", "time_share", "18.0", "%", of=["a"], baseline="b",
        readings=[{"text": "only what is not covered", "metric": "share", "of": []}],
    )  # fmt: skip
    found = only(run(rate("a", "941"), rate("b", "386"), made), "derivation")
    assert (found.severity, found.verdict) == ("note", "note")
    assert "only what is not covered" in found.mend


def test_an_unstated_condition_makes_a_note() -> None:
    slow = cell("l", *LATENCY, "100.0", "ms", conditions=ON, unstated=["batch"])
    assert only(run(rate("a", "400"), slow), "latency").severity == "note"


def test_the_time_of_the_whole_batch_is_a_reading_of_latency() -> None:
    found = only(run(rate("a", "400"), cell("l", *LATENCY, "2.5", "ms", conditions=ON)), "latency")
    assert found.severity == "note"
    assert "whole batch" in found.mend


def test_fewer_than_one_sequence_at_a_time() -> None:
    free = {k: v for k, v in ON.items() if k != "batch"}
    slow = cell("l", *LATENCY, "1.0", "ms", conditions=free)
    assert only(run(rate("a", "400", conditions=free), slow), "latency").severity == "error"


def test_more_tokens_a_joule_than_design_power_allows_are_fine() -> None:
    for printed, errors in (("11.5", 0), ("9.0", 1)):
        made = cell("e", *JOULE, printed, "token/J", conditions=ON)
        assert len(run(rate("a", "4,321"), made).errors()) == errors


def test_joules_a_token_are_the_inverse() -> None:
    watts = cell("w", "power", "draw", "200.0", "W", conditions=ON)
    for printed, errors in (("0.050", 0), ("0.50", 1)):
        made = cell("e", *JOULE, printed, "J/token", conditions=ON)
        assert len(run(rate("a", "4,000"), watts, made).errors()) == errors


def test_experts_leave_the_roofline_open() -> None:
    dense = rate("a", "990", conditions={**ON, "phase": "decode"})
    raw = {
        "schema": 1, "report": {"title": "t", "version": "1"},
        "claims": [EXPERTS, {**dense, "conditions": {**ON, "phase": "decode", "format": "fp16"}}],
    }  # fmt: skip
    del raw["claims"][1]["conditions"]["policy"]
    found = audit.run(claims.parse(raw, "test"), SHEETS)
    finding = only(found, "memory-roofline")
    assert finding.severity == "note"
    assert "at most" in finding.mend
    assert [b.assumption for b in found.bounds] != [None]


def test_a_product_that_nobody_sells() -> None:
    found = run(
        cell("n", "spec", "existence", None, "1", kind="categorical", value="Myth",
             conditions={"platform": "myth"}),
        cell("b", "bandwidth", "peak", "2.0", "TB/s", conditions={"platform": "myth"}),
    )  # fmt: skip
    assert found.verdicts == {"n": ERROR, "b": OPEN}
    assert "Board" in only(run(
        cell("b", "bandwidth", "peak", "2.0", "TB/s", conditions={"platform": "myth"})
    ), "datasheet").arithmetic  # fmt: skip


def test_a_form_factor() -> None:
    for value, verdict in (("SXM5", ERROR), ("sxm-4", "consistent")):
        made = cell("n", "spec", "form_factor", None, "1", kind="categorical", value=value,
                    conditions={"platform": "board"})  # fmt: skip
        assert run(made).verdicts["n"] == verdict


def test_gib_are_understood() -> None:
    made = cell("s", "size", "weights", "18.6", "GB", conditions={"model": "m", "policy": "half"})
    finding = only(run(PARAMETERS, made), "size")
    assert finding.severity == "note"
    assert "2^30" in finding.mend


def test_missing_symbols_are_named() -> None:
    made = formula("f", "r", "=", "h * d / c", dict.fromkeys("rhdc", "1"), method="latent-cache")
    made |= {"printed": "6", "value": 6.0}
    finding = only(run(made), "formula-value")
    assert finding.verdict == OPEN
    assert "c, d, h" in finding.arithmetic


def test_a_formula_with_values_is_computed() -> None:
    for printed, errors in (("6", 0), ("7", 1)):
        made = formula("f", "r", "=", "h * d / c", dict.fromkeys("rhdc", "1"))
        for symbol, value in (("h", 24), ("d", 128), ("c", 512)):
            made["formula"]["symbols"][symbol]["value"] = value
        found = run(made | {"printed": printed, "value": float(printed)})
        assert len(found.errors()) == errors


@pytest.mark.parametrize(
    ("right", "method", "message"),
    [
        ("__import__('os')", None, "calls what is not"),
        ("g.real", None, "Attribute"),
        ("2 *", None, "not arithmetic"),
        ("x / g", None, "'x' is not under"),
        ("1 / g", "tea-leaves", "no numerical experiment"),
    ],
)
def test_bad_formulas_are_one_clear_line(right: str, method: str | None, message: str) -> None:
    made = formula("f", "e", "=", right, {"e": "1", "g": "1"}, method=method)
    with pytest.raises(InputError, match=message) as caught:
        run(made)
    assert "'f'" in str(caught.value)


def test_an_audit_is_plain_data() -> None:
    found = run(*EXAMPLES[1][2])
    again = msgspec.json.decode(msgspec.json.encode(found), type=audit.Audit)
    assert again == found
    assert sum(found.counts().values()) == 3


def rows(*latencies: str) -> list[dict[str, Any]]:
    """Rows of one table, 400 tokens a second at batch 4 to 7, phase unsaid."""
    made = []
    for i, printed in enumerate(latencies):
        at = {
            "conditions": {**ON, "batch": 4 + i},
            "where": {"part": "table", "line": 1, "table": "t"},
        }
        made += [rate(f"a{i}", "400.0", **at), cell(f"l{i}", *LATENCY, printed, "ms", **at)]
    return made


def test_prompt_tokens_may_be_counted_until_other_rows_tell() -> None:
    alone = only(run(*rows("100.0")), "latency")
    assert alone.severity == "note"
    assert "prompt tokens" in alone.mend
    told = only(run(*rows("100.0", "12.5", "15.0")), "latency")
    assert told.severity == "error"
    assert told.claims == ["l0"]
    # Time spent on prompts makes the throughput less, whatever the other rows say.
    assert only(run(*rows("1.000", "12.5", "15.0")), "latency").severity == "note"


def test_a_missing_baseline_lists_only_pairs_that_the_claim_allows() -> None:
    plain = rate("b", "1,000", implementation="plain")
    fast = rate("a", "2,800", conditions={**ON, "batching": "continuous"})
    other = rate("c", "2,800", conditions={**ON, "batching": "continuous", "task": "chat"})
    claim = {"conditions": {"batching": "continuous"}, "unstated": ["baseline"]}
    found = only(run(plain, fast, ratio("r", "speedup", "2.8", **claim)), "baseline")
    assert "2,800 token/s / 1,000 token/s" in found.mend
    found = only(run(plain, other, ratio("r", "speedup", "2.8", **claim)), "baseline")
    assert "/" not in found.mend + found.arithmetic


def test_readings_fix_what_a_ratio_may_be_relative_to() -> None:
    rates = (
        rate("naive", "1,003", implementation="plain"),
        rate("tuned", "3,812", implementation="tuned"),
        rate("best", "11,031", implementation="best"),
    )
    reading = {"text": "tuned", "of": ["tuned"], "baseline": "naive"}
    claim = ratio("r", "speedup", "2.8", unstated=["baseline"], readings=[reading])
    found = only(run(*rates, claim), "baseline")
    assert "3,812 token/s / 1,003 token/s" in found.arithmetic
    assert (
        "/ 3,812" not in found.mend + found.arithmetic
    )  # 11,000 / 3,812 would fit, but has another baseline


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0518e-5, "3.05×10⁻⁵"), (0.00912, "0.00912"), (31203, "31,200"), (4.5e15, "4.50×10¹⁵")],
)
def test_numbers_in_arithmetic_have_no_programmers_exponents(value: float, text: str) -> None:
    assert number(value) == text
