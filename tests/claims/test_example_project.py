"""The example project: a second report, described completely, with two planted faults."""

from __future__ import annotations

from pathlib import Path

from zenrepro import audit, claims, completeness, paths, specs

PROJECT = paths.load(Path(__file__).parents[2] / "docs" / "example")


def test_every_number_of_its_source_is_accounted_for() -> None:
    publication = claims.load(PROJECT.published / "example.yaml")
    source = (PROJECT.root / "report.tex").read_bytes()
    assert completeness.digest(source) == publication.report.sha256
    inventory = completeness.extract(source.decode("utf-8"))
    assert completeness.load(PROJECT.published / "example.numbers.csv") == inventory
    assert completeness.check(publication, inventory) == []


def test_the_audit_finds_the_planted_faults_and_nothing_else() -> None:
    publication = claims.load(PROJECT.published / "example.yaml")
    found = audit.run(publication, specs.load(PROJECT.hardware))
    errors = {(f.rule, *f.claims) for f in found.findings if f.severity == "error"}
    assert errors == {
        ("energy", "kestrel.int4.efficiency"), ("memory-roofline", "kestrel.int4.burst"),
    }  # fmt: skip
    assert [f.rule for f in found.findings if f.severity == "note"] == []


def test_its_datasheets_are_those_of_the_main_project() -> None:
    main = Path(__file__).parents[2] / "data" / "hardware"
    for path in PROJECT.hardware.glob("*.yaml"):
        assert path.read_text() == (main / path.name).read_text(), path.name
