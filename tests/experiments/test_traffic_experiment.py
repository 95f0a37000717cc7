"""The experiment ``traffic``: its counts, what it makes of counters, and the allocated caches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zenrepro import architecture, claims, counts, paths
from zenrepro.audit.measurement import judge
from zenrepro.backends import Unavailable
from zenrepro.errors import InputError
from zenrepro.experiments import cache_sizes, latent_traffic, profiled, session, traffic, watching
from zenrepro.experiments.point import Result
from zenrepro.experiments.profiled import Outcome
from zenrepro.measure import counters
from zenrepro.measure.counters import CountersError, Kernel
from zenrepro.ops.attention.cases import Case, prefill
from zenrepro.records import Kind, Origin, Record, Status

Start = Callable[..., session.Session]
ROOT = Path(__file__).parents[2]
COUNTS = (traffic.COUNTED, traffic.EXPECTED, latent_traffic.COUNTED)


@pytest.fixture
def started(start: Start, project: paths.Project) -> Start:
    """A session in a project with one model's configuration."""
    project.models.mkdir(parents=True)
    shutil.copy(ROOT / "data" / "models" / "zen-mode-7b.yaml", project.models)
    return start


def found(records: list[Record], implementation: str, metric: str) -> dict[Any, Record]:
    own = [r for r in records if r.implementation == implementation and r.metric == metric]
    return {r.conditions.get("seq_len"): r for r in own}


def test_on_a_cpu_counts_remain_and_counters_have_a_reason(started: Start) -> None:
    run = started("traffic", backend="torch", implementations="naive,sdpa_flash")
    records = run.measure(traffic.points(run))
    least = found(records, "torch.count_stored", "least")
    assert {r.kind for r in least.values()} == {Kind.COUNTED}
    # 2 heads of 128, N = 512: queries, keys, values and output, 2 bytes each.
    assert least[512].samples == [4 * 2 * 512 * 128 * 2]
    stored = found(records, "torch.count_stored", "counted")[512].samples[0]
    assert stored == least[512].samples[0] + 4 * 2 * 512 * 512 * 2
    tiled = found(records, "torch.count_tiled", "counted")[512].samples[0]
    assert tiled == 2 * (2 * 512 * 128 + 4 * 512 * 256) * 2  # four tiles of 128 rows
    for name in ("torch.naive", "torch.sdpa_flash"):
        (record,) = found(records, name, "device").values()
        assert (record.status, record.samples) == (Status.UNSUPPORTED, [])
        assert "only NVIDIA GPUs" in str(record.reason)
    assert {r.metric for r in records if r.quantity == "utilisation"} == set()


@pytest.mark.parametrize(
    ("backend", "given", "names"),
    [
        ("torch", {}, ["count_stored", "count_tiled"]),
        ("jax", {"implementations": "xla"}, ["count_stored"]),
        ("torch", {"implementations": "fa3"}, ["count_tiled"]),
        ("mlx", {}, ["count_stored"]),  # none of its kernels is known to tile
        ("torch", {"scale": "full"}, ["count_stored", "count_tiled", "count_least"]),
    ],
)
def test_no_count_bears_the_name_of_an_implementation(
    start: Start, backend: str, given: dict[str, Any], names: list[str]
) -> None:
    run = start("traffic", backend=backend, **given)
    counted = [p.implementation for p in traffic.points(run) if p.produces in COUNTS]
    assert list(dict.fromkeys(counted)) == [f"{backend}.{name}" for name in names]


def test_the_record_of_a_count_is_ours_whoever_made_what_it_counts(start: Start) -> None:
    run = start("traffic", backend="jax", implementations="cudnn")
    made = [p for p in traffic.points(run) if p.produces in COUNTS]
    assert {p.origin for p in made} == {Origin.OURS}


