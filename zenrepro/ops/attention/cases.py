"""Shapes and tolerances of attention, once, for tests and for benchmarks.

``CASES`` by scale: ``smoke`` seconds on a CPU, ``small`` a minute or so on a 2-core CPU, ``full`` a
large GPU. ``CONTRACT`` is for tests alone: length 1, chunks, shared heads, unequal widths.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from zenrepro.ops.precision import UNIT_ROUNDOFF

Scale = Literal["smoke", "small", "full"]


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One shape. ``name`` is None for one that is not in ``CASES``.

    ``both_formats``: measured in a second format too (``dtypes``).
    ``model``: the model whose attention this is, where it is one's.
    """

    name: str | None
    phase: Literal["prefill", "decode"]
    batch: int
    query_len: int
    cache_len: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    causal: bool
    model: str | None = None
    both_formats: bool = False

    def __str__(self) -> str:
        length = f"{self.query_len} over {self.cache_len}"
        if self.phase == "prefill" and self.query_len == self.cache_len:
            length = str(self.query_len)
        heads = f"{self.heads}/{self.kv_heads}" if self.heads != self.kv_heads else str(self.heads)
        mask = "causal" if self.causal else "full"
        return f"{self.phase} {self.batch} × {length}, {heads} heads of {self.head_dim}, {mask}"

    def conditions(self, dtype: str) -> dict[str, Any]:
        """The conditions of a record of this case, in canonical names."""
        out: dict[str, Any] = {
            "op": "attention", "phase": self.phase, "batch": self.batch, "heads": self.heads,
            "kv_heads": self.kv_heads, "head_dim": self.head_dim, "causal": self.causal,
            "dtype": dtype,
        }  # fmt: skip
        if self.value_dim != self.head_dim:
            out["value_dim"] = self.value_dim
        if self.phase == "prefill" and self.query_len == self.cache_len:
            out["seq_len"] = self.query_len
        else:
            out |= {"query_len": self.query_len, "cache_len": self.cache_len}
        if self.model is not None:
            out["model"] = self.model
        return out

    def dtypes(self, kind: str) -> tuple[str, ...]:
        """Formats that this case is measured in on a device kind ("cpu", "cuda", ...).

        A CPU computes in fp32, and in bf16 since it can. Accelerators compute in bf16, and in
        fp16, which is the precision of the report's naive baseline.
        """
        if kind == "tpu":
            return ("bf16",)
        first, second = ("fp32", "bf16") if kind == "cpu" else ("bf16", "fp16")
        return (first, second) if self.both_formats else (first,)


def prefill(
    name: str | None,
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    *,
    causal: bool = True,
    kv_heads: int | None = None,
    value_dim: int | None = None,
    query_len: int | None = None,
    model: str | None = None,
    both_formats: bool = False,
) -> Case:
    """A prefill of ``length`` tokens; with ``query_len``, its last chunk of that many."""
    return Case(
        name=name,
        phase="prefill",
        batch=batch,
        query_len=query_len or length,
        cache_len=length,
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=head_dim,
        value_dim=value_dim or head_dim,
        causal=causal,
        model=model,
        both_formats=both_formats,
    )


def decode(
    name: str | None,
    batch: int,
    cache_len: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    query_len: int = 1,
    both_formats: bool = False,
) -> Case:
    """A step of ``query_len`` tokens, the last of a cache of ``cache_len``."""
    return Case(
        name=name,
        phase="decode",
        batch=batch,
        query_len=query_len,
        cache_len=cache_len,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        causal=True,
        both_formats=both_formats,
    )


CASES: dict[Scale, tuple[Case, ...]] = {
    "smoke": (
        prefill("smoke_causal", 1, 64, 4, 32),
        prefill("smoke_grouped", 2, 65, 4, 32, kv_heads=2),
        decode("smoke_decode", 2, 129, 4, 2, 32),
    ),
    "small": (
        prefill("small_256", 1, 256, 8, 64),
        prefill("small_512", 1, 512, 8, 64),
        prefill("small_1024", 1, 1024, 8, 64, both_formats=True),
        prefill("small_1024_full", 1, 1024, 8, 64, causal=False),
        prefill("small_2048", 1, 2048, 8, 64),
        decode("small_decode_1", 1, 4096, 8, 8, 64),
        decode("small_decode_8", 8, 4096, 8, 8, 64, both_formats=True),
        decode("small_decode_8_grouped", 8, 4096, 8, 2, 64),
    ),
    "full": (
        # The same 16384 tokens at every length.
        prefill("full_1024", 16, 1024, 32, 128),
        prefill("full_4096", 4, 4096, 32, 128, both_formats=True),
        prefill("full_4096_full", 4, 4096, 32, 128, causal=False, both_formats=True),
        prefill("full_16384", 1, 16384, 32, 128),
        prefill("full_16384_full", 1, 16384, 32, 128, causal=False),
        # The report's attention table: its 7B model at batch 32 and length 4096. It gives neither
        # heads nor width; 24 heads of 128 follow from the sizes that it does give (the model's
        # inferred architecture). Causal, since it is a language model.
        prefill("report", 32, 4096, 24, 128, model="zen-mode-7b", both_formats=True),
        decode("full_decode_1_4096", 1, 4096, 32, 32, 128),
        decode("full_decode_1_16384", 1, 16384, 32, 32, 128),
        decode("full_decode_32_4096", 32, 4096, 32, 32, 128),
        decode("full_decode_32_16384", 32, 16384, 32, 32, 128),
        decode("full_decode_1_4096_grouped", 1, 4096, 32, 8, 128),
        decode("full_decode_1_16384_grouped", 1, 16384, 32, 8, 128),
        decode("full_decode_32_4096_grouped", 32, 4096, 32, 8, 128),
        decode("full_decode_32_16384_grouped", 32, 16384, 32, 8, 128),
    ),
}


# Shapes that break kernels, for the contract tests besides those of smoke.
CONTRACT: tuple[Case, ...] = (
    prefill("full", 1, 64, 4, 32, causal=False),
    prefill("one", 1, 1, 2, 16),
    prefill("unequal", 1, 33, 4, 48, value_dim=32),
    prefill("chunk", 1, 127, 4, 32, query_len=31),
    prefill("chunk_full", 1, 40, 2, 64, query_len=7, causal=False),
    decode("decode_one_key", 2, 1, 4, 4, 32),
    decode("decode_ungrouped", 2, 128, 4, 4, 32),
    decode("decode_shared", 2, 129, 4, 1, 32),
    decode("verify", 2, 65, 4, 2, 32, query_len=3),
)


def bound(dtype: str, same_precision_error: float) -> float:
    """The largest relative error (Frobenius, against fp64) that passes the gate.

    Twice the error of the plain loop in the same precision on the same inputs: another order of
    summation, or a scale applied earlier, moves the error by less than that; a wrong scale, mask or
    head moves it by far more. Where the loop is exact (one key) one rounding is left.
    """
    return max(2.0 * same_precision_error, UNIT_ROUNDOFF[dtype])
