"""Page 1 and the published ratios: what is told first, and from what."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import msgspec

from zenrepro.report import opening, ratios, summary, tables
from zenrepro.report.wording import Words


def test_unverifiable_claims_are_told_apart(evidence: Any) -> None:
    rows = opening.audit_counts(evidence)
    whole = next(r for r in rows if r.verdict == "unverifiable" and not r.part)
    parts = [r for r in rows if r.part]
    assert len(parts) == 2
    assert sum(r.number for r in parts) == whole.number == 1
    assert sum(r.number for r in rows if not r.part) == len(evidence.publication.claims)


def test_errors_come_first_with_what_is_held_against_them(evidence: Any) -> None:
    first, second = opening.top(evidence)
    assert (first.finding.severity, second.finding.severity) == ("error", "note")
    assert first.instead == "the batch were 105"
    assert opening.top(evidence, 1)[0].number == first.number


def test_names_of_data_become_words_and_numbers_keep_their_units() -> None:
    words = Words({"values": {"some-gpu": "GPU 5"}}, {})
    text = words.prose("8 GB on some-gpu, fp8_e4m3 and moe_layer, 3 W, some-gpu-2, 7 words")
    assert text == ("8\u00a0GB on GPU 5, FP8 (E4M3) and MoE layer, 3\u00a0W, some-gpu-2, 7 words")


def test_flags_that_differ_in_numbers_are_one_line(evidence: Any) -> None:
    records = [
        SimpleNamespace(flags=["clocks held back for 12% of the window", "10 of 50"]),
        SimpleNamespace(flags=["clocks held back for 100% of the window"]),
    ]
    assert list(summary._flags(records)) == [  # type: ignore[arg-type]
        "10 of 50 (1 record)",
        "clocks held back for 12 to 100% of the window (2 records)",
    ]


def test_rates_of_a_table_give_ratios_against_its_first_row(evidence: Any) -> None:
    publication = evidence.publication
    others = [c for c in publication.claims if c.id != "speedup"]  # it states this ratio itself
    given = dataclasses.replace(
        evidence, publication=msgspec.structs.replace(publication, claims=others)
    )
    assert not [row for row in ratios.collect(evidence)[0] if " over " in row["label"]]
    rows, reason = ratios.collect(given)
    assert not reason
    formed = next(row for row in rows if " over " in row["label"])
    assert formed["published"] == 31800 / 12400
    dot = formed["dots"][0]
    assert dot["value"] == 51234.0 / 12345.6
    assert 51000.0 / 12391.0 < dot["low"] < dot["value"] < dot["high"] < 51500.0 / 12300.0


def test_ratios_of_unlike_work_are_not_formed(evidence: Any) -> None:
    claims = evidence.claims
    base = claims["rate-naive"]
    other = claims["rate-flash"]
    assert ratios._comparable(base, other)
    slower = msgspec.structs.replace(other, conditions={**other.conditions, "batch": 7})
    assert not ratios._comparable(base, slower)


def test_bounds_are_printed_with_four_digits(evidence: Any) -> None:
    from zenrepro.audit.verdicts import Bound

    bound = Bound(
        claim="rate-naive", value=191507.7, unit="token/s", relation="≤", arithmetic="", rule="r"
    )
    limit = tables._limit(evidence.claims["rate-naive"], bound)
    assert limit is not None
    assert limit.value.value == 191500.0
