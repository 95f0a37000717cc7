"""Every rule of the audit, by name: the list to read and to search."""

from __future__ import annotations

from zenrepro.audit import (
    datasheet,
    derivations,
    energy,
    formulas,
    latency,
    parts,
    ranges,
    repeats,
    roofline,
    sizes,
    speculation,
)  # fmt: skip
from zenrepro.audit.engine import Rule

RULES: tuple[tuple[str, Rule], ...] = (
    ("range", ranges.in_range),
    ("derivation", derivations.derivation),
    ("product", derivations.product),
    ("baseline", derivations.baseline),
    ("repeat", repeats.repeat),
    ("shared-number", repeats.shared_number),
    ("latency", latency.latency),
    ("energy", energy.energy),
    ("draw", energy.draw),
    ("size", sizes.size),
    ("sizes-together", sizes.sizes_together),
    ("memory", sizes.memory),
    ("capacity", sizes.capacity),
    ("memory-roofline", roofline.memory_roofline),
    ("compute-roofline", roofline.compute_roofline),
    ("part", parts.part),
    ("work-per-token", parts.work_per_token),
    ("speculation", speculation.speculation),
    ("datasheet", datasheet.datasheet),
    ("formula", formulas.formula),
)


def explained() -> list[tuple[str, str]]:
    """Every rule's name and the sentence that says what it holds claims to."""
    out = []
    for name, rule in RULES:
        first = (rule.__doc__ or "").split("\n\n")[0]
        words = " ".join(first.split())
        for written, shown in ((" x ", " × "), ("<=", "≤"), (">=", "≥")):
            words = words.replace(written, shown)
        out.append((name, words))
    return out


# Rules that nearly every number passes: they find faults, but passing them shows nothing.
WEAK = frozenset({"range"})
