"""Every implementation of attention, over every small case, against fp64, on the CPU."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np
import pytest

from zenrepro import backends
from zenrepro.ops.attention import CASES, TABLE, reference
from zenrepro.ops.attention.cases import CONTRACT, Case
from zenrepro.ops.attention.problem import Problem
from zenrepro.ops.entry import Entry, UnsupportedError
from zenrepro.ops.gate import relative_error
from zenrepro.ops.precision import rounded

ALL = (*CASES["smoke"], *CONTRACT)
WANTED: dict[tuple[Case, str], Any] = {}  # by case and dtype
FOR_XLA = {
    "smoke_causal", "unequal", "chunk", "decode_one_key", "verify", "large", "varlen_masked",
    "paged_16", "paged_verify",
}  # fmt: skip


class Cpu:
    """A plain CPU, as a table row sees it."""

    device = "cpu"
    compute_capability = None

    def __init__(self, backend: str) -> None:
        self.backend = backend


def inputs(case: Case, dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = (
        (case.batch, case.query_len, case.heads, case.head_dim),
        (case.batch, case.cache_len, case.kv_heads, case.head_dim),
        (case.batch, case.cache_len, case.kv_heads, case.value_dim),
    )
    q, k, v = (rounded(rng.standard_normal(shape), dtype) for shape in shapes)
    return q, k, v


def to(backend: str, array: np.ndarray, dtype: str) -> Any:
    if backend == "torch":
        import torch

        names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.from_numpy(np.ascontiguousarray(array)).to(names[dtype])
    if backend == "jax":
        import jax.numpy as jnp

        names = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}
        return jnp.asarray(array, dtype=names[dtype])
    import mlx.core as mx

    names = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
    return mx.array(array).astype(names[dtype])


def back(backend: str, array: Any) -> np.ndarray:
    if backend == "torch":
        return array.float().numpy()
    if backend == "jax":
        return np.asarray(array, dtype=np.float32)
    import mlx.core as mx

    return np.array(array.astype(mx.float32))


def on_cpu() -> list[Entry]:
    return [entry for entry in TABLE if entry.available(Cpu(entry.backend)).ok]


def need(entry: Entry) -> None:
    module = {"mlx": "mlx.core"}.get(entry.backend, entry.backend)
    if importlib.util.find_spec(entry.backend) is None:
        pytest.skip(f"{module} is not installed")


def test_each_backend_has_a_baseline_and_a_peer_on_the_cpu() -> None:
    names = {entry.name for entry in on_cpu()}
    assert {"torch.naive", "torch.sdpa_flash", "jax.naive", "jax.xla"} <= names
    assert {"mlx.naive", "mlx.fast"} <= names


@pytest.mark.parametrize(
    ("entry", "dtype"),
    [
        pytest.param(entry, dtype, id=f"{entry.name}-{dtype}")
        for entry in on_cpu()
        for dtype in entry.needs.dtypes["cpu"]
    ],
)
def test_matches_fp64(entry: Entry, dtype: str) -> None:
    need(entry)
    backend = backends.open(entry.backend, "cpu")
    refused = []
    cases = ALL if dtype == "fp32" else CASES["smoke"]
    if entry.backend == "jax":  # XLA compiles each case anew, for seconds
        named = FOR_XLA if dtype == "fp32" else {"smoke_grouped", "smoke_paged"}
        cases = tuple(case for case in cases if case.name in named)
    for case in cases:
        ok, reason = entry.available(Cpu(entry.backend), case.conditions(dtype))
        if not ok:
            refused.append((case, str(reason)))
            continue
        drawn = Problem(backend, case, dtype, seed=0)
        # Each backend draws the same values, so the slow loop runs once for all of them.
        if (case, dtype) in WANTED:
            drawn.__dict__["_wanted"] = WANTED[case, dtype]
        WANTED[case, dtype] = drawn._wanted
        call = drawn.call(entry)
        assert str(call().dtype) == str(drawn.arrays[0].dtype), case
        verdict = drawn.judge(call)
        assert verdict.passed, f"{case.name}: {verdict.reason}"
    for case, reason in refused:
        served = case.layout in entry.needs.layouts
        assert ("value_dim" in reason and case.value_dim != case.head_dim) or not served, reason
    if entry.name == "torch.naive":
        assert not refused


@pytest.mark.parametrize("entry", on_cpu(), ids=lambda entry: entry.name)
def test_scale_is_taken_and_large_values_stay_finite(entry: Entry) -> None:
    need(entry)
    case = CASES["smoke"][0]
    q, k, v = inputs(case, "fp32")
    q = q * 1e3  # scores of thousands: the softmax must subtract the maximum
    wanted = reference.attention(q, k, v, causal=True, scale=0.7)
    arrays = [to(entry.backend, x, "fp32") for x in (q, k, v)]
    out = back(entry.backend, entry.load()(*arrays, causal=True, scale=0.7))
    assert relative_error(out, wanted) < 1e-3  # one-hot rows: argmax ties would show as errors of 1
    default = back(entry.backend, entry.load()(*arrays, causal=True))
    assert relative_error(default, wanted) > 1e-3


@pytest.mark.parametrize("entry", on_cpu(), ids=lambda entry: entry.name)
def test_wrong_arguments_are_named(entry: Entry) -> None:
    need(entry)
    function = entry.load()

    def call(q: Any, k: Any, v: Any, causal: Any = True, scale: Any = None) -> Any:
        arrays = [to(entry.backend, np.zeros(s, np.float32), "fp32") for s in (q, k, v)]
        return function(*arrays, causal=causal, scale=scale)

    good = (1, 4, 4, 8)
    with pytest.raises(ValueError, match=r"^q: wants 4 dimensions.*got \(4, 4, 8\)"):
        call((4, 4, 8), good, good)
    with pytest.raises(ValueError, match=r"^k: wants B = 1 and D = 8.*got \(1, 4, 4, 16\)"):
        call(good, (1, 4, 4, 16), good)
    with pytest.raises(ValueError, match=r"^v: wants B = 1, S = 4, Hkv = 4.*got \(1, 5, 4, 8\)"):
        call(good, good, (1, 5, 4, 8))
    with pytest.raises(ValueError, match=r"^k: wants a number of heads that divides q's 4, got 3"):
        call(good, (1, 4, 3, 8), (1, 4, 3, 8))
    with pytest.raises(ValueError, match=r"^q: wants at most as many queries as keys \(3\).*got 4"):
        call(good, (1, 3, 4, 8), (1, 3, 4, 8))
    with pytest.raises(ValueError, match=r"^q: wants no empty dimension"):
        call((1, 0, 4, 8), good, good)
    with pytest.raises(ValueError, match=r"^scale: wants a positive finite number"):
        call(good, good, good, scale=float("nan"))
    with pytest.raises(ValueError, match=r"^causal: wants True or False, got 1"):
        call(good, good, good, causal=1)
    q, k = to(entry.backend, np.zeros(good), "fp32"), to(entry.backend, np.zeros(good), "fp16")
    with pytest.raises(ValueError, match=r"^k: wants q's dtype .*float32, got .*float16"):
        function(q, k, q, causal=True)
    whole = backends.open(entry.backend, "cpu").whole(np.zeros(good, np.int32))
    with pytest.raises(ValueError, match=r"^q: wants float16, bfloat16, float32 or float64"):
        function(whole, whole, whole, causal=True)
    with pytest.raises(ValueError, match=r"^q: wants an array .* got list"):
        function([1], q, q, causal=True)


def test_a_library_that_refuses_says_why() -> None:
    torch = pytest.importorskip("torch")
    from zenrepro.ops.attention import torch_sdpa_cudnn, torch_sdpa_efficient, torch_sdpa_flash

    q, v = torch.zeros(1, 4, 2, 64), torch.zeros(1, 4, 2, 32)
    for refusing, value in (
        (torch_sdpa_flash.attention, v),  # unequal widths
        (torch_sdpa_cudnn.attention, q),  # no GPU
        (torch_sdpa_efficient.attention, q),
    ):
        with pytest.raises(UnsupportedError, match=r"\w{4}") as caught:
            refusing(q, q, value, causal=True)
        assert "\n" not in str(caught.value)


def test_jax_cudnn_without_cudnn_is_a_reason() -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "cpu":
        pytest.skip("cuDNN may be there")
    from zenrepro.ops.attention import jax_cudnn

    q = jax.numpy.zeros((1, 4, 2, 64), jax.numpy.bfloat16)
    for v in (q, q[..., :32]):  # values as wide as keys, and narrower
        with pytest.raises(UnsupportedError, match=r"\w{4}"):
            jax.jit(functools.partial(jax_cudnn.attention, causal=True))(q, q, v)
