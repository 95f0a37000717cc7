"""The published claims: complete, well linked, in the vocabulary, pinned to their source."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from zenrepro import claims, completeness, specs
from zenrepro.conditions import METRICS

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "data" / "published"


@pytest.fixture(scope="module")
def publication() -> claims.Publication:
    return claims.load(PUBLISHED / "zen.yaml")


@pytest.fixture(scope="module")
def inventory() -> list[completeness.Token]:
    return completeness.load(PUBLISHED / "zen.numbers.csv")


def test_every_number_is_accounted_for_once(publication, inventory) -> None:
    assert len(inventory) > 300
    assert completeness.check(publication, inventory) == []


def test_removing_any_claim_is_noticed(publication, inventory) -> None:
    for index, removed in enumerate(publication.claims):
        rest = publication.claims[:index] + publication.claims[index + 1 :]
        problems = completeness.gaps(inventory, rest, publication.not_claims)
        assert any(f"line {removed.where.line}:" in p for p in problems), removed.id


def test_removing_any_reason_is_noticed(publication, inventory) -> None:
    for index, removed in enumerate(publication.not_claims):
        rest = publication.not_claims[:index] + publication.not_claims[index + 1 :]
        problems = completeness.gaps(inventory, publication.claims, rest)
        assert any(p.startswith(f"line {removed.line}: {removed.token!r}") for p in problems)


def test_telling_a_claim_twice_is_noticed(publication, inventory) -> None:
    for twice in publication.claims:
        problems = completeness.gaps(
            inventory, [*publication.claims, twice], publication.not_claims
        )
        assert problems, twice.id


def test_a_claim_without_a_token_is_noticed(publication, inventory) -> None:
    import msgspec

    claim = publication.claims[0]
    where = msgspec.structs.replace(claim.where, tokens=[])
    changed = [msgspec.structs.replace(claim, where=where), *publication.claims[1:]]
    problems = completeness.gaps(inventory, changed, publication.not_claims)
    assert any("accounts for no token" in problem for problem in problems)


def test_source_has_the_inventory(publication, inventory) -> None:
    given = os.environ.get("ZENREPRO_SOURCE")
    if not given:
        pytest.skip(
            "ZENREPRO_SOURCE does not name the report's TeX source, which is not ours to keep"
        )
    source = Path(given).read_bytes()
    assert completeness.digest(source) == publication.report.sha256
    assert completeness.extract(source.decode("utf-8")) == inventory


def test_all_ten_tables_are_there(publication) -> None:
    cells = Counter(c.where.table for c in publication.claims if c.where.table)
    assert set(cells) == {
        "hardware", "attention", "moe", "quantisation", "gpu", "tpu", "m4", "jetson",
        "speculative", "cumulative",
    }  # fmt: skip
    # Cells of a column that is not a row's name: rows x columns, and numbers of captions.
    assert cells["hardware"] == 5 * 5 + 2 + 1  # two form factors, one name that does not exist
    assert cells["attention"] == 4 * 3 + 2
    assert cells["moe"] == 3 * 3 + 1
    assert cells["quantisation"] == 5 * 4 - 1  # the baseline has no change
    assert cells["gpu"] == 6 * 4
    assert cells["tpu"] == 3 * 4 + 2
    assert cells["m4"] == 3 * 4
    assert cells["jetson"] == 2 * 4 + 1
    assert cells["speculative"] == 4 * 3
    assert cells["cumulative"] == 6 * 3


def test_metrics_are_in_the_vocabulary(publication) -> None:
    for claim in publication.claims:
        known = set(METRICS.get(claim.quantity, {})) | set(claims.DERIVATIONS)
        assert claim.metric in known, f"{claim.id}: {claim.quantity}/{claim.metric}"


def test_platforms_have_datasheets_and_models_a_size(publication) -> None:
    sheets = specs.load(ROOT / "data" / "hardware")
    sizes = {
        c.conditions["model"]
        for c in publication.claims
        if (c.quantity, c.metric) == ("count", "parameters") and "model" in c.conditions
    }
    for claim in publication.claims:
        if "platform" in claim.conditions:
            assert claim.conditions["platform"] in sheets, claim.id
        for key in ("model", "draft_model"):
            if key in claim.conditions:
                assert claim.conditions[key] in sizes, claim.id


def test_derived_numbers_name_their_operands_or_say_that_the_report_does_not(publication) -> None:
    for claim in publication.claims:
        if claim.kind in ("ratio", "share"):
            complete = claim.of and claim.baseline
            assert complete or claim.unstated, claim.id


def test_a_table_s_rows_are_printed_on_one_line_each(publication) -> None:
    rows: dict[tuple[str, str], set[int]] = {}
    for claim in publication.claims:
        if claim.where.table and claim.where.row:
            rows.setdefault((claim.where.table, claim.where.row), set()).add(claim.where.line)
    assert all(len(lines) == 1 for lines in rows.values())


def test_claims_hold_no_sentence_of_the_source(publication) -> None:
    given = os.environ.get("ZENREPRO_SOURCE")
    if not given:
        pytest.skip(
            "ZENREPRO_SOURCE does not name the report's TeX source, which is not ours to keep"
        )

    def runs(text: str) -> set[tuple[str, ...]]:
        words = "".join(c.lower() if c.isalnum() else " " for c in text).split()
        return {tuple(words[i : i + 7]) for i in range(len(words) - 6)}

    source = runs(Path(given).read_text(encoding="utf-8"))
    texts = [claim.note or "" for claim in publication.claims]
    texts += [str(claim.value) for claim in publication.claims]
    texts += [reading.text for claim in publication.claims for reading in claim.readings]
    texts += [part.note or "" for part in publication.parts]
    for text in texts:
        assert not runs(text) & source, text
