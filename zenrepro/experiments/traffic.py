"""What attention moves through memory, against the length: counted, and read from counters.

Counted are what must move, what an algorithm moves when no cache helps it, and what a model's cache
takes a token. Measured are bytes of device memory, bytes between the L2 and the multiprocessors,
and how busy memory and tensor pipes are, by the hardware counters of an NVIDIA GPU. Where there are
none (a CPU, a TPU, an Apple GPU, a sandbox), those are records with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from zenrepro import counts
from zenrepro.errors import InputError
from zenrepro.experiments import cache_sizes, latent_traffic, session, watching
from zenrepro.experiments.point import Point, Result
from zenrepro.experiments.watching import Watch
from zenrepro.ops.attention.cases import CASES, Case, prefill
from zenrepro.ops.attention.table import TABLE
from zenrepro.ops.entry import Entry
from zenrepro.records import Kind, Origin, Status

# Which algorithms store their scores, and which keep a tile of them on chip.
STORED = ("naive", "xla")
TILED = ("sdpa_flash", "sdpa_cudnn", "cudnn", "fa2", "fa3", "fa3_package", "fa4")
# What is counted, and of which algorithms: a form counts the same for all of them, and no record
# of a count names an implementation, since none was run for it.
FORMS = {"stored": STORED, "tiled": TILED}
BASELINE = "naive"
# Lengths by scale; the other sizes stay as they are, so that only the length varies.
LENGTHS = {
    "smoke": (64, 128, 256, 512),
    "small": (512, 1024, 2048, 4096),
    # To where one head's keys and values no longer fit into the L2 of a large card.
    "full": (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072),
}
HEADS = {"smoke": 2, "small": 8, "full": 32}
HEAD_DIM = 128
# Shared memory of an sm_90 multiprocessor that one block can have (CUDA C++ Programming Guide,
# table of compute capabilities): the M of the bound N²d²/M where the device has no such figure.
SRAM_BYTES = 227 * 1024
COUNTED = [("traffic", "least"), ("traffic", "counted"), ("count", "flops")]
# Of what tiles, on a card that tells its multiprocessors and its L2.
EXPECTED = [("traffic", "expected")]
_TABLE = "zenrepro.ops.attention.table"
_CASES = "zenrepro.ops.attention.cases"


class Parameters(session.Parameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``implementations``: comma-separated names, with or without the backend. The sizes replace
    the scale's; ``longest`` leaves out the lengths above it."""

    implementations: str | None = None
    batch: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    longest: int | None = None
    causal: bool | None = None
    dtype: Literal["bf16", "fp16"] | None = None


def points(run: session.Session) -> Iterator[Point]:
    """Of each case what is counted, once for what stores its scores and once for what tiles; of
    each implementation and case what counters tell; then the caches.

    Where the device has no counters one record of each implementation says so. Raises InputError
    for an implementation that takes no part here, or sizes that do not fit.
    """
    pairs, entries = shapes(run.parameters), chosen(run.parameters)
    blind, refusals = watching.blind(run), list[str]()
    for form in forms(entries):
        yield from _counts(run, form, pairs, expected=form == "tiled" and blind is None)
    for entry in entries:
        watch = Watch(run, "attention", entry, pairs, refusals)
        for case, dtype in pairs:
            conditions = case.conditions(dtype)
            of_case = f"{_CASES}:{case.name or ''}"
            common: dict[str, Any] = {
                "implementation": entry.name, "conditions": conditions, "origin": entry.origin,
                "baseline": None if entry.algorithm == BASELINE else f"{entry.backend}.{BASELINE}",
            }  # fmt: skip
            if blind is not None and (case, dtype) != pairs[-1]:
                continue
            work = counts.attention_of(conditions)
            tables = [f"{_TABLE}:{entry.name}", of_case, *cache_sizes.ROWS]
            yield watch.point(case, dtype, work, rows=tables, unavailable=blind, **common)
    yield from latent_traffic.points(run, [f"{_TABLE}:", f"{_CASES}:"], refusals)
    yield from cache_sizes.points(run, [f"{_TABLE}:", f"{_CASES}:"])


def forms(entries: list[Entry]) -> list[str]:
    """The forms that any of these implementations has."""
    return [form for form, kind in FORMS.items() if any(e.algorithm in kind for e in entries)]


def _counts(
    run: session.Session, form: str, pairs: list[tuple[Case, str]], *, expected: bool
) -> Iterator[Point]:
    """What a form computes and moves by count, and by a model of the card's L2 where expected."""
    for case, dtype in pairs:
        common: dict[str, Any] = {
            "implementation": f"{run.parameters.backend}.count_{form}",
            "conditions": case.conditions(dtype), "origin": Origin.OURS,
            "rows": [f"{_TABLE}:", f"{_CASES}:{case.name or ''}", *cache_sizes.ROWS],
        }  # fmt: skip
        yield Point(produces=COUNTED, measure=partial(_counted, form, case, dtype), **common)
        if expected:
            yield Point(produces=EXPECTED, measure=partial(_expected, run, case, dtype), **common)


