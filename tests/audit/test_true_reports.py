"""The audit calls nothing an error in reports that are true."""

import os

import pytest
import truth

from zenrepro import audit

# The whole proof; ZENREPRO_TRUE_REPORTS asks for more of them.
REPORTS = int(os.environ.get("ZENREPRO_TRUE_REPORTS", "2000"))
CHUNKS = 8


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_true_reports_have_no_errors(chunk: int) -> None:
    claims = 0
    alarms = []
    for seed in range(chunk, REPORTS, CHUNKS):
        publication, sheets = truth.load(seed)
        claims += len(publication.claims)
        alarms += [
            f"seed {seed}: {finding.rule} {finding.claims}: {finding.arithmetic}"
            for finding in audit.run(publication, sheets).errors()
        ]
    assert claims > 20 * (REPORTS // CHUNKS)
    assert not alarms, "\n".join(alarms[:10])


def test_true_reports_exercise_the_rules() -> None:
    """A generator that no rule looks at would prove nothing."""
    passed: dict[str, int] = {}
    for seed in range(60):
        publication, sheets = truth.load(seed)
        for rules in audit.run(publication, sheets).passed.values():
            for rule in rules:
                passed[rule] = passed.get(rule, 0) + 1
    wanted = {
        "derivation", "latency", "energy", "draw", "size", "sizes-together", "memory", "capacity",
        "memory-roofline", "compute-roofline", "datasheet", "speculation", "part", "repeat",
    }  # fmt: skip
    assert wanted <= passed.keys()


def test_the_same_seed_gives_the_same_report() -> None:
    assert truth.report(7)[0] == truth.report(7)[0]
    assert truth.report(7)[0] != truth.report(8)[0]
