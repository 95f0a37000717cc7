"""Every implementation of latent attention, over every small case, against fp64, on the CPU."""

from __future__ import annotations

import functools
import importlib.util
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro import backends
from zenrepro.ops.entry import Entry
from zenrepro.ops.gate import relative_error
from zenrepro.ops.mla import TABLE, arguments, reference
from zenrepro.ops.mla.cases import CASES, CONTRACT, Case, decode, prefill
from zenrepro.ops.mla.problem import Problem
from zenrepro.ops.mla.sizes import LATENT, PAGE, ROW
from zenrepro.ops.mla.table import load

# XLA compiles each shape anew: these stand for all.
FEW = (
    "smoke_verify", "smoke_fp8", "smoke_prefill", "one_row", "one_more", "ragged", "heads_40",
    "tokens_8", "chunk",
)  # fmt: skip


class Cpu:
    """A plain CPU, as a table row sees it."""

    device = "cpu"
    compute_capability = None

    def __init__(self, backend: str) -> None:
        self.backend = backend


def on_cpu() -> list[Entry]:
    return [entry for entry in TABLE if entry.available(Cpu(entry.backend)).ok]


def opened(entry: Entry) -> backends.Backend:
    if importlib.util.find_spec(entry.backend) is None:
        pytest.skip(f"{entry.backend} is not installed")
    return backends.open(entry.backend, "cpu")


@functools.cache
def wanted(case: Case, dtype: str) -> Any:
    """The reference's part of a problem, once for all backends: they draw the same inputs."""
    for name in backends.NAMES:
        if importlib.util.find_spec(name) is not None:
            return Problem(backends.open(name, "cpu"), case, dtype, 0)._wanted
    pytest.skip("no backend is installed")


def cases(entry: Entry, dtype: str) -> list[Case]:
    every = CASES["smoke"] if dtype != "fp32" else (*CASES["smoke"], *CONTRACT)
    listed = [c for c in every if c.phase in entry.needs.phases]
    return [c for c in listed if c.name in FEW] if entry.backend == "jax" else listed


def test_each_backend_has_both_forms_on_the_cpu() -> None:
    names = {entry.name for entry in on_cpu()}
    assert {f"{b}.{form}" for b in backends.NAMES for form in ("absorbed", "decompressed")} <= names


@pytest.mark.parametrize(
    ("entry", "dtype"),
    [
        pytest.param(entry, dtype, id=f"{entry.name}-{dtype}")
        for entry in on_cpu()
        for dtype in entry.needs.dtypes["cpu"]
    ],
)
def test_matches_fp64(entry: Entry, dtype: str) -> None:
    backend = opened(entry)
    for case in cases(entry, dtype):
        assert entry.available(Cpu(entry.backend), case.conditions(dtype)).ok
        problem = Problem(backend, case, dtype, 0)
        problem.__dict__["_wanted"] = wanted(case, dtype)
        call = problem.call(entry)
        verdict = problem.judge(call)
        assert verdict.passed, f"{case.name}: {verdict.reason}"
        assert call().dtype == problem.arrays[0].dtype


def call_decode(backend: backends.Backend, entry: Entry, given: dict[str, Any]) -> np.ndarray:
    q, cache = given["q"], given["cache"]
    indices = {name: backend.whole(given[name]) for name in ("block_table", "cache_seqlens")}
    function = functools.partial(load(entry, "decode"), scale=given.get("scale"))
    run = backend.compile(function) if entry.compiled else function
    stored = backend.whole(cache) if cache.dtype == np.uint8 else backend.asarray(cache, "fp32")
    return backend.numpy(run(backend.asarray(q, "fp32"), stored, **indices))


DECODING = [entry for entry in on_cpu() if "decode" in entry.needs.phases]


