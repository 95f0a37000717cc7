"""The Pallas decode kernel: interpreted on the CPU against fp64, and compiled for a v5e."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zenrepro import backends
from zenrepro.ops import device_code
from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.gate import relative_error
from zenrepro.ops.mla import reference
from zenrepro.ops.mla.cases import CASES, CONTRACT, Case, decode
from zenrepro.ops.mla.problem import Problem
from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, PAGE, ROW

jax = pytest.importorskip("jax", reason="jax is not installed")

WHOLE = ("one_row", "one_more", "tokens_of_the_whole")
CHUNKED = ("smoke_verify", "tokens_8", "ragged")
VMEM = 16 * 2**20  # what the compiler lets one kernel take on a v5e
KERNEL = "kernels/pallas/mla_decode.py"


def case(name: str) -> Case:
    return next(found for found in (*CASES["smoke"], *CONTRACT) if found.name == name)


def judged(found: Case, dtype: str, interpret: Any = True) -> Any:
    from zenrepro.ops.mla import jax_pallas

    problem = Problem(backends.open("jax", "cpu"), found, dtype, seed=0)
    run = jax.jit(functools.partial(jax_pallas.decode, interpret=interpret))
    return problem.judge(lambda: run(*problem.arrays, **problem.indices))


def in_chunks(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    from zenrepro.ops.mla import jax_pallas

    monkeypatch.setattr(jax_pallas, "pages_per_chunk", lambda rows, size: pages)


@pytest.mark.parametrize("name", WHOLE)
def test_matches_fp64_in_one_chunk(name: str) -> None:
    verdict = judged(case(name), "fp32")
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "fp32") for name in CHUNKED), ("smoke_verify", "bf16")]
)
def test_matches_fp64_over_several_chunks(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks(monkeypatch, 1 if dtype == "fp32" else 2)
    verdict = judged(case(name), dtype)
    assert verdict.passed, verdict.reason


def simulated() -> Any:
    """Transfers happen as late as they may, memory starts as NaN, races are told on stdout."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


RAGGED = decode(None, 4, 2, 100, query_len=2, skew=0.9)


def test_transfers_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    in_chunks(monkeypatch, 1)
    verdict = judged(RAGGED, "fp32", simulated())
    assert verdict.passed, verdict.reason
    assert "RACE" not in capfd.readouterr().out.upper()