def test_counts_are_made_once_a_kind_and_counters_of_every_implementation(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "absent", lambda device: None)
    run = start("traffic", backend="torch")
    made = list(traffic.points(run))
    counted = {p.implementation for p in made if p.produces is traffic.COUNTED}
    assert counted == {"torch.count_stored", "torch.count_tiled"}
    read = [p for p in made if p.produces in (watching.MEASURED, watching.NOT_READ)]
    assert len(read) == 4 * len(traffic.chosen(run.parameters))
    expected = [p.implementation for p in made if p.produces is traffic.EXPECTED]
    assert expected == ["torch.count_tiled"] * 4


def test_another_implementation_or_case_makes_nothing_stale(start: Start) -> None:
    run = start("traffic", backend="torch")
    tables = {f"zenrepro/ops/{op}/{name}.py" for op in ("attention", "mla")
              for name in ("table", "cases")}  # fmt: skip
    for point in traffic.points(run):
        (first, *_) = run._shells(point)
        names = set(first.inputs.sources)
        assert not names & tables
        assert {f"{name}#" for name in tables} <= names


@pytest.mark.parametrize("size", [50 * 2**20, 0])
def test_what_is_expected_rests_on_the_cards_l2(
    start: Start, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    torch = pytest.importorskip("torch")
    card = SimpleNamespace(multi_processor_count=132, L2_cache_size=size)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    run = start("traffic", backend="torch")
    long = prefill(None, 1, 131072, 32, 128, causal=False)
    (result,) = traffic._expected(run, long, "bf16")
    assert result.kind is Kind.PREDICTED
    if not size:
        assert (result.status, result.samples) == (Status.UNSUPPORTED, [])
        return
    assert result.samples[0] > 4 * traffic.least_bytes(long, "bf16")
    (short,) = traffic._expected(run, shape(4096), "bf16")
    assert short.samples == [traffic.least_bytes(shape(4096), "bf16")]


@pytest.mark.parametrize("backend", ["jax", "mlx"])
def test_other_backends_are_counted_too(started: Start, backend: str) -> None:
    run = started("traffic", backend=backend, implementations="naive")
    records = run.measure(traffic.points(run))
    assert len(found(records, f"{backend}.count_stored", "counted")) == 4
    assert {r.status for r in records if r.metric == "cache"} == {Status.OK}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"implementations": "nothing"}, "nothing"),
        ({"batch": 0}, "batch: wants a positive"),
        ({"head_dim": -1}, "head_dim: wants a positive"),
        ({"longest": 0}, "longest: wants a positive"),
        ({"longest": 10}, "longest: no length of smoke scale"),
    ],
)
def test_bad_parameters_are_errors_before_anything_runs(
    start: Start, given: dict[str, Any], words: str
) -> None:
    run = start("traffic", backend="torch", **given)
    with pytest.raises(InputError, match=words):
        list(traffic.points(run))


def test_the_reports_shape_is_counted_at_full_scale() -> None:
    shapes = traffic.cases(traffic.Parameters(scale="full"))
    assert [c.query_len for c in shapes] == [*(2**n for n in range(9, 18)), 4096]
    assert (shapes[-1].model, shapes[-1].batch, shapes[-1].heads) == ("zen-mode-7b", 32, 24)
    assert not shapes[0].causal
    pairs = traffic.shapes(traffic.Parameters(scale="full"))
    assert [dtype for _, dtype in pairs] == ["bf16"] * 10 + ["fp16"]
    assert pairs[-1][0].name == "report"  # its baseline is FP16
    assert {d for _, d in traffic.shapes(traffic.Parameters(scale="full", dtype="fp16"))} == {
        "fp16"
    }
    assert traffic.cases(traffic.Parameters(scale="full", longest=1024))[-1].query_len == 1024


# -- caches --------------------------------------------------------------------------------------