@pytest.mark.parametrize("entry", DECODING, ids=lambda entry: entry.name)
def test_rows_that_are_not_a_sequences_own_may_be_nan(entry: Entry) -> None:
    """Other pages, the rest of the last page, table entries past the end; an empty sequence."""
    backend = opened(entry)
    rng = np.random.default_rng(0)
    lengths = np.array([70, 0, 64, 2], np.int32)
    table = np.array([[5, 2, -1], [-1, -1, 99], [4, -7, 1], [0, 3, 3]], np.int32)
    pool = np.full((6, PAGE, ROW), np.nan, np.float32)
    for b, length in enumerate(lengths):
        for s in range(length):
            pool[table[b, s // PAGE], s % PAGE] = rng.standard_normal(ROW)
    q = rng.standard_normal((4, 3, 5, ROW)).astype(np.float32)
    given = {"q": q, "cache": pool, "block_table": table, "cache_seqlens": lengths}
    right = reference.decode(**given)
    out = call_decode(backend, entry, given)
    assert relative_error(out, right) < 2e-6
    assert np.array_equal(out[1], np.zeros_like(out[1]))
    assert np.array_equal(out[3, 0], np.zeros_like(out[3, 0]))  # the first of 3 queries sees none


@pytest.mark.parametrize("entry", DECODING, ids=lambda entry: entry.name)
def test_a_nan_of_the_input_stays_in_its_sequence(entry: Entry) -> None:
    backend = opened(entry)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 1, 2, ROW)).astype(np.float32)
    pool = rng.standard_normal((2, PAGE, ROW)).astype(np.float32)
    pool[0, 3, 5] = np.nan
    given = {
        "q": q, "cache": pool, "block_table": np.array([[0], [1]], np.int32),
        "cache_seqlens": np.array([10, 10], np.int32),
    }  # fmt: skip
    out = call_decode(backend, entry, given)
    assert np.isnan(out[0]).any()
    assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("entry", DECODING, ids=lambda entry: entry.name)
@pytest.mark.parametrize("size", [1e3, 1e-6])
def test_large_and_tiny_values(entry: Entry, size: float) -> None:
    backend = opened(entry)
    rng = np.random.default_rng(0)
    given = {
        "q": (size * rng.standard_normal((1, 2, 4, ROW))).astype(np.float32),
        "cache": rng.standard_normal((2, PAGE, ROW)).astype(np.float32),
        "block_table": np.array([[1, 0]], np.int32),
        "cache_seqlens": np.array([100], np.int32),
    }
    assert relative_error(call_decode(backend, entry, given), reference.decode(**given)) < 1e-3
    other = {**given, "scale": 0.5}
    assert relative_error(call_decode(backend, entry, other), reference.decode(**other)) < 1e-3


@pytest.mark.parametrize("name", ["jax.absorbed", "jax.tiled"])
def test_jax_compiles_decode_once_for_all_lengths(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jax = pytest.importorskip("jax")
    from zenrepro.ops.mla import jax_tiled

    monkeypatch.setattr(jax_tiled, "CHUNK_BYTES", 1)  # a page at a time
    function = load(next(entry for entry in TABLE if entry.name == name), "decode")
    traced = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal traced
        traced += 1
        return function(*args, **kwargs)

    run = jax.jit(counted)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 1, 4, ROW)).astype(np.float32)
    pool = rng.standard_normal((6, PAGE, ROW)).astype(np.float32)
    table = np.array([[0, 3, 1], [5, 2, 4]], np.int32)
    for pair in ([1, 2], [64, 65], [130, 7], [192, 192]):
        indices = {"block_table": table, "cache_seqlens": np.array(pair, np.int32)}
        right = reference.decode(q, pool, **indices)
        assert relative_error(np.asarray(run(q, pool, **indices)), right) < 2e-6
    assert traced == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch.absorbed", "jax.tiled", "mlx.absorbed"])
def test_128k_of_context(name: str) -> None:
    entry = next(entry for entry in TABLE if entry.name == name)
    backend = opened(entry)
    case = decode(None, 1, 1, 131_001)
    problem = Problem(backend, case, "fp32", 0)
    problem.__dict__["_wanted"] = wanted(case, "fp32")
    verdict = problem.judge(problem.call(entry))
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("entry", on_cpu(), ids=lambda entry: entry.name)
def test_every_implementation_checks_before_it_computes(entry: Entry) -> None:
    backend = opened(entry)
    zeros = functools.partial(backend.asarray, dtype="fp32")
    if "decode" in entry.needs.phases:
        indices = {
            "block_table": backend.whole(np.array([[0, 1]], np.int32)),
            "cache_seqlens": backend.whole(np.array([129], np.int32)),
        }
        with pytest.raises(ValueError, match=r"^cache_seqlens: wants lengths from 0 to 128.*129"):
            load(entry, "decode")(zeros(np.zeros((1, 1, 2, ROW))), zeros(np.zeros((2, PAGE, ROW))),
                                  **indices)  # fmt: skip
    if "prefill" in entry.needs.phases:
        with pytest.raises(ValueError, match=r"^w_uv: wants \[H, 128, 512\] with q's H = 2"):
            load(entry, "prefill")(
                zeros(np.zeros((1, 3, 2, 192))), zeros(np.zeros((1, 3, ROW))),
                zeros(np.zeros((2, 128, LATENT))), zeros(np.zeros((3, 128, LATENT))), causal=True,
            )  # fmt: skip


