"""The table: literal, complete, lazy, and honest about what cannot run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from zenrepro import conditions, counts
from zenrepro.ops.attention import CASES, TABLE
from zenrepro.ops.attention.cases import CONTRACT
from zenrepro.ops.entry import Entry, Needs, check_table, installed
from zenrepro.records import Origin, Status

REPORT = next(case for case in CASES["full"] if case.name == "report")
ROWS = {entry.name: entry for entry in TABLE}


class Device:
    """A device as a table row sees it."""

    def __init__(self, backend: str, device: str, cc: tuple[int, int] | None = None) -> None:
        self.backend, self.device, self.compute_capability = backend, device, cc


H200 = Device("torch", "cuda:0", (9, 0))
CPU = Device("torch", "cpu")


def test_reading_the_table_and_cases_imports_no_framework() -> None:
    code = (
        "import sys, zenrepro.ops.attention as a; a.TABLE, a.CASES, a.reference;"
        "assert not {'torch', 'jax', 'mlx', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_each_row_is_literal_and_its_module_defines_the_function() -> None:
    root = Path(__file__).parents[2]
    for entry in TABLE:
        module, _, name = entry.function.partition(":")
        tree = ast.parse((root / (module.replace(".", "/") + ".py")).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        layouts = {layout for layout in entry.needs.layouts if layout != "dense"}
        assert {name, *(f"{name}_{layout}" for layout in layouts)} <= defined
        for source in entry.sources:
            assert (root / source).is_file()


def test_every_case_has_canonical_conditions_that_can_be_counted() -> None:
    for scale, cases in {**CASES, "contract": CONTRACT}.items():
        seen = set()
        for case in cases:
            for kind in ("cpu", "cuda", "gpu", "tpu", "metal"):
                for dtype in case.dtypes(kind):
                    given = case.conditions(dtype)
                    assert conditions.canonical(given)
                    assert (counts.attention_of(given).flops or 0) > 0
            if case.lengths or case.query_lengths or case.magnitude != 1.0:
                assert scale == "contract"  # no record tells these
                continue
            key = tuple(sorted(case.conditions("bf16").items()))
            assert key not in seen, f"{scale}: {case} is there twice"
            seen.add(key)
    names = [case.name for cases in (*CASES.values(), CONTRACT) for case in cases]
    assert len(set(names)) == len(names)  # freshness finds a case by its name


def test_the_reports_shape_is_at_full_scale() -> None:
    given = REPORT.conditions("fp16")
    assert (given["batch"], given["seq_len"], given["heads"], given["head_dim"]) == (
        32,
        4096,
        24,
        128,
    )
    assert "fp16" in REPORT.dtypes("cuda")


@pytest.mark.parametrize(
    ("name", "device", "given", "reason"),
    [
        ("jax.naive", CPU, {}, "is a jax implementation"),
        ("torch.sdpa_cudnn", CPU, {}, "runs on cuda, not on cpu"),
        ("torch.sdpa_flash", Device("torch", "cuda:0", (7, 5)), {}, "wants compute capability 8.0"),
        ("torch.sdpa_flash", Device("torch", "cuda:0"), {}, "compute capability is unknown"),
        ("torch.sdpa_flash", H200, {"dtype": "fp32"}, "serves bf16, fp16 on cuda, not fp32"),
        ("torch.sdpa_efficient", H200, {"heads": 8, "kv_heads": 2}, "as many kv heads as heads"),
        ("torch.sdpa_flash", CPU, {"head_dim": 48, "value_dim": 32}, "value_dim = head_dim"),
    ],
)
def test_what_cannot_run_says_why(name: str, device: Device, given: dict, reason: str) -> None:
    ok, why = ROWS[name].available(device, given)
    assert not ok
    assert reason in str(why)
    status, text = ROWS[name].status(device, given) or (None, "")
    assert status == Status.UNSUPPORTED
    assert text.startswith(name)


def test_what_can_run_has_no_reason() -> None:
    assert ROWS["torch.sdpa_cudnn"].available(H200, REPORT.conditions("bf16")) == (True, None)
    assert ROWS["torch.naive"].status(CPU, {}) is None


def row(name: str, **needs: object) -> Entry:
    return Entry(
        name=name,
        backend="torch",
        algorithm=name.split(".")[-1],
        origin=Origin.OURS,
        function="zenrepro.ops.attention.torch_naive:attention",
        needs=Needs(dtypes={"cpu": ("fp32",)}, **needs),  # type: ignore[arg-type]
    )


def test_needs_of_later_kernels() -> None:
    some = row("torch.x", phases=("decode",), head_dims=(64, 128), packages=("no_such_package",))
    assert "no_such_package" in str(some.available(CPU).reason)
    some = row("torch.x", phases=("decode",), head_dims=(64, 128))
    assert "serves decode" in str(some.available(CPU, {"phase": "prefill"}).reason)
    assert "head_dim 64, 128, not 80" in str(some.available(CPU, {"head_dim": 80}).reason)


def test_layouts_pages_dims_and_exact_architectures() -> None:
    paged = {"layout": "paged", "page_size": 16}
    some = row("torch.x", layouts=("dense", "paged"), page_sizes=(64,))
    assert "serves pages of 64, not of 16" in str(some.available(CPU, paged).reason)
    assert some.available(CPU, {"layout": "paged", "page_size": 64}).ok
    assert "layout dense, paged, not varlen" in str(some.available(CPU, {"layout": "varlen"}))
    some = row("torch.x", dims=((128, 128), (192, 128)))
    assert some.available(CPU, {"head_dim": 192, "value_dim": 128}).ok
    assert some.available(CPU, {"head_dim": 128}).ok
    reason = some.available(CPU, {"head_dim": 192}).reason
    assert "serves head_dim/value_dim 128/128, 192/128, not 192/192" in str(reason)
    exact = msgspec.structs.replace(
        row("torch.x"), needs=Needs(dtypes={"cuda": ("bf16",)}, architectures=((9, 0),))
    )
    assert exact.available(H200).ok
    newer = exact.available(Device("torch", "cuda:0", (10, 0)))
    assert "wants compute capability 9.0 exactly, the device has 10.0" in str(newer.reason)
    assert "unknown" in str(exact.available(Device("torch", "cuda:0")).reason)


def test_a_missing_parent_package_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    some = row("torch.x", packages=("no_such_package.bindings",))
    assert "needs the package no_such_package.bindings" in str(some.available(CPU).reason)
    some = row("torch.x", one_of=("$ZENREPRO_TRIED", "no_such_package.cute", "json.decoder"))
    assert some.available(CPU).ok
    assert some.versions() == {"json": "version unknown"}
    library = tmp_path / "x.so"
    library.write_bytes(b"abc")
    monkeypatch.setenv("ZENREPRO_TRIED", str(library))
    assert some.versions() == {"ZENREPRO_TRIED": "sha256 ba7816bf8f01cfea"}
    none = row("torch.x", one_of=("$ZENREPRO_OTHER", "no_such_package.cute"))
    assert "one of $ZENREPRO_OTHER, no_such_package.cute" in str(none.available(CPU).reason)
    assert none.versions() == {}
    assert row("torch.x", packages=("msgspec",)).versions() == {"msgspec": msgspec.__version__}
    assert not installed("torch_that_is_not.cute")
    assert "torch" not in ROWS["torch.naive"].versions()


def test_asking_what_is_installed_imports_nothing() -> None:
    code = (
        "import sys; from zenrepro.ops.entry import installed, version;"
        "assert installed('torch.nn') and not installed('torch.no_such'); version('torch');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_table_with_wrong_names_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        check_table((row("torch.x"), row("torch.x")))
    with pytest.raises(ValueError, match=r"not backend\.algorithm"):
        check_table((row("mlx.x"),))
