"""JAX's own Pallas attention for TPUs: interpreted against fp64, and compiled for a v5e."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from zenrepro import backends
from zenrepro.ops.attention import CASES, TABLE
from zenrepro.ops.attention.cases import CONTRACT, Case
from zenrepro.ops.attention.problem import Problem

jax = pytest.importorskip("jax", reason="jax is not installed")

NAMES = ("smoke_grouped", "one", "unequal", "chunk", "chunk_full")


def judged(name: str, dtype: str, **wrong: Any) -> Any:
    from zenrepro.ops.attention import jax_pallas_flash

    case: Case = next(c for c in (*CASES["smoke"], *CONTRACT) if c.name == name)
    problem = Problem(backends.open("jax", "cpu"), case, dtype, seed=0)
    given = {"causal": case.causal, "interpret": True} | wrong
    run = jax.jit(functools.partial(jax_pallas_flash.attention, **given))
    return problem.judge(lambda: run(*problem.arrays))


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "fp32") for name in NAMES), ("smoke_grouped", "bf16")]
)
def test_matches_fp64(name: str, dtype: str) -> None:
    verdict = judged(name, dtype)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("wrong", [{"scale": 0.2}, {"causal": False}], ids=str)
def test_defects_are_seen(wrong: dict[str, Any]) -> None:
    assert not judged("chunk", "fp32", **wrong).passed


def test_the_row_says_where_it_runs() -> None:
    (entry,) = [entry for entry in TABLE if entry.name == "jax.pallas_flash"]

    class Cpu:
        backend, device, compute_capability = "jax", "cpu", None

    assert entry.available(Cpu()).reason == "runs on tpu, not on cpu"


def test_compiles_for_a_v5e(
    compile_ahead: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> None:
    def request(
        function: str, B: int, T: int, S: int, H: int, Hkv: int, D: int, Dv: int, causal: bool
    ) -> dict[str, Any]:
        shapes = {"q": [B, T, H, D], "k": [B, S, Hkv, D], "v": [B, S, Hkv, Dv]}
        return {
            "module": f"zenrepro.ops.attention.{function}",
            "function": "attention",
            "arrays": {name: [shape, "bfloat16"] for name, shape in shapes.items()},
            "given": {"causal": causal},
        }

    report = (1, 4096, 4096, 8, 8, 128, 128, True)
    shapes = [
        report,
        (2, 1000, 1000, 8, 2, 64, 64, True),
        (1, 1024, 1024, 8, 8, 192, 128, True),
        (1, 100, 1000, 4, 4, 128, 128, False),
    ]
    *ours, naive = compile_ahead(
        [*(request("jax_pallas_flash", *shape) for shape in shapes), request("jax_naive", *report)]
    )
    for shape, answer in zip(shapes, ours, strict=True):
        assert "error" not in answer, (shape, answer)
        assert answer["kernels"] == 1
    # The scores of 4096 x 4096, of which the kernel stores none.
    assert naive["temporaries"] > 8 * 4096**2 * 2 > 4 * ours[0]["temporaries"]