# The checks themselves ---------------------------------------------------------------------------


def good_decode() -> dict[str, Any]:
    return {
        "q": np.zeros((2, 1, 4, ROW), np.float32),
        "cache": np.zeros((3, PAGE, ROW), np.float32),
        "block_table": np.zeros((2, 2), np.int32),
        "cache_seqlens": np.array([1, 128], np.int32),
    }


def good_prefill() -> dict[str, Any]:
    return {
        "q": np.zeros((2, 3, 4, 192), np.float32),
        "latent": np.zeros((2, 5, ROW), np.float32),
        "w_uk": np.zeros((4, 128, LATENT), np.float32),
        "w_uv": np.zeros((4, 128, LATENT), np.float32),
        "causal": True,
    }


DECODE_ERRORS = {
    r"q: wants 4 dimensions \[B, T, H, 576\], got \(2, 4, 576\)": {"q": np.zeros((2, 4, ROW))},
    r"q: wants width 576, latent and rotary part, got 192": {"q": np.zeros((2, 1, 4, 192))},
    r"q: wants T from 1 to 8 query tokens, got 9": {"q": np.zeros((2, 9, 4, ROW))},
    r"q: wants at most 128 heads, got 129": {"q": np.zeros((2, 1, 129, ROW))},
    r"q: wants no empty dimension, got \(2, 0, 4, 576\)": {"q": np.zeros((2, 0, 4, ROW))},
    r"q: wants float16 or bfloat16 or .*, got int32": {"q": np.zeros((2, 1, 4, ROW), np.int32)},
    r"q: wants an array \[B, T, H, 576\], got list": {"q": [1.0]},
    r"cache: wants \[P, 64, 576\] in float32, got \(3, 32, 576\)": {
        "cache": np.zeros((3, 32, ROW), np.float32)
    },
    r"cache: wants \[P, 64, 656\] in uint8, got \(3, 64, 576\)": {
        "cache": np.zeros((3, PAGE, ROW), np.uint8)
    },
    r"cache: wants q's dtype float32 or uint8, got float16": {
        "cache": np.zeros((3, PAGE, ROW), np.float16)
    },
    r"block_table: wants int32, got int64": {"block_table": np.zeros((2, 2), np.int64)},
    r"block_table: wants B = 2 as q has, got \(3, 2\)": {"block_table": np.zeros((3, 2), np.int32)},
    r"block_table: wants pages from 0 to 2, got 3 for page 1 of sequence 1": {
        "block_table": np.array([[0, 9], [2, 3]], np.int32)
    },
    r"block_table: wants pages from 0 to 2, got -1 for page 0 of sequence 0": {
        "block_table": np.array([[-1, 9], [2, 2]], np.int32)
    },
    r"cache_seqlens: wants 1 dimension \[B\], got \(2, 1\)": {
        "cache_seqlens": np.zeros((2, 1), np.int32)
    },
    r"cache_seqlens: wants int32, got float64": {"cache_seqlens": np.zeros(2)},
    r"cache_seqlens: wants lengths from 0 to 128, 2 pages of 64, got 129 for sequence 0": {
        "cache_seqlens": np.array([129, 1], np.int32)
    },
    r"cache_seqlens: wants lengths from 0 to 128, 2 pages of 64, got -1 for sequence 1": {
        "cache_seqlens": np.array([9, -1], np.int32)
    },
    r"scale: wants a positive finite number or None, got -1.0": {"scale": -1.0},
}
PREFILL_ERRORS = {
    r"q: wants width 192, 128 and the rotary part, got 576": {"q": np.zeros((2, 3, 4, ROW))},
    r"latent: wants B = 2 as q has and width 576, got \(1, 5, 576\)": {
        "latent": np.zeros((1, 5, ROW), np.float32)
    },
    r"w_uk: wants \[H, 128, 512\] with q's H = 4, got \(4, 512, 128\)": {
        "w_uk": np.zeros((4, 512, 128), np.float32)
    },
    r"w_uv: wants q's dtype float32, got float16": {"w_uv": np.zeros((4, 128, LATENT), np.float16)},
    r"q: wants at most as many queries as latent rows \(2\) when causal, got 3": {
        "latent": np.zeros((2, 2, ROW), np.float32)
    },
    r"causal: wants True or False, got 1": {"causal": 1},
    r"scale: wants a positive finite number or None, got nan": {"scale": float("nan")},
}


