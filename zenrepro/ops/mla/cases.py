"""Shapes and tolerances of latent attention, once, for tests and for benchmarks.

``CASES`` by scale: ``smoke`` seconds on a CPU, ``small`` a minute or so on a 2-core CPU, ``full`` a
large GPU; ``ABLATION`` likewise. ``CONTRACT`` is for tests alone: length 1, one page, ragged
batches, many heads.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from zenrepro import counts
from zenrepro.ops.mla.sizes import LATENT, QUERY, ROW, VALUE
from zenrepro.ops.precision import UNIT_ROUNDOFF

Scale = Literal["smoke", "small", "full"]


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One shape. ``name`` is None for one that is not in ``CASES``.

    ``cache_len`` is a sequence's mean length; with ``skew`` the lengths are spread evenly over
    (1 ± skew) x cache_len. ``format`` is the cache's where it is not the inputs' own.
    ``model``: the model whose attention this is, where it is one's.
    """

    name: str | None
    phase: Literal["prefill", "decode"]
    batch: int
    query_len: int
    cache_len: int
    heads: int
    causal: bool = True
    skew: float = 0.0
    format: Literal["fp8_e4m3"] | None = None
    model: str | None = None

    def __str__(self) -> str:
        length = f"{self.query_len} over {self.cache_len}"
        if self.phase == "prefill" and self.query_len == self.cache_len:
            length = str(self.query_len)
        more = [f" ± {self.skew:.0%}" * bool(self.skew), ", full" * (not self.causal)]
        more.append(", FP8 cache" * bool(self.format))
        return f"{self.phase} {self.batch} × {length}{''.join(more)}, {self.heads} heads"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each sequence's cache, the shortest first."""
        return counts.ragged_lengths(self.batch, self.cache_len, self.skew)

    def conditions(self, dtype: str) -> dict[str, Any]:
        """The conditions of a record of this case, in canonical names."""
        decoding = self.phase == "decode"
        out: dict[str, Any] = {
            "op": "mla_decode" if decoding else "mla_prefill", "phase": self.phase,
            "batch": self.batch, "heads": self.heads, "head_dim": ROW if decoding else QUERY,
            "value_dim": LATENT if decoding else VALUE, "causal": self.causal, "dtype": dtype,
        }  # fmt: skip
        if not decoding and self.query_len == self.cache_len:
            out["seq_len"] = self.query_len
        else:
            out |= {"query_len": self.query_len, "cache_len": self.cache_len}
        if self.skew:
            out["skew"] = self.skew
        if self.format is not None:
            out["format"] = self.format
        if self.model is not None:
            out["model"] = self.model
        return out

    def dtypes(self, kind: str) -> tuple[str, ...]:
        """Formats that this case is measured in on a device kind ("cpu", "cuda", ...): a CPU
        computes in fp32, accelerators in bf16."""
        return ("fp32",) if kind == "cpu" else ("bf16",)


def decode(
    name: str | None,
    batch: int,
    heads: int,
    cache_len: int,
    *,
    query_len: int = 1,
    skew: float = 0.0,
    fp8: bool = False,
    model: str | None = None,
) -> Case:
    """A step of ``query_len`` tokens, the last of caches of ``cache_len``."""
    return Case(
        name=name,
        phase="decode",
        batch=batch,
        query_len=query_len,
        cache_len=cache_len,
        heads=heads,
        skew=skew,
        format="fp8_e4m3" if fp8 else None,
        model=model,
    )


def prefill(
    name: str | None,
    batch: int,
    heads: int,
    length: int,
    *,
    query_len: int | None = None,
    causal: bool = True,
    model: str | None = None,
) -> Case:
    """A prefill of ``length`` tokens; with ``query_len``, its last chunk of that many."""
    return Case(
        name=name,
        phase="prefill",
        batch=batch,
        query_len=query_len or length,
        cache_len=length,
        heads=heads,
        causal=causal,
        model=model,
    )


