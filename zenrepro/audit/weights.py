"""What published sizes say of a model's parts: intervals by a small linear programme.

Unknowns are the parameters of each part and the bytes that each part takes in each format with
scales. They are tied by the total, by the bits of the formats, and by every published size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from zenrepro import claims as claims_module
from zenrepro.audit.engine import Meaning, View
from zenrepro.audit.linear import minimise
from zenrepro.printed import Interval

BITS: dict[str, int] = {
    "fp64": 64, "fp32": 32, "fp16": 16, "bf16": 16, "fp8_e4m3": 8, "int8": 8, "int4": 4, "nf4": 4,
}  # fmt: skip
# Formats that store scales beside the weights, and the most that these add: a 32-bit scale and
# a 16-bit zero point a group; one bit a weight where the group is unstated.
SCALED = ("fp8_e4m3", "int8", "int4", "nf4")
GROUP_BITS = 48.0
MOST_SCALE_BITS = 1.0
# "GB" in print may mean 2^30 bytes, in one place and not in another.
GIBI = 2.0**30 / 1e9
# Tables that are only looked up (embeddings): at most this share of a model, and at most a table
# of 2^20 entries, 2^14 wide.
LARGEST_LOOKUP_SHARE = 0.5
LARGEST_LOOKUP = 2.0**34
_SCALE = 1e9  # the programme counts in billions, to keep its numbers near one


class Weights:
    """One model's parts, its parameter count and the sizes that the report publishes of it."""

    def __init__(self, view: View, model: str) -> None:
        self.view, self.model = view, model
        self._known: dict[tuple[Any, Any], float | None] = {}
        stated = view.stated("count", "parameters", model=model)
        self.counts = stated
        self.parameters: Interval | None = None
        if stated:
            # The claims may round differently: what all of them allow, or else what any does.
            low = max(m.interval.low for m in stated)
            high = min(m.interval.high for m in stated)
            if low > high:
                low, high = (
                    min(m.interval.low for m in stated), max(m.interval.high for m in stated)
                )  # fmt: skip
            self.parameters = Interval(low, high)
        parts = [p for p in view.publication.parts if p.model in (None, model)]
        self.parts = parts or [claims_module.Part(name="weights", read="always")]
        self.divided = bool(parts)
        self.sizes = [
            m
            for m in view.stated("size", "weights", model=model)
            if m is view.readings[m.claim.id][0] and not m.get("draft_model") and self.formats(m)
        ]

    def formats(self, m: Meaning) -> dict[str, str] | None:
        """The format of each part under the meaning's policy or format; None when unstated."""
        policy = self.view.policies.get(m.get("policy") or "")
        if policy is not None:
            known = {p.name: policy.parts.get(p.name) for p in self.parts}
            if all(known.values()):
                return {name: str(stored) for name, stored in known.items()}
            if not self.divided and len(set(policy.parts.values())) == 1:
                return {"weights": next(iter(policy.parts.values()))}
            return None
        stored = m.get("format") or m.get("weights_dtype")
        if stored is None:
            return None
        return {p.name: stored for p in self.parts}

    def scale_bits(self, m: Meaning, stored: str) -> float:
        """The most bits a weight that scales may add in this format under this claim."""
        if stored not in SCALED:
            return 0.0
        policy = self.view.policies.get(m.get("policy") or "")
        group = m.get("group_size") or (policy.group_size if policy else None)
        return GROUP_BITS / group if group else MOST_SCALE_BITS

    def possible(self, m: Meaning) -> Interval:
        """The bytes that some division into parts takes under the meaning's formats."""
        assert self.parameters is not None
        formats = set((self.formats(m) or {}).values())
        least = min(BITS[f] for f in formats)
        most = max(BITS[f] + self.scale_bits(m, f) for f in formats)
        return Interval(self.parameters.low * least / 8, self.parameters.high * most / 8)

    def least_size(self, m: Meaning) -> float | None:
        """The fewest bytes that the weights take under the meaning's formats."""
        formats = self.formats(m)
        if formats is None or self.parameters is None:
            return None
        return self._least({p.name: 1.0 for p in self.parts}, formats)

    def least_read(self, m: Meaning) -> float | None:
        """The fewest bytes of the parts that every step reads, whatever the tokens."""
        formats = self.formats(m)
        if formats is None or self.parameters is None:
            return None
        return self._least({p.name: 1.0 for p in self.parts if p.read == "always"}, formats)

    def least_active(self) -> float | None:
        """The fewest parameters in the parts that every token uses."""
        if self.parameters is None:
            return None
        return self._least({p.name: 1.0 for p in self.parts if p.read == "always"}, None)

    def feasible(self, sizes: Sequence[Meaning]) -> bool:
        """Whether some division into parts gives all of these sizes at once, GB or GiB each."""
        return self._solve({}, None, sizes) is not None

    @cached_property
    def trusted(self) -> list[Meaning]:
        """The published sizes, if they can hold together; else none of them."""
        return self.sizes if self.feasible(self.sizes) else []

    def _least(self, cost: Mapping[str, float], formats: Mapping[str, str] | None) -> float | None:
        """Least total over the parts in ``cost``: bytes under ``formats``, else parameters."""
        key = (frozenset(cost), frozenset(formats.items()) if formats else None)
        if key not in self._known:
            found = self._solve(cost, formats, self.trusted)
            self._known[key] = None if found is None else found * _SCALE
        return self._known[key]

    def _solve(
        self,
        cost: Mapping[str, float],
        formats: Mapping[str, str] | None,
        sizes: Sequence[Meaning],
    ) -> float | None:
        if self.parameters is None:
            return None
        names = [p.name for p in self.parts]
        columns: dict[tuple[str, str], int] = {(n, ""): i for i, n in enumerate(names)}
        rows: list[tuple[dict[int, float], float]] = []
        everything = dict.fromkeys(range(len(names)), 1.0)
        rows.append((everything, self.parameters.high / _SCALE))
        rows.append((dict.fromkeys(everything, -1.0), -self.parameters.low / _SCALE))
        lookups = {i: 1.0 for i, p in enumerate(self.parts) if p.read == "gather"}
        if lookups and cost:
            rows.append((lookups, most_lookups(self.parameters.high) / _SCALE))
        for m in sizes:
            row: dict[int, float] = {}
            for name, stored in (self.formats(m) or {}).items():
                if stored in SCALED:
                    # Claims share scales only where they state one group size.
                    policy = self.view.policies.get(m.get("policy") or "")
                    group = m.get("group_size") or (policy.group_size if policy else None)
                    kept = (name, f"{stored} {group or m.get('policy') or m.claim.id}")
                    weight = 1.0
                    if kept not in columns:
                        columns[kept] = len(columns)
                        most = self.scale_bits(m, stored)
                        self._tie(rows, columns[(name, "")], columns[kept], stored, most)
                    column = columns[kept]
                else:
                    column, weight = columns[(name, "")], BITS[stored] / 8
                row[column] = row.get(column, 0.0) + weight
            rows.append((row, m.interval.high * GIBI / _SCALE))
            rows.append(({i: -w for i, w in row.items()}, -m.interval.low / _SCALE))
        weights = {
            columns[(name, "")]: c * (BITS[formats[name]] / 8 if formats else 1.0)
            for name, c in cost.items()
        }
        width = len(columns)
        dense = [([r.get(i, 0.0) for i in range(width)], limit) for r, limit in rows]
        answer = minimise([weights.get(i, 0.0) for i in range(width)], dense)
        return None if answer is None else max(answer[0], 0.0)

    @staticmethod
    def _tie(
        rows: list[tuple[dict[int, float], float]], part: int, stored_in: int, stored: str,
        scale_bits: float,
    ) -> None:  # fmt: skip
        """bits/8 x parameters <= bytes <= (bits + scales)/8 x parameters."""
        rows.append(({part: BITS[stored] / 8, stored_in: -1.0}, 0.0))
        rows.append(({part: -(BITS[stored] + scale_bits) / 8, stored_in: 1.0}, 0.0))


def most_lookups(parameters: float) -> float:
    """The most parameters that may sit in tables that are only looked up."""
    return min(LARGEST_LOOKUP_SHARE * parameters, LARGEST_LOOKUP)


def of_models(view: View) -> dict[str, Weights]:
    """The weights of every model that the report counts the parameters of."""
    models = dict.fromkeys(
        m.get("model")
        for name in view.having("count", "parameters")
        for m in view.readings[name]
        if m.metric == "parameters" and m.get("model")
    )
    return {model: Weights(view, model) for model in models}