def made_by(framework: str, host: Any) -> Any:
    """A numpy array as one of a framework; what is none stays."""
    if not isinstance(host, np.ndarray) or framework == "numpy":
        return host
    if framework == "torch":
        return pytest.importorskip("torch").from_numpy(host)
    if framework == "jax":
        return pytest.importorskip("jax").numpy.asarray(host)
    return pytest.importorskip("mlx.core").array(host)


GIVEN = {"decode": good_decode, "prefill": good_prefill}
EVERY = [(entry, phase) for entry in TABLE for phase in entry.needs.phases]
OF_EVERY = pytest.mark.parametrize(
    ("entry", "phase"), EVERY, ids=[f"{e.name}-{phase}" for e, phase in EVERY]
)


@OF_EVERY
def test_arrays_of_another_framework_are_named(entry: Entry, phase: str) -> None:
    """One of them or all, on every row, the ones for other devices too."""
    wanted = {"torch": "(a torch )?tensor", "jax": "a jax array", "mlx": "an mlx array"}
    function = load(entry, phase)
    given = GIVEN[phase]()
    listed = [name for name, host in given.items() if isinstance(host, np.ndarray)]
    for foreign in ("numpy", "mlx" if entry.backend == "torch" else "torch"):
        for changed in (*([name] for name in listed), listed):
            mixed = {n: made_by(foreign if n in changed else entry.backend, x)
                     for n, x in given.items()}  # fmt: skip
            with pytest.raises(ValueError, match=r"^\w+: wants [^\n]+, got [^\n]+$") as caught:
                function(**mixed)
            said = str(caught.value)
            if "dtype" not in said and "bfloat16" not in said:  # one's dtype is another's
                assert re.match(f"{changed[0]}: wants (a )?{wanted[entry.backend]}", said), said


@OF_EVERY
def test_a_scale_that_is_no_number_is_named(entry: Entry, phase: str) -> None:
    if "cpu" not in entry.needs.dtypes:
        pytest.skip(
            f"{entry.name} runs on {', '.join(entry.needs.dtypes)}: other checks come first"
        )
    given = {name: made_by(entry.backend, host) for name, host in GIVEN[phase]().items()}
    for wrong in ("0.1", [0.1], True, 10**400):
        with pytest.raises(
            ValueError, match=r"^scale: wants a positive finite number or None, got "
        ):
            load(entry, phase)(**{**given, "scale": wrong})