def strict_error() -> float:
    """Of a decode with NaN wherever no sequence has a row of its own, an empty sequence, and scores
    of thousands of which the largest are hidden from the first queries."""
    from zenrepro.ops.mla import jax_pallas

    rng = np.random.default_rng(0)
    lengths = np.array([70, 0, 64, 2], np.int32)
    table = np.array([[5, 2, -1], [-1, -1, 99], [4, -7, 1], [0, 3, 3]], np.int32)
    pool = np.full((6, PAGE, ROW), np.nan, np.float32)
    for b, length in enumerate(lengths):
        for s in range(length):
            pool[table[b, s // PAGE], s % PAGE] = rng.standard_normal(ROW)
            if s == length - 1:
                pool[table[b, s // PAGE], s % PAGE] *= 100
    q = 10 * np.abs(rng.standard_normal((4, 3, 5, ROW))).astype(np.float32)
    indices = {"block_table": table, "cache_seqlens": lengths}
    run = functools.partial(jax_pallas.decode, interpret=simulated())
    out = np.asarray(
        run(*map(jax.numpy.asarray, (q, pool)), **jax.tree.map(jax.numpy.asarray, indices))
    )
    right = reference.decode(q, pool, **indices)
    # Sequence by sequence: the large rows of one would hide what is wrong with another.
    parts = [relative_error(out[b, t], right[b, t]) for b in range(4) for t in range(3)]
    return max(parts) if np.isfinite(out).all() else np.inf


def test_rows_that_are_not_a_sequences_own_may_be_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks(monkeypatch, 2)
    assert strict_error() < 1e-4


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("each_page(b, i, buffer, lambda copy: copy.wait())", "pass"),
        ("1 - buffer, lambda copy: copy.start()", "buffer, lambda copy: copy.start()"),
        ("scores = jnp.where(visible, scores, HIDDEN)", "pass"),
        ("weights = jnp.where(visible, weights, 0.0)", "pass"),
        ("rows = jnp.where(place < length, rows, jnp.zeros_like(rows))", "pass"),
        ("kept * summed[...]", "summed[...]"),
        ("seen = seen + (row >= t * heads).astype(jnp.int32)", "pass"),
    ],
)
def test_defects_are_seen(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = device_code.path("pallas/mla_decode.py").read_text()
    assert right in source
    broken = types.ModuleType("broken")
    exec(compile(source.replace(right, wrong), KERNEL, "exec"), broken.__dict__)
    monkeypatch.setattr(device_code, "pallas_module", lambda name: broken)
    in_chunks(monkeypatch, 1)
    passed = judged(RAGGED, "fp32", simulated()).passed and strict_error() < 1e-4
    assert not passed or "RACE" in capfd.readouterr().out.upper()


def test_wild_indices_are_clamped_while_jax_traces() -> None:
    from zenrepro.ops.mla import jax_pallas

    q, pool = jax.numpy.ones((2, 1, 2, ROW)), jax.numpy.ones((2, PAGE, ROW))
    run = jax.jit(functools.partial(jax_pallas.decode, interpret=simulated()))
    wild = {
        "block_table": jax.numpy.array([[-9], [10**6]], jax.numpy.int32),
        "cache_seqlens": jax.numpy.array([-5, 10**6], jax.numpy.int32),
    }
    out = np.asarray(run(q, pool, **wild))
    assert not out[0].any()
    assert np.allclose(out[1], 1)
    with pytest.raises(ValueError, match=r"^cache_seqlens: wants lengths from 0 to 64"):
        jax_pallas.decode(q, pool, **wild)


def test_fp8_is_refused_with_a_reason() -> None:
    from zenrepro.ops.mla import jax_pallas

    pool = jax.numpy.zeros((1, PAGE, FP8_ROW_BYTES), jax.numpy.uint8)
    q, one = jax.numpy.zeros((1, 1, 2, ROW)), jax.numpy.zeros(1, jax.numpy.int32)
    with pytest.raises(UnsupportedError, match="not FP8"):
        jax_pallas.decode(q, pool, block_table=one[None], cache_seqlens=one)


# For a v5e that is not there ---------------------------------------------------------------------

SHAPES = (  # batch, query tokens, heads, cache length, dtype
    (128, 1, 16, 4096, "bfloat16"),
    (64, 1, 128, 4096, "bfloat16"),
    (1, 1, 16, 131072, "bfloat16"),
    (2, 1, 40, 4096, "bfloat16"),
    (2, 3, 3, 64, "bfloat16"),
    (1, 8, 128, 512, "bfloat16"),
    (1, 8, 32, 512, "float32"),
    (1, 8, 128, 512, "float32"),
)
Compile = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def request(function: str, shape: tuple[int, int, int, int, str], **more: Any) -> dict[str, Any]:
    batch, tokens, heads, length, dtype = shape
    width = -(-length // PAGE)
    made = {
        "module": f"zenrepro.ops.mla.{function}",
        "function": "decode",
        "arrays": {
            "q": [[batch, tokens, heads, ROW], dtype],
            "cache": [[batch * width + 3, PAGE, ROW], dtype],
            "block_table": [[batch, width], "int32"],
            "cache_seqlens": [[batch], "int32"],
        },
        "given": {"scale": 0.07},
        "rows": ["cache"],
    }
    return made | more


def test_compiles_for_a_v5e_within_its_vmem_and_copies_nothing(compile_ahead: Compile) -> None:
    large = SHAPES[0]
    eight = (8, 1, 16, 4096, "bfloat16")
    requests = [request("jax_pallas", shape) for shape in SHAPES]
    *ours, anyhow, plain = compile_ahead(
        [*requests, request("jax_pallas", large, rows=[]), request("jax_absorbed", eight)]
    )
    for shape, answer in zip(SHAPES, ours, strict=True):
        assert "error" not in answer, (shape, answer["error"])
        assert answer["kernels"] == 1
        assert answer["vmem"] < VMEM
        assert answer["temporaries"] < 2**20, shape
    # Rows of 576 lie 640 apart in a TPU's memory.
    pool = (128 * 4096 + 3 * PAGE) * 640 * 2
    assert ours[0]["arguments"] == pytest.approx(pool, rel=0.01)
    # Left to itself XLA lays the pages innermost, and copies the pool for the kernel.
    assert anyhow["temporaries"] > 0.9 * pool
    # And plain jax copies the rows of each sequence together.
    assert plain["temporaries"] > 8 * 4096 * ROW * 2


def test_appending_in_place_keeps_the_pools_layout(compile_ahead: Compile) -> None:
    arrays = {
        "cache": [[8195, PAGE, ROW], "bfloat16"], "rows": [[128, ROW], "bfloat16"],
        "slots": [[128], "int32"],
    }  # fmt: skip
    made = {"module": "zenrepro.ops.mla.jax_cache", "function": "append", "arrays": arrays,
            "given": {}, "rows": ["cache"], "updates": "cache"}  # fmt: skip
    (answer,) = compile_ahead([made])
    assert "error" not in answer, answer
    assert answer["temporaries"] < 2**20


def test_rows_of_plain_jax_compile_for_a_v5e(compile_ahead: Compile) -> None:
    stored = request("jax_absorbed", (8, 1, 16, 4096, "bfloat16"))
    stored["arrays"]["cache"] = [[8 * 64, PAGE, FP8_ROW_BYTES], "uint8"]
    prefill = {
        "function": "prefill", "given": {"causal": True}, "rows": [],
        "arrays": {
            "q": [[1, 300, 16, 192], "bfloat16"], "latent": [[1, 300, ROW], "bfloat16"],
            "w_uk": [[16, 128, 512], "bfloat16"], "w_uv": [[16, 128, 512], "bfloat16"],
        },
    }  # fmt: skip
    modules = {name: f"zenrepro.ops.mla.jax_{name}" for name in ("absorbed", "tiled")}
    answers = compile_ahead(
        [
            stored,
            stored | {"module": modules["tiled"]},
            request("jax_tiled", (8, 1, 16, 4096, "bfloat16")),
            prefill | {"module": modules["absorbed"]},
            prefill | {"module": "zenrepro.ops.mla.jax_decompressed"},
        ]
    )
    for answer in answers:
        assert "error" not in answer, answer["error"]
        assert answer["kernels"] == 0
    gathered = 8 * 4096 * ROW * 2
    assert answers[2]["temporaries"] < gathered / 4, "a chunk of rows, not all"


def test_what_does_not_fit_vmem_is_an_error_of_the_compiler(compile_ahead: Compile) -> None:
    """The gate that the sizes above pass is one that can fail."""
    made = request("jax_pallas", (1, 1, 16, 8192, "bfloat16"))
    (answer,) = compile_ahead([made | {"module": "tests.tpu.oversized"}])
    assert "vmem" in answer["error"].lower()
