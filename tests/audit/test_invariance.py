"""Names and order mean nothing: renaming and shuffling everything changes no finding."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import truth
import yaml
from mutations import MUTATIONS, mutate

from zenrepro import audit, claims, specs

ROOT = Path(__file__).parents[2]
# Conditions whose values are names.
NAMES = (
    "model", "platform", "policy", "workload", "task", "draft_model", "weights", "parallelism",
    "power_mode", "acceptance_source", "batching",
)  # fmt: skip


def renamed(
    raw: dict[str, Any], sheets: dict[str, specs.Datasheet], rng: random.Random
) -> tuple[dict[str, Any], dict[str, specs.Datasheet], dict[str, str]]:
    """Everything renamed and shuffled, and how ids changed. Models share names with drafts."""
    known: dict[str, str] = {}

    def new(name: str) -> str:
        if name not in known:
            known[name] = f"n{rng.randrange(10**9):09d}"
        return known[name]

    def conditions(given: dict[str, Any]) -> dict[str, Any]:
        changed = {k: new(v) if k in NAMES else v for k, v in given.items()}
        if "optimisations" in changed:
            changed["optimisations"] = [new(v) for v in changed["optimisations"]]
        return changed

    def links(item: dict[str, Any]) -> None:
        if item.get("of") is not None:
            item["of"] = [new(i) for i in item["of"]]
        if item.get("baseline") is not None:
            item["baseline"] = new(item["baseline"])
        if "conditions" in item:
            item["conditions"] = conditions(item["conditions"])

    out = msgspec.json.decode(msgspec.json.encode(raw))
    for claim in out["claims"]:
        claim["id"] = new(claim["id"])
        links(claim)
        for reading in claim.get("readings", []):
            links(reading)
        if claim.get("implementation"):
            claim["implementation"] = new(claim["implementation"])
        where = claim["where"]
        for key in ("section", "table", "row", "column"):
            if where.get(key):
                where[key] = new(where[key])
        claim.pop("note", None)
    for part in out.get("parts", []):
        part["name"] = new(part["name"])
        if part.get("model"):
            part["model"] = new(part["model"])
    for policy in out.get("policies", []):
        policy["name"] = new(policy["name"])
        policy["parts"] = {new(p): f for p, f in policy["parts"].items()}
    for key in ("claims", "parts", "policies"):
        if key in out:
            rng.shuffle(out[key])
    moved = {
        new(name): msgspec.structs.replace(
            sheet, platform=new(name), name=new(sheet.name), nearest=[new(n) for n in sheet.nearest]
        )
        for name, sheet in sheets.items()
    }
    return out, moved, known


def told(audited: audit.Audit, names: dict[str, str]) -> Any:
    """What does not depend on names: findings, verdicts and bounds, ids mapped."""
    findings = sorted(
        (
            f.rule, f.severity, f.verdict,
            tuple(sorted(names.get(i, i) for i in f.claims)),
            tuple(sorted(names.get(i, i) for i in f.against)),
        )
        for f in audited.findings
    )  # fmt: skip
    verdicts = {names.get(i, i): verdict for i, verdict in audited.verdicts.items()}
    bounds = sorted(
        (names.get(b.claim, b.claim), b.relation, f"{b.value:.9g}") for b in audited.bounds
    )
    return findings, verdicts, bounds


def same(raw: dict[str, Any], sheets: dict[str, specs.Datasheet], seed: int) -> None:
    before = audit.run(claims.parse(raw, "before"), sheets)
    other, moved, names = renamed(raw, sheets, random.Random(seed))
    after = audit.run(claims.parse(other, "after"), moved)
    assert told(before, names) == told(after, {})


@pytest.mark.parametrize("seed", range(12))
def test_true_reports(seed: int) -> None:
    same(*truth.report(seed), seed)


@pytest.mark.parametrize("seed", range(24))
def test_wrong_reports(seed: int) -> None:
    rng = random.Random(seed)
    raw, sheets = truth.report(seed)
    for _ in range(3):  # three wrong cells at once
        index = rng.randrange(len(raw["claims"]))
        raw = mutate(raw, index, rng.choice(list(MUTATIONS)), rng) or raw
    same(raw, sheets, seed)


def test_the_published_claims() -> None:
    path = ROOT / "data" / "published" / "zen.yaml"
    raw = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    same(raw, specs.load(ROOT / "data" / "hardware"), 1)