def test_a_cache_with_gaps_is_read_as_one_without() -> None:
    torch = pytest.importorskip("torch")
    from zenrepro.ops.mla import torch_absorbed

    rng = np.random.default_rng(0)
    given = good_decode() | {"cache": rng.standard_normal((3, PAGE, ROW)).astype(np.float32)}
    tensors = {name: made_by("torch", host) for name, host in given.items()}
    wanted = torch_absorbed.decode(**tensors)
    turned = tensors["cache"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not turned.is_contiguous()
    assert torch.equal(torch_absorbed.decode(**{**tensors, "cache": turned}), wanted)


@pytest.mark.parametrize("traced", ["q", "indices"])
def test_jax_may_trace_some_of_the_arguments(traced: str) -> None:
    """A cache, or lengths, that a jitted function closes over."""
    jax = pytest.importorskip("jax")
    from zenrepro.ops.mla import jax_absorbed

    given = {name: made_by("jax", host) for name, host in good_decode().items()}
    names = ["q"] if traced == "q" else ["block_table", "cache_seqlens"]
    inside = {name: given[name] for name in names}
    kept = {name: x for name, x in given.items() if name not in names}
    out = jax.jit(lambda inside: jax_absorbed.decode(**inside, **kept))(inside)
    assert np.allclose(out, jax_absorbed.decode(**given), atol=1e-6)


@pytest.mark.parametrize("message", DECODE_ERRORS)
def test_decode_names_what_is_wrong(message: str) -> None:
    assert arguments.check_decode(**good_decode()).heads == 4
    with pytest.raises(ValueError, match=f"^{message}$"):
        arguments.check_decode(**good_decode() | DECODE_ERRORS[message])


@pytest.mark.parametrize("message", PREFILL_ERRORS)
def test_prefill_names_what_is_wrong(message: str) -> None:
    assert arguments.check_prefill(**good_prefill()).cache_len == 5
    with pytest.raises(ValueError, match=f"^{message}$"):
        arguments.check_prefill(**good_prefill() | PREFILL_ERRORS[message])


def test_the_table_may_say_anything_past_a_sequence() -> None:
    given = good_decode() | {"block_table": np.array([[0, -5], [2, 1]], np.int32)}
    assert arguments.check_decode(**given).width == 2


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_wrong_shape_is_one_line_that_names_an_argument(data: st.DataObject) -> None:
    """One dimension of one argument changed: an error in one line, or a call that makes sense."""
    decoding = data.draw(st.booleans())
    given = good_decode() if decoding else good_prefill()
    name = data.draw(st.sampled_from([key for key in given if key != "causal"]))
    shape = list(given[name].shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] = data.draw(st.sampled_from([0, 1, shape[axis] - 1, shape[axis] + 1, 200]))
    given[name] = np.zeros(shape, given[name].dtype)
    check = arguments.check_decode if decoding else arguments.check_prefill
    try:
        sizes = check(**given)
    except ValueError as error:
        said = str(error)
    else:
        assert min(int(size) for size in sizes[:4]) > 0
        return
    assert re.fullmatch(f"({'|'.join(given)}): wants [^\n]+, got [^\n]+", said), said


def test_strides_that_a_kernel_cannot_take() -> None:
    torch = pytest.importorskip("torch")
    given = {
        "q": torch.zeros(2, 4, 1, ROW).transpose(1, 2), "cache": torch.zeros(3, PAGE, ROW),
        "block_table": torch.zeros(2, 2, dtype=torch.int32),
        "cache_seqlens": torch.ones(2, dtype=torch.int32),
    }  # fmt: skip
    assert arguments.check_decode(**given, contiguous=("cache",)).query_len == 1
    cut = torch.zeros(3, PAGE, ROW + 64)[..., :ROW]
    message = r"^cache: wants a contiguous array, got shape \(3, 64, 576\) with strides \(40960, "
    with pytest.raises(ValueError, match=message):
        arguments.check_decode(**given | {"cache": cut}, contiguous=("cache",))
    assert arguments.check_decode(**given | {"cache": cut}).pages == 3


def test_devices_must_be_one() -> None:
    torch = pytest.importorskip("torch")
    given = {
        "q": torch.zeros(2, 1, 4, ROW), "cache": torch.zeros(3, PAGE, ROW, device="meta"),
        "block_table": torch.zeros(2, 2, dtype=torch.int32),
        "cache_seqlens": torch.ones(2, dtype=torch.int32),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^cache: wants q's device cpu, got meta$"):
        arguments.check_decode(**given)


def test_values_are_not_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    class OnCuda(torch.Tensor):
        is_cuda = True

    array = torch.tensor([1, 2], dtype=torch.int32).as_subclass(OnCuda)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert arguments.values(array) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert np.array_equal(arguments.values(array), [1, 2])


# Problems ----------------------------------------------------------------------------------------


@pytest.fixture(params=backends.NAMES)
def backend(request: pytest.FixtureRequest) -> Any:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return backends.open(request.param, "cpu")


def row(backend: backends.Backend) -> Entry:
    return next(entry for entry in TABLE if entry.name == f"{backend.name}.absorbed")


@pytest.mark.parametrize(
    "case",
    [
        decode(None, 3, 8, 700, query_len=8, skew=0.3),
        decode(None, 3, 8, 700, query_len=8, fp8=True),
        prefill(None, 3, 4, 120, query_len=100),
    ],
    ids=["decode", "fp8", "prefill"],
)
def test_a_part_of_a_large_output_is_compared(
    backend: backends.Backend, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zenrepro.ops.mla.problem.SMALL_PAIRS", 1)
    problem = Problem(backend, case, "fp32", seed=0)
    assert problem.compared.endswith(f"2 of {case.heads} heads, 4 of {case.query_len} query rows")
    call = problem.call(row(backend))
    verdict = problem.judge(call)
    assert verdict.passed, verdict.reason
    for b, t, h in ((0, 0, 0), (2, case.query_len - 1, case.heads - 1)):
        wrong = np.array(backend.numpy(call()))
        wrong[b, t, h] *= 1.01
        seen = problem.judge(lambda wrong=wrong: backend.asarray(wrong, "fp32"))
        assert not seen.passed
        assert "relative error" in str(seen.reason)


def test_sequences_of_a_pool_share_no_page(backend: backends.Backend) -> None:
    problem = Problem(backend, decode(None, 5, 2, 200, skew=0.9), "fp32", seed=0)
    used = problem.table[problem.table >= 0]
    assert len(set(used.tolist())) == len(used)
    assert used.tolist() != sorted(used.tolist())
    assert problem.lengths.sum() == 5 * 200
    assert len(set(problem.lengths.tolist())) == 5
    assert problem.arrays[0].shape[0] == 5
