"""Conditions: under what a number was stated or measured. One canonical form for both.

Claims and records use the same keys, types and values, so that they can be compared. A new key
enters here, with a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zenrepro.errors import InputError

FORMATS = ("fp64", "fp32", "fp16", "bf16", "fp8_e4m3", "int8", "int4", "nf4")
PHASES = ("prefill", "decode")
# Where keys and values lie. The ordinary one, a rectangle, is left out of conditions.
LAYOUTS = ("dense", "varlen", "paged")
OPS = (
    "attention", "mla_prefill", "mla_decode", "moe_route", "moe_dispatch", "moe_combine",
    "moe_layer", "gemm_w4a16", "gemm_w8a16", "gemm_w8a8", "decode_step", "prefill", "serve",
    "speculate", "copy", "read", "matmul", "idle",
)  # fmt: skip
QUANTITIES = (
    "time", "throughput", "latency", "bandwidth", "flop_rate", "traffic", "memory", "size",
    "count", "energy_per_token", "power", "utilisation", "share", "ratio", "error", "quality",
    "acceptance", "spec",
)  # fmt: skip

# What the metrics of scalar claims mean. Rules join on quantity and metric, so a claim that uses
# another metric is carried and printed, but no rule reads it.
METRICS: dict[str, dict[str, str]] = {
    "throughput": {"rate": "tokens a second of the whole system"},
    "latency": {"tpot": "time between two tokens of one sequence", "ttft": "time to first token"},
    "energy_per_token": {"rate": "tokens a joule, or joules a token: the unit tells"},
    "power": {
        "tdp": "design power of the hardware", "draw": "power drawn while running",
        "limit": "power budget that the run was given",
    },
    "memory": {
        "capacity": "memory of the hardware", "peak": "memory in use while running",
        "working": "what an algorithm holds beyond inputs and outputs",
        "cache": "keys and values of a batch, in one layer",
    },
    "size": {"weights": "the stored weights", "cache": "keys and values that a token keeps"},
    "bandwidth": {"peak": "memory bandwidth that the hardware states"},
    "flop_rate": {"dense": "stated matrix rate", "sparse": "the same, 2:4 sparse"},
    "utilisation": {
        "bandwidth": "share of peak bandwidth", "compute": "share of peak matrix rate",
        "dram": "share of device memory's peak, by counters",
        "tensor_pipe": "share of cycles in which the tensor pipes work, by counters",
    },
    "quality": {"mmlu": "MMLU accuracy", "gsm8k": "GSM8K accuracy", "accuracy": "any accuracy"},
    "acceptance": {"rate": "share of drafted tokens that the verifier accepts"},
    "traffic": {
        "device": "accesses to device memory", "l2": "what the L2 hands over and takes",
        "multiprocessors": "what arrives at them and leaves them",
        "least": "inputs and output once",
        "counted": "what the algorithm moves when no cache helps",
        "expected": "device memory's by a model of the card's L2",
    },
    "error": {"squared": "squared error of the weights", "absolute": "off the exact result"},
    "count": {
        "parameters": "weights of a model", "chips": "devices in use", "cores": "cores of a chip",
        "batch": "sequences at a time", "seq_len": "tokens of a sequence",
        "top_k": "experts a token",
        "gamma": "drafted tokens a step", "group_size": "weights that share a scale",
        "bits": "bits of a weight", "flops": "floating-point operations",
        "launches": "kernels launched", "platforms": "anything else that is counted",
    },
    "spec": {
        "form_factor": "how it is packaged", "memory_type": "kind of memory",
        "architecture": "family of the chip", "existence": "the product's name",
        "format": "number format that is used", "support": "what is supported",
        "bound_by": "the resource that limits", "mechanism": "how something is done",
        "definition": "what something is defined as",
    },
}  # fmt: skip

_INT = (
    "batch", "seq_len", "cache_len", "query_len", "heads", "kv_heads", "head_dim", "value_dim",
    "page_size", "tokens", "experts", "top_k", "hidden", "intermediate", "m", "n", "k",
    "group_size", "gamma", "chips",
)  # fmt: skip
# How unlike the parts of a batch are. Of attention the sequences' lengths, spread evenly from
# (1 - skew) to (1 + skew) times their mean (``counts.ragged_lengths``); of experts their loads.
_FLOAT = ("skew",)
RAGGED_OPS = ("attention", "mla_prefill", "mla_decode")
_BOOL = ("causal", "overlap")
_ENUM: dict[str, tuple[str, ...]] = {
    "op": OPS,
    "phase": PHASES,
    "dtype": FORMATS,
    "format": FORMATS,
    "layout": LAYOUTS,
}
_STR = (
    "model", "platform", "policy", "batching", "workload", "task", "draft_model",
    "acceptance_source", "weights", "parallelism", "power_mode",
)  # fmt: skip
_LIST = ("optimisations",)
KEYS: tuple[str, ...] = tuple(sorted((*_INT, *_FLOAT, *_BOOL, *_ENUM, *_STR, *_LIST)))

Value = int | float | bool | str | tuple[str, ...]
Conditions = dict[str, Value]


def canonical(given: Mapping[str, Any], place: str = "conditions") -> Conditions:
    """Return the conditions typed, complete and in key order.

    Decode tokens are filled in from batch x query_len where both are given and must agree where
    stated. The dense layout and a skew of 0 between lengths are left out: they are what is meant
    without one. Raises InputError naming ``place`` and the key for unknown keys, wrong types,
    unknown values and sizes that are not positive whole numbers.
    """
    out: Conditions = {}
    for key in sorted(given):
        out[key] = _typed(key, given[key], place)
    if out.get("layout") == "dense":
        del out["layout"]
    if "skew" in out and out.get("op") in RAGGED_OPS:
        if not 0 <= float(out["skew"]) < 1:  # type: ignore[arg-type]
            raise InputError(
                f"{place}: skew of lengths wants a number from 0 to below 1, got {out['skew']!r}"
            )
        if out["skew"] == 0:
            del out["skew"]
    if out.get("phase") == "decode" and "batch" in out and "query_len" in out:
        tokens = int(out["batch"]) * int(out["query_len"])  # type: ignore[arg-type]
        if out.setdefault("tokens", tokens) != tokens:
            raise InputError(
                f"{place}: tokens is {out['tokens']}, but batch x query_len is {tokens}; "
                "in decode they are the same"
            )
        out = {key: out[key] for key in sorted(out)}
    return out


def _typed(key: str, value: Any, place: str) -> Value:
    if key in _INT:
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise InputError(f"{place}: {key} wants a positive whole number, got {value!r}")
        return value
    if key in _FLOAT:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise InputError(f"{place}: {key} wants a number, got {value!r}")
        return float(value)
    if key in _BOOL:
        if not isinstance(value, bool):
            raise InputError(f"{place}: {key} wants true or false, got {value!r}")
        return value
    if key in _ENUM:
        if value not in _ENUM[key]:
            raise InputError(f"{place}: {key} wants one of {', '.join(_ENUM[key])}, got {value!r}")
        return str(value)
    if key in _STR:
        if not isinstance(value, str) or not value:
            raise InputError(f"{place}: {key} wants a non-empty text, got {value!r}")
        return value
    if key in _LIST:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise InputError(f"{place}: {key} wants a list of texts, got {value!r}")
        return tuple(sorted(set(value)))
    raise InputError(f"{place}: unknown condition {key!r}; known: {', '.join(KEYS)}")
