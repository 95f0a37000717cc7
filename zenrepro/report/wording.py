"""Claims, conditions and records in words: the labels of rows, the same in TeX and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zenrepro.claims import Claim
from zenrepro.conditions import Conditions
from zenrepro.records import Record

# Condition keys in the order in which a reader asks for them, with a phrase for each value.
_PHRASES: dict[str, str] = {
    "model": "{}",
    "platform": "{}",
    "op": "{}",
    "phase": "{}",
    "dtype": "{}",
    "format": "{}",
    "policy": "{}",
    "weights": "{} weights",
    "batch": "batch {}",
    "chips": "{} chips",
    "seq_len": "{} tokens long",
    "cache_len": "cache {}",
    "query_len": "query {}",
    "heads": "{} heads",
    "kv_heads": "{} KV heads",
    "head_dim": "head {}",
    "value_dim": "value {}",
    "tokens": "{} tokens",
    "task": "{}",
    "workload": "{}",
    "batching": "{} batching",
    "draft_model": "draft {}",
    "gamma": "γ = {}",
    "group_size": "groups of {}",
    "experts": "{} experts",
    "top_k": "top {}",
}
_PREFIXED = {"seq_len": "sequence {}"}
_ACRONYMS = {
    "tdp": "TDP",
    "tpot": "TPOT",
    "ttft": "TTFT",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "flop": "FLOP",
    "flops": "FLOPs",
}
_GENERIC_METRICS = frozenset(
    {"rate", "ratio", "share", "weights", "dense", "draw", "median", "value", "peak", "accuracy"}
)


def conditions(given: Mapping[str, Any], leave: frozenset[str] = frozenset()) -> str:
    """Conditions as a phrase: ``decode, bf16, batch 8, cache 4096``."""
    parts = []
    rest = [key for key in given if key not in _PHRASES]
    for key in (*_PHRASES, *sorted(rest)):
        if key not in given or key in leave:
            continue
        value = given[key]
        if key == "causal":
            parts.append("causal" if value else "not causal")
        elif key == "overlap":
            parts.append("overlapped" if value else "not overlapped")
        elif isinstance(value, list | tuple):
            parts.append(" + ".join(str(v) for v in value) or f"no {key}")
        elif key == "chips" and value == 1:
            parts.append("1 chip")
        else:
            phrase = _PREFIXED.get(key) or _PHRASES.get(key, key.replace("_", " ") + " {}")
            parts.append(phrase.format(_words(value)))
    return ", ".join(parts)


def _words(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    return f"{value:,}"


def quantity(name: str, metric: str) -> str:
    """A quantity with its metric where that says more: ``latency (TPOT)``."""
    base = name.replace("flop_rate", "FLOP rate").replace("_", " ")
    if metric in _GENERIC_METRICS or metric == name:
        return base
    return f"{base} ({_ACRONYMS.get(metric, metric.replace('_', ' '))})"


def place(claim: Claim) -> str:
    """Where a claim stands: ``abstract, line 42`` or ``Table «…», line 99``."""
    where = claim.where
    if where.part == "table" and where.table:
        return f"table “{where.table}”, line {where.line}"
    if where.section and where.section.lower() != where.part:
        return f"{where.part}, {where.section}, line {where.line}"
    return f"{where.part}, line {where.line}"


def describe(claim: Claim) -> str:
    """One claim in words, for the table of the text's claims and the lists of findings."""
    where = claim.where
    if where.part == "table":
        cell = ", ".join(part for part in (where.row, where.column) if part)
        if cell:
            return cell
    if where.row or where.column:
        return ", ".join(part for part in (where.row, where.column) if part)
    what = quantity(claim.quantity, claim.metric)
    stated: Conditions = claim.conditions
    phrase = conditions(stated)
    return f"{what}: {phrase}" if phrase else what


def record_name(record: Record) -> str:
    """What a record measured, without the machine: implementation and quantity."""
    return f"{record.implementation}, {quantity(record.quantity, record.metric)}"
