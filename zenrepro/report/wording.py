"""Claims, conditions and records in words: the labels of rows, the same in TeX and HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zenrepro.claims import Claim
from zenrepro.errors import InputError

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
    "seq_len": "sequence {}",
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
_ACRONYMS = {
    "tdp": "TDP",
    "tpot": "TPOT",
    "ttft": "TTFT",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "flop": "FLOP",
    "flops": "FLOPs",
    "seq_len": "sequence length",
    "top_k": "experts a token",
    "gamma": "drafted tokens",
    "chips": "chips",
    "accuracy": "accuracy",
}
_GENERIC_METRICS = frozenset(
    {"rate", "ratio", "share", "weights", "dense", "draw", "median", "value", "peak", "accuracy"}
)

_OPS = {
    "mla_prefill": "MLA prefill",
    "mla_decode": "MLA decode",
    "moe_route": "MoE routing",
    "moe_dispatch": "MoE dispatch",
    "moe_combine": "MoE combination",
    "moe_layer": "MoE layer",
    "gemm_w4a16": "W4A16 matrix product",
    "gemm_w8a16": "W8A16 matrix product",
    "gemm_w8a8": "W8A8 matrix product",
    "decode_step": "decode step",
    "matmul": "matrix product",
}  # fmt: skip
FORMAT_NAMES = {
    "fp64": "FP64", "fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "fp8_e4m3": "FP8 (E4M3)",
    "int8": "INT8", "int4": "INT4", "nf4": "NF4",
}  # fmt: skip
# One of what several of which are a plural.
_COUNTED = {
    "chips": "chip", "heads": "head", "kv_heads": "KV head", "tokens": "token",
    "experts": "expert",
}  # fmt: skip
_KEYS = {
    "seq_len": "sequence length", "cache_len": "cache length", "dtype": "format",
    "policy": "precision of the weights", "head_dim": "head dimension",
}  # fmt: skip
# Names as data write them, and the space between a number and its unit.
_NAME = re.compile(r"(?<![\w.-])[a-z0-9]+(?:[-_][a-z0-9.]*[a-z0-9]+)*(?![\w-])")
_BEFORE_UNIT = re.compile(r"(?<=[0-9]) (?=(?:[kMGT]?(?:B|FLOP|OP)|token|ms|W|pp|billion)\b|%)")
LABELS = "labels.yaml"
_SECTIONS = ("tables", "rows", "columns", "values", "claims", "notes")


class Words:
    """A report's words for its own names, from ``labels.yaml`` beside its templates.

    ``tables``, ``rows`` (by ``table/row`` or ``row``), ``columns`` (likewise) and ``values`` (of
    conditions) map what the claims call something to what print calls it; ``claims`` says by id
    what a claim states, where quantity and metric say too little; ``notes`` stand below tables.
    What is not listed is printed as it is; platforms are called what their datasheets call them.
    """

    def __init__(self, labels: Mapping[str, Mapping[str, str]], platforms: Mapping[str, str]):
        self.labels = labels
        self.platforms = platforms

    def table(self, name: str) -> str:
        return self._label("tables", name)

    def note(self, table: str) -> str:
        """What stands below a table; nothing where the project says nothing."""
        return self.labels.get("notes", {}).get(table, "")

    def row(self, table: str, row: str) -> str:
        rows = self.labels.get("rows", {})
        return rows.get(f"{table}/{row}", rows.get(row, row))

    def column(self, table: str, name: str) -> str:
        columns = self.labels.get("columns", {})
        return columns.get(f"{table}/{name}", columns.get(name, name))

    def prose(self, text: str) -> str:
        """A line of the audit's arithmetic with names in words, and numbers kept to their units."""
        named = _NAME.sub(lambda found: self._named(found[0]), text)
        return _BEFORE_UNIT.sub("\u00a0", named)

    def _named(self, name: str) -> str:
        values = self.labels.get("values", {})
        known = values.get(name) or self.platforms.get(name)
        return known or _OPS.get(name) or FORMAT_NAMES.get(name) or _KEYS.get(name, name)

    def value(self, key: str, value: Any) -> str:
        """One value of a condition."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            return str(value)
        if isinstance(value, int):
            return f"{value:,}"
        if key == "platform" and value in self.platforms:
            return self.labels.get("values", {}).get(value, self.platforms[value])
        if key == "op":
            return _OPS.get(value, value)
        if key in ("dtype", "format") and value not in self.labels.get("values", {}):
            return FORMAT_NAMES.get(value, value)
        return self._label("values", value)

    def _label(self, section: str, name: str) -> str:
        return self.labels.get(section, {}).get(name, name)

    def conditions(self, given: Mapping[str, Any], leave: frozenset[str] = frozenset()) -> str:
        """Conditions as a phrase: ``decode, bf16, batch 8, cache 4,096``."""
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
                joined = " + ".join(self.value(key, v) for v in value)
                parts.append(joined or f"no {key}")
            elif value == 1 and key in _COUNTED:
                parts.append(f"1 {_COUNTED[key]}")
            else:
                phrase = _PHRASES.get(key, key.replace("_", " ") + " {}")
                parts.append(phrase.format(self.value(key, value)))
        return ", ".join(parts)

    def describe(self, claim: Claim) -> str:
        """One claim in words: its cell, or what it states under which conditions."""
        where = claim.where
        if where.table is not None:
            row = self.row(where.table, where.row) if where.row else ""
            what = self.label(claim)
            return f"{self.table(where.table)}: {row + ', ' if row else ''}{what}"
        phrase = self.conditions(claim.conditions)
        what = self.label(claim)
        what = f"{place(claim)}: {what[:1].lower() + what[1:] if what[1:2].islower() else what}"
        return f"{what} ({phrase})" if phrase else what

    def detail(self, claim: Claim) -> str:
        """Under which conditions a claim is stated, and where: ``H100, line 39``."""
        phrase = self.conditions(claim.conditions)
        return f"{phrase}, line {claim.where.line}" if phrase else f"line {claim.where.line}"

    def label(self, claim: Claim) -> str:
        """What a claim states of its row: the column, or the quantity where that says more."""
        named = self.labels.get("claims", {}).get(claim.id)
        if named is not None:
            return named
        if claim.where.column and claim.quantity != "spec":
            return self.column(claim.where.table or "", claim.where.column)
        words = quantity(claim.quantity, claim.metric)
        return words[:1].upper() + words[1:]


def load(path: Path, platforms: Mapping[str, str]) -> Words:
    """The words of a project; none where it has no such file. Raises InputError naming the key."""
    if not path.is_file():
        return Words({}, platforms)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: wants sections {', '.join(_SECTIONS)}")
    for section, entries in raw.items():
        if section not in _SECTIONS:
            raise InputError(f"{path}: unknown section {section!r}; known: {', '.join(_SECTIONS)}")
        if not isinstance(entries, dict):
            raise InputError(f"{path}: {section} wants names and their words")
        for name, words in entries.items():
            if not isinstance(name, str) or not isinstance(words, str):
                raise InputError(f"{path}: {section}: {name!r} and {words!r} must both be texts")
    return Words(raw, platforms)


def quantity(name: str, metric: str) -> str:
    """A quantity with its metric where that says more: ``latency (TPOT)``."""
    base = name.replace("flop_rate", "FLOP rate").replace("_", " ")
    said = _ACRONYMS.get(metric, metric.replace("_", " "))
    if name in ("spec", "quality", "ratio", "count") and metric not in ("ratio", "share"):
        return said
    if metric in _GENERIC_METRICS or metric == name:
        return base
    return f"{base} ({said})"


def place(claim: Claim) -> str:
    """Where a claim stands, without its row: ``abstract``, ``caption``, ``section 3``."""
    where = claim.where
    if where.part == "table" and where.table is not None:
        return "Stated with the table"
    names = {"formula": "Formulas", "listing": "Listings", "table": "Names in tables"}
    return where.section or names.get(where.part, where.part.capitalize())


def title_lines(title: str, longest: int = 12) -> list[str]:
    """A title in lines of about ``longest`` characters, broken between words."""
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) >= longest:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