def test_allocated_caches_are_as_large_as_counted(started: Start) -> None:
    run = started("traffic", backend="torch")
    records = run.measure(cache_sizes.points(run, []))
    models = architecture.load(run.project.models)
    counted = [r for r in records if (r.quantity, r.metric) == ("size", "cache")]
    allocated = [r for r in records if (r.quantity, r.metric) == ("memory", "cache")]
    assert len(counted) == len(allocated) == 4 * len(models)  # three forms, and FP8 of the latent
    for one, held in zip(counted, allocated, strict=True):
        assert (one.kind, held.kind) == (Kind.COUNTED, Kind.MEASURED)
        a_layer = one.samples[0] / models[str(one.conditions["model"])].num_layers
        tokens = 2 * 100
        if held.implementation == "torch.mla":  # two sequences, each to the end of its second page
            tokens = 2 * 128
        assert held.samples == [a_layer * tokens]
    seven = {r.implementation: r.samples[0] for r in counted if "format" not in r.conditions}
    assert seven["torch.mha"] / seven["torch.mla"] == pytest.approx(10.667, abs=1e-3)
    assert seven["torch.mha"] == 32 * 24 * 256 * 2


def test_a_wrong_cache_is_seen(started: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cache_sizes._shapes

    def lost(*given: Any) -> Any:
        shapes, words = right(*given)
        return shapes[:1], words  # values forgotten

    monkeypatch.setattr(cache_sizes, "_shapes", lost)
    with pytest.raises(AssertionError):
        test_allocated_caches_are_as_large_as_counted(started)


# -- what is made of counters ----------------------------------------------------------------------


def kernel(label: str, seconds: float = 1.0, **values: float) -> Kernel:
    short = {
        "read": counters.DRAM_READ, "written": counters.DRAM_WRITTEN, "l2": counters.L2_READ,
        "l2_in": counters.L2_WRITTEN, "arrived": counters.ARRIVED, "left": counters.LEFT,
        "dram": counters.DRAM_SHARE, "pipe": counters.TENSOR_PIPE,
    }  # fmt: skip
    known = {short[name]: value for name, value in values.items()}
    return Kernel(
        name="void k<1>(int)", label=label, values=known | {counters.SECONDS: seconds}, passes=1
    )


def one_call(repeat: int = 0) -> tuple[list[Kernel], list[Kernel]]:
    label = f"c0.{repeat}"
    memory = [
        kernel(f"{label}.call", 1.0, read=100, written=10, l2=8, l2_in=1, dram=90),
        kernel(f"{label}.call", 3.0, read=200, written=20, l2=16, l2_in=2, dram=10),
        kernel(f"{label}.drain", 1.0, read=9999, written=7, l2=0, l2_in=0, dram=50),
    ]
    near = [
        kernel(f"{label}.call", 1.0, arrived=1000, left=100, pipe=80),
        kernel(f"{label}.call", 1.0, arrived=2000, left=200, pipe=0),
        kernel(f"{label}.drain", 1.0, arrived=1, left=1, pipe=1),
    ]
    return memory, near


def test_a_calls_kernels_are_summed_and_what_it_left_is_counted() -> None:
    memory, near = one_call()
    other = kernel("c1.0.call", read=1e9, written=1e9)
    seen = watching.seen_of(
        Outcome(name="c0", peak_bytes=5), "c0", [*memory, other], near, repeats=1
    )
    assert seen.status is Status.OK
    assert seen.device_bytes == [100 + 10 + 200 + 20 + 7]
    assert seen.l2_bytes == [32 * (8 + 1 + 16 + 2)]
    assert seen.arrived_bytes == [3300]
    assert seen.dram_percent == [(90 * 1 + 10 * 3) / 4]  # by their time
    assert seen.tensor_percent == [40]
    assert seen.peak_bytes == 5
    assert seen.kernels[0] == "k 0.0001 MB read, 1e-05 MB written, 1000000.0 µs"
    assert len(seen.kernels) == 2
    assert "passes a kernel: 1 for memory, 1 for" in str(seen.method)


def test_a_number_that_is_missing_is_not_made_up() -> None:
    memory, near = one_call()
    del memory[1].values[counters.DRAM_READ]
    del near[0].values[counters.TENSOR_PIPE]
    seen = watching.seen_of(Outcome(name="c0"), "c0", memory, near, repeats=1)
    assert (seen.device_bytes, seen.tensor_percent) == ([], [])
    assert seen.l2_bytes
    assert seen.arrived_bytes


def test_a_repeat_that_was_not_seen_fails() -> None:
    memory, near = one_call()
    seen = watching.seen_of(Outcome(name="c0"), "c0", memory, near, repeats=2)
    assert (seen.status, seen.device_bytes) == (Status.FAILED, [])
    assert seen.reason == "the profiler saw no kernel of repeat 1"
    undrained = watching.seen_of(Outcome(name="c0"), "c0", memory[:2], near, repeats=1)
    assert undrained.status is Status.FAILED


def test_passes_that_disturb_the_caches_are_told() -> None:
    memory, near = one_call()
    twice = [Kernel(name=k.name, label=k.label, values=k.values, passes=3) for k in memory]
    seen = watching.seen_of(Outcome(name="c0"), "c0", twice, near, repeats=1)
    assert "3 for memory, so its caches were not as in one run" in str(seen.method)


class Card:
    """A session's stand-in: a card that has counters, and a program that is only played."""

    def __init__(self, play: Callable[[list[dict[str, Any]]], None], repeats: int = 1) -> None:
        self.asked: list[list[str]] = []
        self.play = play
        self.seed = 0
        self.backend = self
        self.hardware = SimpleNamespace(backend="torch", device="cuda:0", compute_capability=(9, 0))

    def release(self) -> None:
        pass

    def read(self, program: list[str], metrics: Any, **_: Any) -> list[Kernel]:
        plan = json.loads(Path(program[-2]).read_text())
        calls = plan["calls"]
        self.asked.append([str(call["case"]["query_len"]) for call in calls])
        self.play(calls)
        outcomes = [{"name": c["name"], "peak_bytes": 64} for c in calls]
        Path(program[-1]).write_text("".join(json.dumps(o) + "\n" for o in outcomes))
        near = counters.ARRIVED in metrics
        return [
            Kernel(name=k.name, label=k.label.replace("c0", c["name"]), values=k.values, passes=1)
            for c in calls
            for k in one_call()[near]
        ]


def measured(watched: watching.Watch, case: Case, dtype: str) -> list[Result]:
    return watched._results(case, dtype, counts.attention_of(case.conditions(dtype)))


def shape(length: int) -> Case:
    return prefill(None, 1, length, 2, 128, causal=False)


def watch(
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
    *lengths: int,
    refusals: list[str] | None = None,
) -> watching.Watch:
    monkeypatch.setattr(counters, "read", card.read)
    monkeypatch.setattr(watching, "REPEATS", 1)
    entry = traffic.chosen(traffic.Parameters(implementations="naive"))[0]
    cases = [(shape(n), "bf16") for n in lengths]
    shared = refusals if refusals is not None else []
    return watching.Watch(card, "attention", entry, cases, shared)  # type: ignore[arg-type]


def test_all_cases_are_seen_in_one_run_for_each_set_of_counters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(lambda calls: None)
    watched = watch(card, monkeypatch, 64, 128)
    results = measured(watched, shape(64), "bf16")
    assert card.asked == [["64", "128"], ["64", "128"]]
    by_name = {(r.quantity, r.metric): r for r in results}
    assert set(by_name) == set(watching.MEASURED)
    assert by_name["traffic", "device"].samples == [337]
    assert "kernels of the first call: k 0.0001 MB read" in str(by_name["traffic", "device"].method)
    assert by_name["utilisation", "tensor_pipe"].unit == "%"
    assert by_name["memory", "working"].samples == [0.0]
    measured(watched, shape(128), "bf16")
    assert len(card.asked) == 2


def test_one_case_that_breaks_the_program_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def play(calls: list[dict[str, Any]]) -> None:
        if any(call["case"]["query_len"] == 128 for call in calls):
            raise CountersError("took longer than 1 s")

    card = Card(play)
    watched = watch(card, monkeypatch, 64, 128, 256)
    seen = {n: watched.see(shape(n), "bf16") for n in (64, 128, 256)}
    assert [seen[n].status for n in (64, 128, 256)] == [Status.OK, Status.FAILED, Status.OK]
    assert seen[128].reason == "torch.naive: took longer than 1 s"
    failed = measured(watched, shape(128), "bf16")
    assert {(r.status, len(r.samples)) for r in failed} == {(Status.FAILED, 0)}


def test_counters_out_of_reach_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(calls: list[dict[str, Any]]) -> None:
        raise Unavailable("no hardware counters: the driver")

    card = Card(refuse)
    watched = watch(card, monkeypatch, 64, 128)
    for length in (64, 128):
        results = measured(watched, shape(length), "bf16")
        assert {r.status for r in results} == {Status.UNSUPPORTED}
        assert {r.reason for r in results} == {"no hardware counters: the driver"}
    other = watch(card, monkeypatch, 64, refusals=watched.refusals)  # another implementation
    assert other.see(shape(64), "bf16").reason == "no hardware counters: the driver"
    assert len(card.asked) == 1


# -- the program that is profiled, with a card played by the CPU --------------------------------


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the program told the profiler, in order."""
    torch = pytest.importorskip("torch")
    from zenrepro import backends

    told: list[str] = []

    class Runtime:
        def cudaProfilerStart(self) -> None:  # noqa: N802
            told.append("start")

        def cudaProfilerStop(self) -> None:  # noqa: N802
            told.append("stop")

    opened = backends.open("torch", "cpu")
    opened.index = 0
    monkeypatch.setattr(backends, "open", lambda name, device: opened)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: object())
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: told.append(name))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: told.append("pop"))
    monkeypatch.setattr(profiled, "_FLUSH_BYTES", 2**16)
    return told


def run_program(tmp_path: Path, cases: list[Case]) -> list[dict[str, Any]]:
    import msgspec

    plan = profiled.Plan(
        op="attention", implementation="torch.naive", device="cuda:0", seed=0, repeats=2,
        calls=[
            profiled.Call(name=f"c{i}", case=msgspec.to_builtins(c), dtype="fp32")
            for i, c in enumerate(cases)
        ],
    )  # fmt: skip
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
    profiled.main([str(tmp_path / "plan.json"), str(tmp_path / "out")])
    return [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]


def test_exactly_the_call_is_profiled_and_then_what_it_left(
    played: list[str], tmp_path: Path
) -> None:
    outcomes = run_program(tmp_path, [shape(16)])
    assert [o["status"] for o in outcomes] == ["ok"]
    assert outcomes[0]["error"] < 1e-5
    assert played == [
        item
        for repeat in (0, 1)
        for item in (
            "start", f"zenrepro.c0.{repeat}.call", "pop", f"zenrepro.c0.{repeat}.drain", "pop",
            "stop",
        )
    ]  # fmt: skip


def test_a_wrong_output_is_never_counted(
    played: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zenrepro.ops.attention import torch_naive

    right = torch_naive.attention

    def off(q: Any, k: Any, v: Any, **given: Any) -> Any:
        return right(q, k, v, **{**given, "scale": 1.3 * q.shape[-1] ** -0.5})

    monkeypatch.setattr(torch_naive, "attention", off)
    outcomes = run_program(tmp_path, [shape(16)])
    assert outcomes[0]["status"] == "failed"
    assert "wrong output" in outcomes[0]["reason"]
    assert played == []


def test_an_error_of_one_call_is_its_own(
    played: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zenrepro.ops.attention import torch_naive

    right = torch_naive.attention

    def fails(q: Any, k: Any, v: Any, **given: Any) -> Any:
        if q.shape[1] == 16:
            raise MemoryError("no room")
        return right(q, k, v, **given)

    monkeypatch.setattr(torch_naive, "attention", fails)
    outcomes = run_program(tmp_path, [shape(16), shape(32)])
    assert [o["status"] for o in outcomes] == ["oom", "ok"]
    assert outcomes[0]["reason"] == "torch.naive: no room"
    assert played.count("start") == 2


def test_a_fault_that_stays_ends_the_program(
    played: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zenrepro import backends
    from zenrepro.ops.attention import torch_naive

    faulty: list[bool] = []

    def fault(*given: Any, **more: Any) -> Any:
        faulty.append(True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def synchronise(result: Any = None) -> None:
        if faulty:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch_naive, "attention", fault)
    monkeypatch.setattr(backends.open("torch", "cuda:0"), "synchronise", synchronise)
    with pytest.raises(SystemExit, match=r"answers no more: torch\.naive: CUDA error"):
        run_program(tmp_path, [shape(16), shape(32)])
    assert len((tmp_path / "out").read_text().splitlines()) == 1  # the second was not tried
    assert len(faulty) == 1


# -- latent attention ------------------------------------------------------------------------------


def test_latent_attention_is_counted_at_the_models_shapes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "absent", lambda device: None)
    run = start("traffic", backend="torch", scale="full")
    refusals: list[str] = []
    made = list(latent_traffic.points(run, [], refusals))
    counted = [p for p in made if p.produces is latent_traffic.COUNTED]
    assert {(p.conditions["op"], p.conditions["batch"]) for p in counted} == {
        ("mla_prefill", 32), ("mla_decode", 32),
    }  # fmt: skip
    for point in counted:
        assert point.measure is not None
        least, flops = point.measure()
        work = counts.mla_of(point.conditions)
        assert (least.samples, flops.samples) == ([work.bytes], [work.flops])
    decode = next(p for p in counted if p.conditions["op"] == "mla_decode")
    rows = 32 * 4096 * 576 * 2  # one row a token, read once
    assert decode.measure is not None
    assert decode.measure()[0].samples[0] == rows + 32 * 24 * (576 + 512) * 2
    read = {p.implementation for p in made if p.produces is not latent_traffic.COUNTED}
    assert {"torch.absorbed", "torch.decompressed", "torch.hopper"} <= read
    for point in made:
        names = set(run._shells(point)[0].inputs.sources)
        assert not names & {"zenrepro/ops/mla/table.py", "zenrepro/ops/mla/cases.py"}
    assert list(latent_traffic.points(start("traffic", backend="torch"), [], refusals)) == []


def test_the_program_runs_latent_attention_too(played: list[str], tmp_path: Path) -> None:
    import msgspec

    from zenrepro.ops.mla.cases import CASES

    plan = profiled.Plan(
        op="mla", implementation="torch.absorbed", device="cuda:0", seed=0, repeats=1,
        calls=[
            profiled.Call(name=f"c{i}", case=msgspec.to_builtins(case), dtype="fp32")
            for i, case in enumerate(c for c in CASES["smoke"] if c.phase == "decode")
            if case.format is None
        ],
    )  # fmt: skip
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
    profiled.main([str(tmp_path / "plan.json"), str(tmp_path / "out")])
    outcomes = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [o["status"] for o in outcomes] == ["ok"] * len(plan.calls)
    assert played.count("start") == len(plan.calls) > 0


@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
def test_the_reports_count_of_operations_is_settled_by_what_is_counted(
    started: Start, backend: str
) -> None:
    """The publication knows the name under which the plain form's work is counted."""
    run = started("traffic", backend=backend, implementations="naive")
    records = run.measure(traffic.points(run))
    publication = claims.load(ROOT / "data" / "published" / "zen.yaml")
    (found,) = [m for m in judge(publication, records) if m.claim == "zen.attention.flops"]
    assert (found.verdict, found.power_of) == ("reproduced", "N")
