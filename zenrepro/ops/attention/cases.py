"""Shapes and tolerances of attention, once, for tests and for benchmarks.

``CASES`` by scale: ``smoke`` seconds on a CPU, ``small`` a minute or so on a 2-core CPU, ``full`` a
large GPU. ``CONTRACT`` is for tests alone: length 1, chunks, shared heads, unequal widths, empty
sequences, queries that see no key, large and tiny values.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from zenrepro import counts
from zenrepro.ops.precision import UNIT_ROUNDOFF

Scale = Literal["smoke", "small", "full"]
Layout = Literal["dense", "varlen", "paged"]


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One shape. ``name`` is None for one that is not in ``CASES``.

    ``cache_len`` is the mean length; with ``skew`` the lengths of a batch are spread evenly over
    (1 ± skew) x cache_len. ``lengths`` and ``query_lengths`` give each sequence's instead, and
    ``magnitude`` scales all inputs: for tests, since conditions do not tell them.
    ``both_formats``: measured in a second format too, ``fp8``: with inputs in it (``dtypes``).
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
    layout: Layout = "dense"
    page_size: int | None = None
    skew: float = 0.0
    lengths: tuple[int, ...] | None = None
    query_lengths: tuple[int, ...] | None = None
    magnitude: float = 1.0
    model: str | None = None
    both_formats: bool = False
    fp8: bool = False

    def __str__(self) -> str:
        length = f"{self.query_len} over {self.cache_len}"
        if self.phase == "prefill" and self.query_len == self.cache_len:
            length = str(self.query_len)
        if self.skew:
            length = f"{length} ± {self.skew:.0%}"
        heads = f"{self.heads}/{self.kv_heads}" if self.heads != self.kv_heads else str(self.heads)
        width = str(self.head_dim)
        if self.value_dim != self.head_dim:
            width = f"{width}/{self.value_dim}"
        mask = "causal" if self.causal else "full"
        layout = {"dense": "", "varlen": ", varlen", "paged": f", pages of {self.page_size}"}
        return (
            f"{self.phase} {self.batch} × {length}, {heads} heads of {width}, {mask}"
            f"{layout[self.layout]}"
        )

    @property
    def sequences(self) -> tuple[tuple[int, int], ...]:
        """Queries and keys of each sequence."""
        keys = self.lengths
        if keys is None:
            keys = counts.ragged_lengths(self.batch, self.cache_len, self.skew)
        if self.query_lengths is not None:
            queries = self.query_lengths
        elif self.layout == "varlen" and self.query_len == self.cache_len:
            queries = keys
        else:
            queries = (self.query_len,) * self.batch
        return tuple(zip(queries, keys, strict=True))

    @property
    def tokens(self) -> int:
        """Queries of all sequences."""
        return sum(queries for queries, _ in self.sequences)

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
        if self.layout != "dense":
            out["layout"] = self.layout
        if self.page_size is not None:
            out["page_size"] = self.page_size
        if self.skew:
            out["skew"] = self.skew
        if self.model is not None:
            out["model"] = self.model
        return out

    def dtypes(self, kind: str) -> tuple[str, ...]:
        """Formats that this case is measured in on a device kind ("cpu", "cuda", ...).

        A CPU computes in fp32, and in bf16 since it can. Accelerators compute in bf16, and in
        fp16, which is the precision of the report's naive baseline; NVIDIA's also in FP8.
        """
        if kind == "tpu":
            return ("bf16",)
        first, second = ("fp32", "bf16") if kind == "cpu" else ("bf16", "fp16")
        found = (first, second) if self.both_formats else (first,)
        return (*found, "fp8_e4m3") if self.fp8 and kind == "cuda" else found


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
    layout: Layout = "dense",
    skew: float = 0.0,
    lengths: tuple[int, ...] | None = None,
    query_lengths: tuple[int, ...] | None = None,
    magnitude: float = 1.0,
    model: str | None = None,
    both_formats: bool = False,
    fp8: bool = False,
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
        layout=layout,
        skew=skew,
        lengths=lengths,
        query_lengths=query_lengths,
        magnitude=magnitude,
        model=model,
        both_formats=both_formats,
        fp8=fp8,
    )


def decode(
    name: str | None,
    batch: int,
    cache_len: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    query_len: int = 1,
    page_size: int | None = None,
    skew: float = 0.0,
    lengths: tuple[int, ...] | None = None,
    magnitude: float = 1.0,
    both_formats: bool = False,
) -> Case:
    """A step of ``query_len`` tokens, the last of a cache of ``cache_len``, in pages if they have a
    size."""
    return Case(
        name=name,
        phase="decode",
        batch=batch,
        query_len=query_len,
        cache_len=cache_len,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim or head_dim,
        causal=True,
        layout="dense" if page_size is None else "paged",
        page_size=page_size,
        skew=skew,
        lengths=lengths,
        magnitude=magnitude,
        both_formats=both_formats,
    )


CASES: dict[Scale, tuple[Case, ...]] = {
    "smoke": (
        prefill("smoke_causal", 1, 64, 4, 32),
        prefill("smoke_grouped", 2, 65, 4, 32, kv_heads=2),
        decode("smoke_decode", 2, 129, 4, 2, 32),
        prefill("smoke_varlen", 3, 40, 4, 32, kv_heads=2, layout="varlen", skew=0.9),
        decode("smoke_paged", 3, 100, 4, 2, 32, page_size=16, skew=0.9),
    ),
    "small": (
        prefill("small_256", 1, 256, 8, 64),
        prefill("small_512", 1, 512, 8, 64),
        prefill("small_1024", 1, 1024, 8, 64, both_formats=True),
        prefill("small_1024_full", 1, 1024, 8, 64, causal=False),
        prefill("small_2048", 1, 2048, 8, 64),
        decode("small_decode_1", 1, 4096, 8, 8, 64),
        decode("small_decode_2", 2, 4096, 8, 8, 64),
        decode("small_decode_8", 8, 4096, 8, 8, 64, both_formats=True),
        decode("small_decode_8_grouped", 8, 4096, 8, 2, 64),
        prefill("small_varlen", 4, 512, 8, 64, layout="varlen", skew=0.75),
        decode("small_paged", 8, 4096, 8, 2, 64, page_size=64, skew=0.5),
    ),
    "full": (
        # The same 16384 tokens at every length.
        prefill("full_1024", 16, 1024, 32, 128),
        prefill("full_4096", 4, 4096, 32, 128, both_formats=True),
        prefill("full_4096_full", 4, 4096, 32, 128, causal=False, both_formats=True),
        prefill("full_16384", 1, 16384, 32, 128, fp8=True),
        prefill("full_16384_full", 1, 16384, 32, 128, causal=False, fp8=True),
        prefill("full_4096_64", 4, 4096, 32, 64),
        prefill("full_4096_grouped", 4, 4096, 32, 128, kv_heads=8),
        # Latent attention once its keys and values are expanded: 128 + 64 rotary wide, 128 out.
        prefill("full_4096_192", 4, 4096, 32, 192, value_dim=128),
        prefill("full_16384_192", 1, 16384, 32, 192, value_dim=128),
        # The same 16384 tokens in sequences of 205 to 3891.
        prefill("full_varlen", 8, 2048, 32, 128, layout="varlen", skew=0.9),
        prefill("full_varlen_192", 8, 2048, 32, 192, value_dim=128, layout="varlen", skew=0.9),
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
        decode("full_decode_8_4096_grouped", 8, 4096, 32, 8, 128),
        decode("full_decode_32_4096_grouped", 32, 4096, 32, 8, 128),
        decode("full_decode_128_4096_grouped", 128, 4096, 32, 8, 128),
        decode("full_decode_32_16384_grouped", 32, 16384, 32, 8, 128),
        decode("full_paged_32_4096", 32, 4096, 32, 8, 128, page_size=64),
        decode("full_paged_32_4096_16", 32, 4096, 32, 8, 128, page_size=16),
        decode("full_paged_32_4096_ragged", 32, 4096, 32, 8, 128, page_size=64, skew=0.9),
        decode("full_paged_32_4096_verify", 32, 4096, 32, 8, 128, page_size=64, query_len=4),
        decode("full_paged_1_131072", 1, 131072, 32, 8, 128, page_size=64),
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
    prefill("odd", 1, 131, 4, 64, kv_heads=2),
    prefill("wide", 1, 97, 2, 128),
    prefill("latent", 1, 130, 2, 192, value_dim=128),
    prefill("large", 1, 70, 2, 64, magnitude=30.0),
    prefill("tiny", 1, 70, 2, 64, magnitude=1e-3),
    # A sequence of one token, empty ones, one of a tile and one beyond it.
    prefill("varlen", 5, 65, 4, 64, kv_heads=2, layout="varlen", lengths=(1, 0, 64, 0, 65)),
    # Queries without keys, keys without queries, more queries than keys: rows that see nothing.
    prefill(
        "varlen_masked", 5, 140, 4, 64, query_len=40, layout="varlen",
        query_lengths=(5, 0, 3, 40, 7), lengths=(5, 2, 0, 140, 2),
    ),
    prefill(
        "varlen_full", 3, 40, 2, 128, kv_heads=1, layout="varlen", causal=False,
        query_lengths=(5, 33, 1), query_len=33, lengths=(40, 7, 1),
    ),
    prefill("varlen_latent", 2, 70, 2, 192, value_dim=128, layout="varlen", lengths=(70, 33)),
    prefill("varlen_large", 2, 40, 2, 64, layout="varlen", lengths=(40, 9), magnitude=30.0),
    # One page, a page and one token, a page's first token, an empty sequence.
    decode("paged_16", 5, 100, 8, 2, 64, page_size=16, lengths=(16, 17, 1, 0, 100)),
    decode("paged_64", 4, 130, 8, 2, 128, page_size=64, lengths=(64, 130, 1, 65)),
    decode("paged_ungrouped", 2, 33, 2, 2, 64, page_size=32, lengths=(32, 33)),
    decode("paged_shared", 2, 200, 16, 1, 64, page_size=64, lengths=(200, 128)),
    # Two or three queries a step, of sequences that hold fewer.
    decode("paged_verify", 4, 66, 4, 2, 64, page_size=16, query_len=3, lengths=(66, 3, 1, 0)),
    decode(
        "paged_latent", 2, 90, 2, 2, 192, value_dim=128, page_size=64, query_len=2,
        lengths=(90, 64),
    ),
    decode("paged_large", 2, 70, 4, 2, 64, page_size=16, lengths=(70, 9), magnitude=30.0),
    decode("paged_tiny", 2, 70, 4, 2, 64, page_size=16, lengths=(70, 9), magnitude=1e-3),
)  # fmt: skip


def bound(dtype: str, same_precision_error: float) -> float:
    """The largest relative error (Frobenius, against fp64) that passes the gate.

    Twice the error of the plain loop in the same precision on the same inputs: another order of
    summation, or a scale applied earlier, moves the error by less than that; a wrong scale, mask or
    head moves it by far more. Where the loop is exact (one key) one rounding is left.

    ``dtype`` is the inputs'. With fp8_e4m3 the inputs' own rounding does not count, since the
    reference reads the rounded ones; the loop rounds weights to it (before they are divided,
    scaled as far as 448 allows) and the output to bf16. What is left over is the matrix units'
    sum, which keeps 14 bits or so of each term: less than the weights' 4 bits lose. Where that
    loop is exact, one rounding of the output, in bf16, is left.
    """
    if dtype == "fp8_e4m3":
        return max(2.0 * same_precision_error, UNIT_ROUNDOFF["bf16"])
    return max(2.0 * same_precision_error, UNIT_ROUNDOFF[dtype])
