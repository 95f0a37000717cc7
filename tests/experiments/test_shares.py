"""Fewer heads for a slow backend: what changes, what stays, and for whom."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import msgspec
import pytest

from zenrepro.experiments import attention, mla, shares
from zenrepro.ops.attention.cases import CASES as ATTENTION
from zenrepro.ops.mla.cases import ABLATION
from zenrepro.ops.mla.cases import CASES as MLA

SLOW = {"backend": "mlx", "device": "cpu"}
FULL = {attention: len(ATTENTION["small"]), mla: len({*MLA["small"], *ABLATION["small"]})}


def cases(module: ModuleType, **given: Any) -> list[Any]:
    found: list[Any] = module.cases(module.Parameters(**given))
    return found


def without_heads(case: Any) -> Any:
    names = [name for name in ("heads", "kv_heads") if hasattr(case, name)]
    return msgspec.structs.replace(case, **dict.fromkeys(names, 1))


@pytest.mark.parametrize("module", [attention, mla])
def test_a_slow_backend_has_every_case_with_fewer_heads(module: ModuleType) -> None:
    whole = cases(module, backend="torch", device="cpu", scale="small")
    fewer = cases(module, **SLOW, scale="small")
    assert len(whole) == len(fewer) == FULL[module]  # none left out, none become one
    for one, other in zip(whole, fewer, strict=True):
        assert without_heads(one) == without_heads(other)  # the name too, and so its sources
        assert 1 <= other.heads < one.heads
        if hasattr(one, "kv_heads"):
            assert other.heads / other.kv_heads == one.heads / one.kv_heads


@pytest.mark.parametrize("module", [attention, mla])
def test_everyone_else_has_the_scale_as_it_is(module: ModuleType) -> None:
    scale = cases(module, backend="torch", device="cpu", scale="small")
    for backend, device in (("jax", "cpu"), ("mlx", "gpu"), ("mlx", "cuda:0"), ("torch", "cuda:0")):
        assert cases(module, backend=backend, device=device, scale="small") == scale
    for name in ("smoke", "full"):
        assert cases(module, **SLOW, scale=name) == cases(module, backend="torch", scale=name)


@pytest.mark.parametrize(
    ("module", "given", "heads"),
    [(attention, {"heads": 8}, 8), (attention, {"kv_heads": 4}, 8), (mla, {"heads": 16}, 16)],
)
def test_heads_that_are_given_are_taken_as_they_are(
    module: ModuleType, given: dict[str, int], heads: int
) -> None:
    assert {case.heads for case in cases(module, **SLOW, scale="small", **given)} == {heads}


def test_every_figure_keeps_three_points() -> None:
    """By length in prefill, by batch in decode, by queries in the ablation; heads alike in each."""
    found: dict[tuple[str, int, int], set[int]] = {}
    for case in attention.cases(attention.Parameters(**SLOW, scale="small")):
        if case.layout == "dense" and case.causal:
            axis = case.query_len if case.phase == "prefill" else case.batch
            found.setdefault((case.phase, case.heads, case.kv_heads), set()).add(axis)
    assert {phase for (phase, *_), values in found.items() if len(values) >= 3} == {
        "prefill", "decode",
    }  # fmt: skip
    shapes = mla.ablation(mla.Parameters(**SLOW, scale="small"))
    assert len({shape.query_len for shape in shapes}) >= 3
    assert len({(shape.batch, shape.cache_len, shape.heads) for shape in shapes}) == 1


def test_the_table_names_backends_and_devices_that_there_are() -> None:
    from zenrepro import hardware

    for backend, kind in shares.FEWER_HEADS:
        assert backend in hardware.BACKENDS
        assert hardware.resolve(backend, kind) == kind
