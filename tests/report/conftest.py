"""A small report with everything that printing has to cope with: hostile text included."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zenrepro import claims, paths, specs
from zenrepro.records import (
    SCHEMA,
    DeviceClass,
    Environment,
    Kind,
    Origin,
    Record,
    ResultsFile,
    Status,
    Work,
    encode,
)
from zenrepro.report import evidence as evidence_module

HOSTILE = r"50% of $x_i$ & #1 {a} \input{x} ~^ “数” 🙂 " + "unbreakable" * 12

PUBLICATION: dict[str, Any] = {
    "schema": 1,
    "report": {"title": "Fast inference & more", "version": "v1_0"},
    "claims": [
        {
            "id": "rate-naive", "kind": "scalar", "quantity": "throughput", "metric": "rate",
            "printed": "12,400", "value": 12400.0, "unit": "token/s",
            "where": {"part": "table", "line": 10, "table": "Attention throughput",
                      "row": "Naive (FP16)", "column": "Tokens/s"},
        },
        {
            "id": "util-naive", "kind": "scalar", "quantity": "utilisation",
            "metric": "bandwidth", "printed": "28", "value": 28.0, "unit": "%",
            "where": {"part": "table", "line": 10, "table": "Attention throughput",
                      "row": "Naive (FP16)", "column": "HBM BW util."},
        },
        {
            "id": "rate-flash", "kind": "scalar", "quantity": "throughput", "metric": "rate",
            "printed": "31,800", "value": 31800.0, "unit": "token/s",
            "where": {"part": "table", "line": 11, "table": "Attention throughput",
                      "row": HOSTILE, "column": "Tokens/s"},
        },
        {
            "id": "size", "kind": "scalar", "quantity": "size", "metric": "weights",
            "printed": "144", "value": 144.0, "unit": "GB",
            "where": {"part": "table", "line": 20, "table": HOSTILE, "row": "FP16",
                      "column": "Size"},
        },
        {
            "id": "delta", "kind": "scalar", "quantity": "quality", "metric": "mmlu",
            "printed": "-0.3", "value": -0.3, "unit": "pp",
            "where": {"part": "table", "line": 21, "table": HOSTILE, "row": "FP8",
                      "column": "Size"},
        },
        {
            "id": "speedup", "kind": "ratio", "quantity": "ratio", "metric": "speedup",
            "printed": "2.6", "value": 2.6, "unit": "x", "of": ["rate-flash"],
            "baseline": "rate-naive", "relation": "≈", "conditions": {"batch": 32},
            "where": {"part": "abstract", "line": 3},
        },
        {
            "id": "exists", "kind": "categorical", "quantity": "spec", "metric": "existence",
            "value": HOSTILE, "where": {"part": "text", "line": 5, "section": "Hardware"},
        },
        {
            "id": "span", "kind": "interval", "quantity": "count", "metric": "parameters",
            "value": [1.5, 72.0], "unit": "Gparameter",
            "where": {"part": "text", "line": 6, "section": "Hardware"},
        },
    ],
}  # fmt: skip

SHEET = """
schema: 1
platform: nvidia-h200
name: NVIDIA H200
vendor: NVIDIA
sources: [{title: H200 datasheet, url: "https://example.com/h200?a=1&b=2#x", publisher: NVIDIA}]
figures:
  - {quantity: bandwidth, metric: peak, value: 4.8, unit: TB/s, source: 0}
  - {quantity: flop_rate, metric: dense, value: 989, unit: TFLOP/s, source: 0, dtype: bf16}
  - {quantity: flop_rate, metric: dense, value: 989, unit: TFLOP/s, source: 0, dtype: fp16}
