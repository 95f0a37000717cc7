"""What the audit detects: one cell of true reports changed, and how often an error follows.

    python tests/audit/detection.py --reports 100 --cells 12

prints the tables of docs/AUDIT.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import truth
from mutations import MUTATIONS, mutate

from zenrepro import audit, claims

# Rules that hold a number from both sides; the others bound it from one.
TWO_SIDED = ("derivation", "latency", "energy", "size", "datasheet")


@dataclass
class Tally:
    """Counts of tried and detected changes."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[tuple[str, str]] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)
    reports: int = 0

    def rate(self, row: str, column: str | None = None) -> float | None:
        """Share detected of a row, in one column or all."""
        keys = [k for k in self.tried if k[0] == row and column in (None, k[1])]
        tried = sum(self.tried[k] for k in keys)
        return sum(self.found[k] for k in keys) / tried if tried else None


def cells_of(audited: audit.Audit, publication: claims.Publication) -> dict[str, list[str]]:
    """The rules that constrain each printed cell, both sides first; none for a free cell."""
    return {c.id: audited.passed.get(c.id, []) for c in publication.claims if c.printed is not None}


def measure(seeds: range, cells: int) -> Tally:
    """Change ``cells`` random cells of each report, each in one way."""
    tally = Tally()
    for seed in seeds:
        rng = random.Random(seed)
        raw, sheets = truth.report(seed)
        publication = claims.parse(raw, f"truth {seed}")
        before = audit.run(publication, sheets)
        constrained = cells_of(before, publication)
        tally.reports += 1
        for index in rng.sample(range(len(raw["claims"])), min(cells, len(raw["claims"]))):
            name = raw["claims"][index]["id"]
            if name not in constrained:
                continue
            kind = rng.choice(list(MUTATIONS))
            changed = mutate(raw, index, kind, rng)
            if changed is None:
                continue
            after = audit.run(claims.parse(changed, f"changed {seed}"), sheets)
            detected = bool(after.errors())
            noted = [f.rule for f in before.findings if name in (*f.claims, *f.against)]
            _count(tally, raw["claims"][index], constrained[name], noted, kind, detected)
    return tally


def _count(
    tally: Tally,
    cell: dict[str, object],
    passed: list[str],
    noted: list[str],
    kind: str,
    detected: bool,
) -> None:
    both = [rule for rule in passed if rule in TWO_SIDED]
    if "latency" in passed:
        conditions = cell["conditions"]
        assert isinstance(conditions, dict)
        told = {"phase", "batch"} <= conditions.keys()
        label = "latency, batch and phase stated" if told else "latency, one of them left open"
        passed = [label if rule == "latency" else rule for rule in passed]
        both = [label if rule == "latency" else rule for rule in both]
    rows = [*passed, "held from both sides" if both else "bounded or free"]
    if not both:
        rows.append("bounded from one side" if passed else "left open" if noted else "free")
    for row in rows:
        tally.tried[row, kind] += 1
        tally.found[row, kind] += detected
    if not detected:
        what = f"{cell['quantity']} ({cell['metric']})"
        if both:
            why = "held by " + ", ".join(both)
        elif passed:
            why = "bounded by " + ", ".join(sorted(passed))
        elif noted:
            why = "left open, a note before the change: " + ", ".join(sorted(set(noted)))
        else:
            why = "free: no relation names it"
        tally.missed[what, why] += 1


def table(tally: Tally) -> str:
    """Detection by rule and kind of change, as Markdown."""
    last = ["held from both sides", "bounded from one side", "left open", "free"]
    rules = sorted({row for row, _ in tally.tried} - {*last, "bounded or free"})
    lines = [
        "| a rule that the true cell passes | " + " | ".join(MUTATIONS) + " | all |",
        "| --- |" + " --- |" * (len(MUTATIONS) + 1),
    ]
    for row in (*rules, *last):
        rates = [tally.rate(row, kind) for kind in MUTATIONS] + [tally.rate(row)]
        tried = sum(n for (r, _), n in tally.tried.items() if r == row)
        shown = ["–" if rate is None else f"{rate:.0%}" for rate in rates]
        lines.append(f"| {row} ({tried}) | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def missed(tally: Tally, most: int = 20) -> str:
    """What was not detected, the commonest first, and why."""
    lines = ["| cell | changes missed | why |", "| --- | --- | --- |"]
    for (what, why), count in tally.missed.most_common(most):
        lines.append(f"| {what} | {count} | {why} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=100)
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    tally = measure(range(given.first, given.first + given.reports), given.cells)
    print(table(tally), missed(tally), sep="\n\n")


if __name__ == "__main__":
    main()
