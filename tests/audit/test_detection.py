"""One wrong cell is found where a relation holds it; the measured table is in docs/AUDIT.md."""

import detection
import pytest
import truth
from mutations import MUTATIONS, mutate

from zenrepro import audit, claims


@pytest.fixture(scope="module")
def tally() -> detection.Tally:
    return detection.measure(range(5000, 5040), cells=9)


@pytest.mark.slow
def test_most_changes_of_held_cells_are_found(tally: detection.Tally) -> None:
    print(detection.table(tally))
    print(detection.missed(tally))
    assert sum(n for (r, _), n in tally.tried.items() if r == "held from both sides") > 200
    rate = tally.rate("held from both sides")
    assert rate is not None
    assert rate >= 0.75


# Well below what docs/AUDIT.md measures with more cells, so that only a broken rule falls under.
@pytest.mark.parametrize(
    ("rule", "floor"),
    [("derivation", 0.9), ("datasheet", 0.9), ("size", 0.8), ("energy", 0.55)],
)
def test_each_rule_that_holds_from_both_sides(
    tally: detection.Tally, rule: str, floor: float
) -> None:
    rate = tally.rate(rule)
    assert rate is not None
    assert rate >= floor


def test_missed_cells_are_listed_with_a_reason(tally: detection.Tally) -> None:
    free = [why for (_, why) in tally.missed if why.startswith("free")]
    assert free
    assert "why" in detection.missed(tally)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_change_leaves_a_valid_report(kind: str) -> None:
    import random

    changed = 0
    raw, sheets = truth.report(3)
    for index in range(len(raw["claims"])):
        wrong = mutate(raw, index, kind, random.Random(index))
        if wrong is not None:
            assert wrong != raw
            audit.run(claims.parse(wrong, "changed"), sheets)
            changed += 1
    assert changed > 0
    assert raw == truth.report(3)[0]
