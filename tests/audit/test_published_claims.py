"""What the audit says of the report under study: what a careful reviewer finds, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenrepro import audit, claims, specs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def publication() -> claims.Publication:
    return claims.load(ROOT / "data" / "published" / "zen.yaml")


@pytest.fixture(scope="module")
def audited(publication: claims.Publication) -> audit.Audit:
    return audit.run(publication, specs.load(ROOT / "data" / "hardware"))


def about(
    publication: claims.Publication, audited: audit.Audit, severity: str, rule: str
) -> set[tuple[str, str]]:
    """(printed number, quantity) of the claims that findings of a rule are about."""
    by_id = publication.by_id()
    return {
        (str(by_id[name].printed or by_id[name].value), by_id[name].quantity)
        for finding in audited.findings
        if (finding.severity, finding.rule) == (severity, rule)
        for name in finding.claims
    }


EXPECTED = [
    ("error", "memory-roofline", {("8,200", "throughput"), ("31,200", "throughput")}),
    ("error", "latency", {(n, "latency") for n in ("3.32", "9.76", "1.90", "2.56")}),
    ("error", "derivation", {("24.8", "share"), ("2.6", "ratio")}),
    ("note", "derivation", {("18.0", "share")}),
    ("error", "datasheet", {("1.6", "bandwidth"), ("1.3", "flop_rate"), ("SXM5", "spec")}),
    ("note", "datasheet", {("180", "power")}),
    ("error", "formula-trial", {("None", "error")}),
    ("note", "formula-trial", {("None", "traffic")}),
    ("note", "formula-value", {("6", "ratio")}),
    ("note", "baseline", {("2.8", "ratio"), ("41", "ratio"), ("3.4", "ratio")}),
    ("note", "shared-number", {("31,200", "throughput"), ("8,200", "throughput")}),
    ("note", "product", {(n, "throughput") for n in ("90,480", "81,120", "65,520", "96,720")}),
    ("note", "work-per-token", {(n, "utilisation") for n in ("41", "68", "82", "87")}),
    ("note", "part", {(n, "throughput") for n in ("14,200", "31,400", "38,600")}),
    ("note", "capacity", {("8,200", "throughput"), ("37,800", "throughput")}),
]  # fmt: skip


@pytest.mark.parametrize(("severity", "rule", "wanted"), EXPECTED)
def test_what_a_careful_reviewer_finds(
    publication: claims.Publication,
    audited: audit.Audit,
    severity: str,
    rule: str,
    wanted: set[tuple[str, str]],
) -> None:
    assert wanted <= about(publication, audited, severity, rule)


def test_errors_come_from_these_rules_only(audited: audit.Audit) -> None:
    rules = {finding.rule for finding in audited.errors()}
    assert rules == {"memory-roofline", "latency", "derivation", "datasheet", "formula-trial"}


@pytest.mark.parametrize(
    ("printed", "quantity"),
    [
        ("171", "energy_per_token"), ("0.94", "latency"), ("0.90", "latency"), ("3.3", "ratio"),
        ("23", "ratio"), ("49.7", "share"), ("11.0", "ratio"), ("144", "size"), ("54", "size"),
        ("4,725", "throughput"), ("48", "throughput"), ("-0.3", "quality"), ("2.0", "bandwidth"),
    ],
)  # fmt: skip
def test_what_holds_is_not_called_an_error(
    publication: claims.Publication, audited: audit.Audit, printed: str, quantity: str
) -> None:
    verdicts = {
        audited.verdicts[c.id]
        for c in publication.claims
        if (c.printed, c.quantity) == (printed, quantity)
    }
    assert verdicts
    assert verdicts <= {"consistent", "note"}


def test_every_claim_has_a_verdict_and_findings_name_claims(
    publication: claims.Publication, audited: audit.Audit
) -> None:
    ids = {claim.id for claim in publication.claims}
    assert audited.verdicts.keys() == ids
    for finding in audited.findings:
        assert set(finding.claims) <= ids
        assert set(finding.against) <= ids
        assert finding.claims
        assert finding.arithmetic.strip()
        assert finding.mend.strip()
        assert "\n" not in finding.arithmetic + finding.mend
        assert "inf" not in finding.arithmetic
        assert "nan" not in finding.arithmetic
    assert sum(audited.counts().values()) == len(ids)


def test_bounds_are_in_the_claims_units(
    publication: claims.Publication, audited: audit.Audit
) -> None:
    by_id = publication.by_id()
    assert len({(b.claim, b.relation) for b in audited.bounds}) == len(audited.bounds)
    for bound in audited.bounds:
        assert bound.unit == by_id[bound.claim].unit
        assert bound.value > 0