def chosen(parameters: Parameters) -> list[Entry]:
    """The backend's implementations that take part, in the table's order."""
    part = (*STORED, *TILED)
    rows = [e for e in TABLE if e.backend == parameters.backend and e.algorithm in part]
    if parameters.implementations is None:
        return rows
    names = [name.strip() for name in parameters.implementations.split(",") if name.strip()]
    known = {entry.algorithm for entry in rows} | {entry.name for entry in rows}
    known |= latent_traffic.names(parameters.backend)
    for name in names:
        if name not in known:
            raise InputError(
                f"implementations: the traffic of {parameters.backend} {name!r} is not counted; "
                f"it is of {', '.join(entry.algorithm for entry in rows)}"
            )
    return [entry for entry in rows if entry.algorithm in names or entry.name in names]


def cases(parameters: Parameters) -> list[Case]:
    """One prefill a length, and at full scale the shape of the report's table."""
    scale = parameters.scale or "small"
    given = {
        "batch": (parameters.batch, 1), "heads": (parameters.heads, HEADS[scale]),
        "head_dim": (parameters.head_dim, HEAD_DIM), "longest": (parameters.longest, 1),
    }  # fmt: skip
    sizes = {name: usual if size is None else size for name, (size, usual) in given.items()}
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name}: wants a positive whole number, got {size}")
    lengths = [n for n in LENGTHS[scale] if parameters.longest is None or n <= parameters.longest]
    if not lengths:
        raise InputError(f"longest: no length of {scale} scale is up to {parameters.longest}")
    found = [
        prefill(None, sizes["batch"], n, sizes["heads"], sizes["head_dim"],
                causal=bool(parameters.causal))
        for n in lengths
    ]  # fmt: skip
    if scale == "full" and parameters.longest is None:
        found += [case for case in CASES["full"] if case.name == "report"]
    return found


def shapes(parameters: Parameters) -> list[tuple[Case, str]]:
    """The cases in bf16, or in the dtype that is given; the report's shape also in fp16, which is
    the format of its baseline."""
    if parameters.dtype is not None:
        return [(case, parameters.dtype) for case in cases(parameters)]
    return [
        (case, dtype)
        for case in cases(parameters)
        for dtype in (("bf16", "fp16") if case.both_formats else ("bf16",))
    ]


def least_bytes(case: Case, dtype: str) -> float:
    """What must move: queries, keys and values in, outputs out."""
    return counts.attention_of(case.conditions(dtype)).bytes or 0.0


def form_bytes(form: str, case: Case, dtype: str) -> tuple[float, str]:
    """What a form moves when no cache keeps anything for it, and how that was counted."""
    if form == "stored":
        scores = counts.materialised_scores(
            batch=case.batch, query_len=case.query_len, cache_len=case.cache_len,
            heads=case.heads, dtype=dtype,
        )  # fmt: skip
        return least_bytes(case, dtype) + scores, "scores and weights each written and read once"
    rows = _rows(case, dtype)
    moved = counts.tiled_attention(
        batch=case.batch, query_len=case.query_len, cache_len=case.cache_len, heads=case.heads,
        kv_heads=case.kv_heads, head_dim=case.head_dim, value_dim=case.value_dim,
        causal=case.causal, dtype=dtype, rows=rows,
    )  # fmt: skip
    return moved, f"every tile of {rows} queries reads all the keys and values that it sees"


def _counted(form: str, case: Case, dtype: str) -> list[Result]:
    work = counts.attention_of(case.conditions(dtype))
    moved, how = form_bytes(form, case, dtype)
    once = "inputs read once, the output written once"
    of = partial(Result, kind=Kind.COUNTED)
    return [
        of(quantity="traffic", metric="least", unit="B", samples=[work.bytes or 0.0], method=once),
        of(quantity="traffic", metric="counted", unit="B", samples=[moved], method=how),
        of(quantity="count", metric="flops", unit="FLOP", samples=[work.flops or 0.0],
           method="both products, masked pairs left out"),
    ]  # fmt: skip


def _expected(run: session.Session, case: Case, dtype: str) -> list[Result]:
    """Device memory's bytes by a model of the card's L2: what the counters are held against."""
    import torch

    card = torch.cuda.get_device_properties(run.backend.index)
    units, size = int(card.multi_processor_count), int(getattr(card, "L2_cache_size", 0) or 0)
    result = Result(quantity="traffic", metric="expected", unit="B", kind=Kind.PREDICTED)
    if size <= 0:
        result.status, result.reason = Status.UNSUPPORTED, "torch does not tell the size of the L2"
        return [result]
    moved = counts.tiled_attention_behind_cache(
        batch=case.batch, query_len=case.query_len, cache_len=case.cache_len, heads=case.heads,
        kv_heads=case.kv_heads, head_dim=case.head_dim, value_dim=case.value_dim,
        causal=case.causal, dtype=dtype, rows=_rows(case, dtype), multiprocessors=units,
        cache_bytes=size,
    )  # fmt: skip
    result.samples = [moved]
    result.method = (
        f"{units} multiprocessors read the same keys together; an L2 of {size / 2**20:.0f} MiB "
        "keeps those of the heads at work, or nothing"
    )
    return [result]


def _rows(case: Case, dtype: str) -> int:
    return counts.tile_rows(sram_bytes=SRAM_BYTES, head_dim=case.head_dim, dtype=dtype)
