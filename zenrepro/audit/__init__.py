"""The audit: which published claims cannot hold, which may, and under which reading.

``run`` tries general rules over typed claims (see ``rules.RULES``); docs/AUDIT.md explains them.
"""

from __future__ import annotations

from zenrepro import claims, specs
from zenrepro.audit import engine, rules
from zenrepro.audit.verdicts import ORDER, Audit, Bound, Finding, Verdict

__all__ = ["ORDER", "Audit", "Bound", "Finding", "Verdict", "run"]


def run(publication: claims.Publication, datasheets: dict[str, specs.Datasheet]) -> Audit:
    """Try every rule on every claim.

    A claim's verdict is the worst that a finding gives it; ``consistent`` when at least one rule
    tested it and found no fault; ``unverifiable`` when nothing in the report or the datasheets
    constrains it.
    """
    view = engine.View(publication, datasheets)
    findings: dict[tuple[str, ...], Finding] = {}
    bounds: dict[tuple[str, str], Bound] = {}
    passed: dict[str, list[str]] = {}
    for _, rule in rules.RULES:
        for item in rule(view):
            if isinstance(item, engine.Check):
                finding = engine.decide(item)
                if finding is None and engine.held(item) and item.rule not in rules.WEAK:
                    for name in dict.fromkeys((*item.subjects, *item.against)):
                        if item.rule not in passed.setdefault(name, []):
                            passed[name].append(item.rule)
            elif isinstance(item, Bound):
                if item.assumption is None:
                    passed.setdefault(item.claim, [])
                _tighten(bounds, item)
                continue
            else:
                finding = item
            if finding is not None:
                key = (finding.rule, *finding.claims, *finding.against, finding.arithmetic)
                findings.setdefault(key, finding)
    verdicts: dict[str, Verdict] = {
        claim.id: "consistent" if claim.id in passed else "unverifiable"
        for claim in publication.claims
    }
    given: set[str] = set()
    for finding in findings.values():
        for name in finding.claims:
            if name not in given or ORDER.index(finding.verdict) < ORDER.index(verdicts[name]):
                verdicts[name] = finding.verdict
            given.add(name)
    place = {claim.id: index for index, claim in enumerate(publication.claims)}
    ordered = sorted(
        findings.values(),
        key=lambda f: (ORDER.index(f.verdict), place[f.claims[0]], f.rule, f.arithmetic),
    )
    return Audit(
        verdicts=verdicts,
        findings=ordered,
        passed=passed,
        bounds=sorted(bounds.values(), key=lambda b: (place[b.claim], b.relation)),
    )


def _tighten(bounds: dict[tuple[str, str], Bound], new: Bound) -> None:
    """Keep the tightest bound a claim has each way; one that assumes nothing wins over others."""
    key = (new.claim, new.relation)
    old = bounds.get(key)
    if old is None:
        bounds[key] = new
        return
    if (old.assumption is None) != (new.assumption is None):
        bounds[key] = new if new.assumption is None else old
    elif (new.value < old.value) == (new.relation == "≤"):
        bounds[key] = new