CASES: dict[Scale, tuple[Case, ...]] = {
    "smoke": (
        decode("smoke_decode", 2, 16, 129),
        decode("smoke_verify", 2, 16, 100, query_len=4, skew=0.5),
        decode("smoke_fp8", 2, 16, 70, fp8=True),
        prefill("smoke_prefill", 1, 4, 65),
    ),
    "small": (
        decode("small_8_16_1024", 8, 16, 1024),
        decode("small_8_16_1024_fp8", 8, 16, 1024, fp8=True),
        decode("small_8_16_1024_ragged", 8, 16, 1024, skew=0.8),
        decode("small_8_16_1024_verify", 8, 16, 1024, query_len=4),
        decode("small_1_16_8192", 1, 16, 8192),
        decode("small_4_64_1024", 4, 64, 1024),
        prefill("small_128", 1, 8, 128),
        prefill("small_512", 1, 8, 512),
        prefill("small_chunk", 1, 8, 512, query_len=16),
        prefill("small_step", 2, 8, 512, query_len=1),
    ),
    "full": (
        decode("full_128_16_4096", 128, 16, 4096),
        decode("full_128_24_4096", 128, 24, 4096),
        decode("full_64_64_4096", 64, 64, 4096),
        decode("full_64_64_16384", 64, 64, 16384),
        decode("full_64_128_4096", 64, 128, 4096),
        decode("full_8_16_32768", 8, 16, 32768),
        decode("full_1_16_131072", 1, 16, 131072),
        decode("full_64_40_4096", 64, 40, 4096),  # the heads of our 32B
        decode("full_128_16_4096_fp8", 128, 16, 4096, fp8=True),
        decode("full_128_24_4096_fp8", 128, 24, 4096, fp8=True),
        decode("full_64_64_4096_fp8", 64, 64, 4096, fp8=True),
        decode("full_64_64_16384_fp8", 64, 64, 16384, fp8=True),
        decode("full_64_128_4096_fp8", 64, 128, 4096, fp8=True),
        decode("full_8_16_32768_fp8", 8, 16, 32768, fp8=True),
        decode("full_1_16_131072_fp8", 1, 16, 131072, fp8=True),
        decode("full_64_40_4096_fp8", 64, 40, 4096, fp8=True),
        # Verification of speculated tokens, and requests of unlike lengths.
        decode("full_64_16_4096_2", 64, 16, 4096, query_len=2),
        decode("full_64_16_4096_4", 64, 16, 4096, query_len=4),
        decode("full_64_16_4096_8", 64, 16, 4096, query_len=8),
        decode("full_128_16_4096_ragged", 128, 16, 4096, skew=0.9),
        decode("full_64_64_4096_ragged", 64, 64, 4096, skew=0.9),
        # The report's attention table: its 7B model (24 heads, inferred) at batch 32, length 4096.
        decode("report_decode", 32, 24, 4096, model="zen-mode-7b"),
        prefill("full_4_32_4096", 4, 32, 4096),
        prefill("full_1_32_16384", 1, 32, 16384),
        prefill("full_chunk_128", 1, 32, 16384, query_len=128),
        # A decode step by the prefill's signature, where decompression and absorption can be
        # compared: one token of each sequence, projections included.
        prefill("full_step", 32, 24, 4096, query_len=1),
        prefill("report", 32, 24, 4096, model="zen-mode-7b"),
    ),
}


# The same prefix under more and more queries: where each form of the projection pays. With the
# cases of CASES that have the same prefix, so that no case is there twice.
ABLATION: dict[Scale, tuple[Case, ...]] = {
    "smoke": (prefill("ablation_1_of_65", 1, 4, 65, query_len=1),),
    "small": (
        prefill("ablation_1_of_512", 1, 8, 512, query_len=1),
        prefill("ablation_64_of_512", 1, 8, 512, query_len=64),
        prefill("ablation_128_of_512", 1, 8, 512, query_len=128),
        prefill("ablation_256_of_512", 1, 8, 512, query_len=256),
    ),
    "full": (
        prefill("ablation_1_of_4096", 8, 24, 4096, query_len=1),
        prefill("ablation_16_of_4096", 8, 24, 4096, query_len=16),
        prefill("ablation_64_of_4096", 8, 24, 4096, query_len=64),
        prefill("ablation_128_of_4096", 8, 24, 4096, query_len=128),
        prefill("ablation_256_of_4096", 8, 24, 4096, query_len=256),
        prefill("ablation_1024_of_4096", 8, 24, 4096, query_len=1024),
        prefill("ablation_4096", 8, 24, 4096),
    ),
}


# Shapes that break kernels, for the contract tests besides those of smoke.
CONTRACT: tuple[Case, ...] = (
    decode("one_row", 2, 16, 1),
    decode("one_page", 1, 16, 64),
    decode("one_more", 1, 16, 65),
    decode("partial_page", 3, 24, 100),
    decode("ragged", 5, 16, 90, skew=0.95),
    decode("heads_3", 1, 3, 33),
    decode("heads_40", 2, 40, 70),
    decode("heads_128", 1, 128, 66),
    decode("tokens_2", 2, 16, 65, query_len=2),
    decode("tokens_8", 2, 16, 130, query_len=8, skew=0.4),
    decode("tokens_of_the_whole", 1, 16, 8, query_len=8),
    decode("fp8_one_row", 1, 16, 1, fp8=True),
    decode("fp8_ragged", 3, 24, 80, query_len=3, skew=0.6, fp8=True),
    decode("fp8_heads_128", 1, 128, 65, fp8=True),
    prefill("one", 1, 2, 1),
    prefill("odd", 2, 3, 37),
    prefill("full", 1, 4, 40, causal=False),
    prefill("chunk", 1, 4, 97, query_len=31),
    prefill("chunk_full", 1, 2, 66, query_len=5, causal=False),
)


def misfit(case: Case) -> str | None:
    """Why a case makes no sense, in one line; None where it does."""
    least = min(case.lengths)
    if case.causal and least < case.query_len:
        return f"{case.query_len} queries want as many rows, the shortest cache has {least}"
    return None


def bound(dtype: str, same_precision_error: float) -> float:
    """The largest relative error (Frobenius, against fp64) that passes the gate.

    Twice the error of the plain loop in the same precision on the same inputs, as in the op
    ``attention``; where the loop is exact (one row) one rounding is left. With an FP8 cache both
    the fp64 reference and the loop read the same stored bytes, so that the loss of storing is not
    the implementation's; the loop rounds each expanded number to ``dtype`` once, since matrix units
    take bf16 and an e4m3 number times its fp32 scale has more bits than that. An implementation
    that also rounds its queries or weights to FP8 errs by several per cent and does not pass.
    """
    return max(2.0 * same_precision_error, UNIT_ROUNDOFF[dtype])