"""


def record(machine: str, platform: str, model: str, **given: Any) -> Record:
    """A record with what a test leaves out filled in."""
    defaults: dict[str, Any] = {
        "experiment": "attention", "quantity": "time", "metric": "median",
        "implementation": "torch.naive", "unit": "s", "status": Status.OK,
        "kind": Kind.MEASURED, "origin": Origin.OURS, "conditions": {},
        "environment": Environment(os="Linux 6.1", python="3.11", packages={"torch": "2.9"}),
        "samples": [], "started": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    return Record(
        machine=machine,
        device_class=DeviceClass(platform=platform, model=model, memory_bytes=141 * 10**9),
        **{**defaults, **given},
    )


def make_records() -> list[Record]:
    """Two machines, several implementations, every status."""
    chance = random.Random(1)
    out = []
    machines = [
        ("nvidia-h200-lab", "nvidia-h200", "NVIDIA H200", 1e-3),
        ("cpu-box", "cpu-box", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 0.4),
    ]
    for machine, platform, model, scale in machines:
        for name, speed in (("torch.naive", 1.0), ("torch.sdpa_flash", 0.2), ("jax.xla", 0.6)):
            for seq_len in (1024, 4096):
                conditions = {
                    "op": "attention", "phase": "prefill", "dtype": "bf16", "batch": 4,
                    "seq_len": seq_len, "heads": 32, "head_dim": 128, "causal": True,
                }  # fmt: skip
                flops = 4.0 * 4 * 32 * seq_len**2 * 128 / 2
                seconds = scale * speed * (seq_len / 1024) ** 2
                out.append(
                    record(
                        machine, platform, model, implementation=name, conditions=conditions,
                        samples=[seconds * chance.uniform(0.99, 1.02) for _ in range(20)],
                        work=Work(flops=flops, bytes=4.0 * 4 * 32 * seq_len * 128 * 2),
                    )
                )  # fmt: skip
        for status in (Status.OOM, Status.UNSUPPORTED, Status.FAILED, Status.SKIPPED):
            out.append(
                record(
                    machine, platform, model, implementation=f"mlx.{status}", status=status,
                    reason=HOSTILE, conditions={"op": "attention", "batch": 1},
                )
            )  # fmt: skip
        out.append(
            record(
                machine, platform, model, experiment="hardware", quantity="bandwidth",
                metric="rate", unit="B/s", implementation="torch.copy",
                conditions={"op": "copy"}, samples=[4.1e12 * 1e-3 / scale] * 7,
            )
        )  # fmt: skip
        out.append(
            record(
                machine, platform, model, experiment="hardware", quantity="flop_rate",
                metric="rate", unit="FLOP/s", implementation="torch.matmul",
                conditions={"op": "matmul", "dtype": "bf16"}, samples=[7e14 * 1e-3 / scale] * 7,
            )
        )  # fmt: skip
    return out


@pytest.fixture
def make_project(tmp_path: Path) -> Any:
    """A function that writes a project folder and loads it."""

    def make(records: list[Record], machines: list[str] | None = None) -> paths.Project:
        root = tmp_path / "project"
        (root / "data/published").mkdir(parents=True, exist_ok=True)
        (root / "data/hardware").mkdir(parents=True, exist_ok=True)
        (root / "data/hardware/nvidia-h200.yaml").write_text(SHEET)
        listed = ", ".join(f'"{m}"' for m in machines or [])
        (root / "zenrepro.toml").write_text(
            f'title = "Measured again: 100% & _more_"\nmachines = [{listed}]\n'
        )
        grouped: dict[tuple[str, str], list[Record]] = {}
        for item in records:
            grouped.setdefault((item.machine, item.experiment), []).append(item)
        for (machine, experiment), members in grouped.items():
            path = root / "data/results" / machine / f"{experiment}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                encode(
                    ResultsFile(
                        schema=SCHEMA, machine=machine, experiment=experiment, records=members
                    )
                )
            )
        return paths.load(root)

    return make


def _audit(publication: claims.Publication) -> Any:
    from zenrepro.audit.verdicts import Audit, Bound, Finding

    findings = [
        Finding(
            rule="latency", severity="error", verdict="impossible", claims=["rate-flash"],
            arithmetic=f"64 / 31,800 token/s = 2.0 ms ≠ 3.3 ms × 50 % {HOSTILE}",
            mend="the batch were 105", against=["rate-naive"],
        ),
        Finding(
            rule="baseline", severity="note", verdict="note", claims=["speedup", "size"],
            arithmetic="31,800 / 12,400 = 2.56×", mend="",
        ),
    ]  # fmt: skip
    verdicts: dict[str, Any] = {c.id: "consistent" for c in publication.claims}
    verdicts |= {"rate-flash": "impossible", "speedup": "note", "exists": "unverifiable"}
    bounds = [
        Bound(claim="rate-naive", value=2.7e4, unit="token/s", relation="≤",
              arithmetic="4.8 TB/s / 0.18 GB", rule="roofline"),
        Bound(claim="size", value=143.9, unit="GB", relation="≥", arithmetic="72 × 2",
              rule="size", assumption="scales are left out"),
    ]  # fmt: skip
    return Audit(verdicts=verdicts, findings=findings, bounds=bounds)


def _measurements(records: list[Record]) -> list[Any]:
    """Verdicts of every kind, shaped as zenrepro.audit.measurement shapes them."""

    def one(claim: str, machine: str, verdict: str, **given: Any) -> Any:
        base: dict[str, Any] = {
            "claim": claim, "machine": machine, "verdict": verdict, "reason": None,
            "value": None, "low": None, "high": None, "unit": None, "ratio": None,
            "record": None, "relaxed": {}, "n": None,
            "across": False, "reading": None, "against": (), "power_of": None,
        }  # fmt: skip
        return SimpleNamespace(**{**base, **given})

    out = []
    for machine in {r.machine: None for r in records}:
        first = next(r for r in records if r.machine == machine and r.samples)
        out += [
            one("rate-naive", machine, "reproduced", value=12345.6, low=12300.0, high=12391.0,
                unit="token/s", record=first),
            one("rate-flash", machine, "different hardware", value=51234.0, low=51000.0,
                high=51500.0, unit="token/s", ratio=1.611, record=first),
            one("util-naive", machine, "not run", reason="oom: too large"),
            one("speedup", machine, "not reproduced", value=2.01, low=1.9, high=2.1, unit="x",
                ratio=0.77, record=first, relaxed={"batch": 4}),
        ]  # fmt: skip
    return out


@pytest.fixture
def evidence(make_project: Any) -> Any:
    """Evidence with records, findings, bounds and every measurement verdict."""
    records = make_records()
    project = make_project(records, ["nvidia-h200-lab"])
    publication = claims.parse(PUBLICATION, "test")
    sheet = specs.parse(SHEET, "test")
    return evidence_module.assemble(
        project, publication, {sheet.platform: sheet}, records, _audit(publication),
        _measurements(records),
    )  # fmt: skip


PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{textcomp,lmodern}
\usepackage{amsmath,amssymb,pifont,siunitx,hyperref}
\sisetup{group-separator={,}, group-minimum-digits=4, separate-uncertainty=true}
\DeclareSIUnit\pp{pp}
\begin{document}
"""


@pytest.fixture
def compile_tex(tmp_path: Path) -> Callable[[str], str]:
    """A function that compiles a body and returns the PDF's words; it fails with TeX's error."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed: nothing is compiled")

    def compile_body(body: str) -> str:
        source = tmp_path / "t.tex"
        source.write_text(PREAMBLE + body + "\n\\end{document}\n", encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "t.tex"],
            cwd=tmp_path, capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        log = done.stdout.decode(errors="replace")
        assert done.returncode == 0, log[-1500:]
        assert "Missing character" not in log, log[-1500:]
        if shutil.which("pdftotext") is None:
            return ""
        words = subprocess.run(
            ["pdftotext", "t.pdf", "-"], cwd=tmp_path, capture_output=True, check=True
        )
        return words.stdout.decode()

    return compile_body
