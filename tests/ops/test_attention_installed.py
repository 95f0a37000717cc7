"""Calls of installed libraries, with stand-ins that register the libraries' own operators.

The stand-ins compute with the plain loop, so a wrong argument is a wrong number. What the real
libraries answer is tests/device's to say.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zenrepro import backends
from zenrepro.ops.attention import TABLE, arguments, fa3_library
from zenrepro.ops.attention.cases import CONTRACT, Case, bound
from zenrepro.ops.attention.problem import Problem
from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.gate import judge, relative_error

torch = pytest.importorskip("torch")
ROWS = {entry.name: entry for entry in TABLE}

# The two builds' operator: what is optional, and whether plain arguments have defaults, differs.
_TENSORS = """k_new v_new q_v out cu_seqlens_q cu_seqlens_k cu_seqlens_k_new seqused_q seqused_k
page_table kv_batch_idx leftpad_k rotary_cos rotary_sin seqlens_rotary q_descale k_descale
v_descale scheduler_metadata"""
AUTHORS = (
    "(Tensor q, Tensor k, Tensor v, "
    + ", ".join(f"Tensor? {name}=None" for name in _TENSORS.split())
    + ", int? max_seqlen_q=None, int? max_seqlen_k=None, float? softmax_scale=None, "
    "bool is_causal=False, int window_size_left=-1, int window_size_right=-1, "
    "int attention_chunk=0, float softcap=0.0, bool is_rotary_interleaved=False, "
    "int num_splits=0, bool? pack_gqa=None, int sm_margin=0) -> (Tensor, Tensor, Tensor, Tensor)"
)
VLLM = (
    "(Tensor q, Tensor k, Tensor v, "
    + ", ".join(f"Tensor? {name}" for name in _TENSORS.split())
    + ", int? max_seqlen_q, int? max_seqlen_k, float softmax_scale, bool is_causal, "
    "int window_size_left, int window_size_right, float softcap, bool is_rotary_interleaved, "
    "int num_splits, bool? pack_gqa, int sm_margin, Tensor? s_aux, int cp_world_size, "
    "int cp_rank, Tensor? cp_tot_seqused_k) -> Tensor[]"
)


def some(*names: str) -> list[Case]:
    return [case for case in CONTRACT if case.name in names]


def fa3(names: list[str], record: list[dict[str, Any]]) -> Callable[..., Any]:
    """FlashAttention-3's ``fwd`` by the plain loop, on the CPU."""
    from zenrepro.ops.attention import torch_naive

    def forward(*given: Any) -> Any:
        a = dict(zip(names, given, strict=False))
        record.append(a)  # the dispatcher leaves out what has its default at the end
        q, k, v, causal = a["q"].float(), a["k"].float(), a["v"].float(), a["is_causal"]
        if q.shape[-1] % 8:
            raise RuntimeError("head_size should be a multiple of 8\nfrom a line of C++")
        scale = a["softmax_scale"]
        if a.get("q_v") is not None:  # scores of two products: as if the widths were joined
            q = torch.cat((a["q_v"].float(), q), -1)
            k = torch.cat((v, k), -1)
        more = {"causal": causal, "scale": scale}
        if a.get("page_table") is not None:
            more |= {"block_table": a["page_table"], "cache_seqlens": a["seqused_k"]}
            out = torch_naive.attention_paged(q, k, v, **more)
        elif a.get("cu_seqlens_q") is not None:
            offsets = {name: a[name] for name in ("cu_seqlens_q", "cu_seqlens_k")}
            longest = {name: a[name] for name in ("max_seqlen_q", "max_seqlen_k")}
            out = torch_naive.attention_varlen(q, k, v, **more, **offsets, **longest)
        else:
            out = torch_naive.attention(q, k, v, **more)
        form = torch.bfloat16 if a["q"].dtype == torch.float8_e4m3fn else a["q"].dtype
        none = torch.empty(0)
        return out.to(form), none, none, none

    return forward


@pytest.fixture(params=["flash_attn_3", "_vllm_fa3_C"])
def recorded(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[dict[str, Any]]]:
    """The arguments of each call, with a build of FlashAttention-3 'loaded'."""
    schema = AUTHORS if request.param == "flash_attn_3" else VLLM
    found: list[dict[str, Any]] = []
    names = [argument.name for argument in torch._C.parse_schema(f"x::fwd{schema}").arguments]
    library = torch.library.Library(request.param, "DEF")
    library.define(f"fwd{schema}")
    by_names = fa3(names, found)
    if request.param == "_vllm_fa3_C":
        library.impl("fwd", lambda *given: list(by_names(*given)), "CPU")
    else:
        library.impl("fwd", by_names, "CPU")
    monkeypatch.setattr(fa3_library, "_load", lambda: "stand-in")
    monkeypatch.setattr(arguments, "check_served", lambda *given, **more: None)
    fa3_library._operator.cache_clear()
    yield found
    fa3_library._operator.cache_clear()
    library._destroy()


@pytest.mark.parametrize(
    "case",
    some("unequal", "chunk", "verify", "varlen_masked", "paged_64", "paged_verify"),
    ids=lambda case: case.name,
)
def test_fa3_gets_each_layout_s_arguments(recorded: list[dict[str, Any]], case: Case) -> None:
    drawn = Problem(backends.open("torch", "cpu"), case, "bf16", seed=0)
    verdict = drawn.judge(drawn.call(ROWS["torch.fa3_package"]))
    assert verdict.passed, verdict.reason
    (given,) = recorded
    assert given.get("num_splits", 0) == 0  # the library chooses
    assert given["scheduler_metadata"] is None  # and schedules, in the call
    assert given.get("window_size_left", -1) == given.get("window_size_right", -1) == -1


def test_fa3_takes_fp8_and_gives_bf16(recorded: list[dict[str, Any]]) -> None:
    case = next(case for case in CONTRACT if case.name == "wide")
    drawn = Problem(backends.open("torch", "cpu"), case, "fp8_e4m3", seed=0)
    call = drawn.call(ROWS["torch.fa3_package"])
    assert call().dtype == torch.bfloat16
    verdict = drawn.judge(call)
    assert verdict.passed, verdict.reason
    assert 0 < (verdict.error or 0) < 0.01  # weights that the stand-in keeps in fp32
    assert 0.02 < verdict.bound < 0.12  # those that the loop rounds to three bits


def test_a_build_for_packed_sequences_alone_serves_equal_lengths(
    recorded: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fa3_library._call

    def packed_only(name: str, **given: Any) -> Any:
        if given.get("cu_seqlens_q") is None:
            raise UnsupportedError("This flash attention build only supports varlen (for ...).")
        return whole(name, **given)

    monkeypatch.setattr(fa3_library, "_call", packed_only)
    for case in some("unequal", "chunk", "verify"):
        drawn = Problem(backends.open("torch", "cpu"), case, "bf16", seed=0)
        verdict = drawn.judge(drawn.call(ROWS["torch.fa3_package"]))
        assert verdict.passed, verdict.reason
        assert recorded[-1]["q"].ndim == 3
        assert recorded[-1]["cu_seqlens_k"].tolist()[-1] == case.batch * case.cache_len
    q = torch.zeros(1, 4, 2, 16, dtype=torch.bfloat16)
    with pytest.raises(
        UnsupportedError, match="only supports varlen"
    ):  # of pages: said, not mended
        fa3_library.forward(q, q, q, scale=1.0, causal=True, page_table=None, seqused_k=None)


def test_offsets_that_are_kept_are_there_for_every_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa3_library, "_kept", {})
    waits: list[str] = []
    capturing = [True]
    stream = types.SimpleNamespace(synchronize=lambda: waits.append("made"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    q: Any = types.SimpleNamespace(device=torch.device("cpu"), is_cuda=True)
    assert fa3_library._offsets(q, 2, 5).tolist() == [0, 5, 10]
    assert not fa3_library._kept  # a graph's own
    assert not waits  # which a capture forbids
    capturing[0] = False
    kept = fa3_library._offsets(q, 2, 5)
    assert waits == ["made"]
    assert fa3_library._offsets(q, 2, 5) is kept
    assert waits == ["made"]


def test_fa3_refuses_in_its_own_first_line(recorded: list[dict[str, Any]]) -> None:
    q = torch.zeros(1, 4, 2, 12, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedError, match=r"^head_size should be a multiple of 8$"):
        ROWS["torch.fa3_package"].load()(q, q, q, causal=True)
    with pytest.raises(UnsupportedError, match="has no block_size"):
        fa3_library.forward(q, q, q, scale=1.0, causal=True, block_size=16)
    with pytest.raises(UnsupportedError, match="no operator get_scheduler_metadata"):
        fa3_library.scheduler_metadata(batch_size=1)


def plainly(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """An installed package of this name that holds these."""
    module = types.ModuleType(name)
    for key, function in functions.items():
        setattr(module, key, function)
    monkeypatch.setitem(sys.modules, name.partition(".")[0], types.ModuleType(name))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(arguments, "check_served", lambda *given, **more: None)


@pytest.mark.parametrize(
    "case", some("unequal", "verify", "varlen_masked", "paged_verify"), ids=lambda case: case.name
)
def test_fa4_gets_each_layout_s_arguments(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    from zenrepro.ops.attention import torch_naive

    def dense(q: Any, k: Any, v: Any, *, softmax_scale: float, causal: bool) -> Any:
        return torch_naive.attention(q, k, v, scale=softmax_scale, causal=causal), None

    def other(q: Any, k: Any, v: Any, *, softmax_scale: float, causal: bool, **more: Any) -> Any:
        given = {"scale": softmax_scale, "causal": causal}
        if "page_table" in more:
            table, lengths = more.pop("page_table"), more.pop("seqused_k")
            given |= {"block_table": table, "cache_seqlens": lengths}
            assert not more
            return torch_naive.attention_paged(q, k, v, **given)
        return torch_naive.attention_varlen(q, k, v, **given, **more)

    plainly(monkeypatch, "flash_attn.cute", flash_attn_func=dense, flash_attn_varlen_func=other)
    drawn = Problem(backends.open("torch", "cpu"), case, "bf16", seed=0)
    verdict = drawn.judge(drawn.call(ROWS["torch.fa4"]))
    assert verdict.passed, verdict.reason


def test_fa4_refuses_by_an_assertion(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **more: Any) -> Any:
        raise AssertionError

    plainly(monkeypatch, "flash_attn.cute", flash_attn_func=refuse)
    q = torch.zeros(1, 4, 2, 64, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedError, match="AssertionError without a word"):
        ROWS["torch.fa4"].load()(q, q, q, causal=True)


class Ragged:
    """FlashInfer's wrapper for sequences one after the other, by the plain loop."""

    def __init__(self, workspace: Any) -> None:
        assert workspace.dtype == torch.uint8

    def plan(self, starts: Any, begins: Any, heads: int, kv_heads: int, wide: int, **more: Any):
        assert more["q_data_type"] == more["kv_data_type"] == torch.bfloat16
        self.sizes = (heads, kv_heads, wide, more["head_dim_vo"])
        self.given = {
            "cu_seqlens_q": starts, "cu_seqlens_k": begins, "causal": more["causal"],
            "scale": more["sm_scale"], "max_seqlen_q": 10**6, "max_seqlen_k": 10**6,
        }  # fmt: skip

    def run(self, q: Any, k: Any, v: Any) -> Any:
        from zenrepro.ops.attention import torch_naive

        assert (q.shape[1], k.shape[1], q.shape[2], v.shape[2]) == self.sizes
        return torch_naive.attention_varlen(q, k, v, **self.given)


class Paged(Ragged):
    """FlashInfer's wrapper for pages: all sequences' pages in one row."""

    def plan(  # type: ignore[override]
        self, starts: Any, firsts: Any, pages: Any, last: Any, heads: int, kv_heads: int,
        wide: int, size: int, **more: Any,
    ):  # fmt: skip
        self.firsts, self.pages = firsts.tolist(), pages
        assert len(pages) == self.firsts[-1]
        filled = firsts.diff() * size - size + last
        self.lengths = [
            int(n) if many else 0 for n, many in zip(filled, firsts.diff(), strict=True)
        ]
        begins = torch.tensor([0, *self.lengths]).cumsum(0).int()
        super().plan(starts, begins, heads, kv_heads, wide, **more)

    def run(self, q: Any, caches: Any) -> Any:  # type: ignore[override]
        parts: list[list[Any]] = [[], []]
        for b, length in enumerate(self.lengths):
            pages = self.pages[self.firsts[b] : self.firsts[b + 1]].long()
            for part, cache in zip(parts, caches, strict=True):
                part.append(cache[pages].flatten(0, 1)[:length])
        return super().run(q, *(torch.cat(part) for part in parts))


@pytest.mark.parametrize(
    "case",
    some("unequal", "chunk", "varlen_masked", "paged_16", "paged_verify"),
    ids=lambda case: case.name,
)
def test_flashinfer_is_planned_with_each_layout(
    monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    from zenrepro.ops.attention import torch_flashinfer

    plainly(
        monkeypatch, "flashinfer", BatchPrefillWithRaggedKVCacheWrapper=Ragged,
        BatchPrefillWithPagedKVCacheWrapper=Paged,
    )  # fmt: skip
    torch_flashinfer._plan_dense.cache_clear()
    drawn = Problem(backends.open("torch", "cpu"), case, "bf16", seed=0)
    verdict = drawn.judge(drawn.call(ROWS["torch.flashinfer"]))
    torch_flashinfer._plan_dense.cache_clear()
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    "case", some("full", "chunk", "verify", "odd", "decode_one_key"), ids=lambda case: case.name
)
def test_flex_sees_what_the_mask_says(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    from zenrepro.ops.attention import torch_flex

    monkeypatch.setattr(torch_flex, "_compiled", lambda: flex_attention)  # not compiled: slow
    drawn = Problem(backends.open("torch", "cpu"), case, "fp32", seed=0)
    verdict = drawn.judge(drawn.call(ROWS["torch.flex"]))
    assert verdict.passed, verdict.reason


def test_what_flex_cannot_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    from zenrepro.ops.attention import torch_flex

    def compiler(error: Exception) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            raise error

        return lambda: call

    q = torch.zeros(1, 3, 2, 16)
    failed = InternalTorchDynamoError("LoweringException: No choices to select.\n  target: flex")
    monkeypatch.setattr(torch_flex, "_compiled", compiler(failed))
    with pytest.raises(UnsupportedError, match=r"^LoweringException: No choices to select\.$"):
        torch_flex.attention(q, q, q, causal=False)
    memory = InternalTorchDynamoError("CUDA out of memory")
    monkeypatch.setattr(torch_flex, "_compiled", compiler(memory))
    with pytest.raises(InternalTorchDynamoError):
        torch_flex.attention(q, q, q, causal=False)


def test_flex_never_goes_on_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past torch's limit on shapes a compiled function runs as it is, at another speed."""
    from zenrepro.ops.attention import torch_flex

    seen = []
    whole = torch.compile(lambda q, *given, **more: q + 1, backend="eager", dynamic=False,
                          fullgraph=True)  # fmt: skip
    monkeypatch.setattr(torch_flex, "_compiled", lambda: whole)

    def lengths() -> None:
        for length in range(1, 20):
            q = torch.zeros(1, length, 2, 16)
            seen.append(torch_flex.attention(q, q, q, causal=False).shape[1])

    lengths()
    assert seen == list(range(1, 20))
    monkeypatch.setattr(torch_flex, "SHAPES", 4)
    torch._dynamo.reset()
    with pytest.raises(UnsupportedError, match="limit"):
        lengths()


def latent(lengths: list[int], heads: int, queries: int, pages: int) -> tuple[Any, Any, Any]:
    """q, a latent cache and its indices, drawn."""
    rng = np.random.default_rng(0)
    q = torch.from_numpy(rng.standard_normal((len(lengths), queries, heads, 576)))
    cache = torch.from_numpy(rng.standard_normal((len(lengths) * pages + 1, 64, 576)))
    table = rng.permutation(len(lengths) * pages).reshape(len(lengths), pages) + 1
    indices = {"block_table": table.astype(np.int32), "cache_seqlens": np.int32(lengths)}
    return q, cache, {name: torch.from_numpy(array) for name, array in indices.items()}


def absorbed(q: Any, cache: Any, indices: dict[str, Any]) -> tuple[np.ndarray, float]:
    """What latent decode gives for fp64 inputs, and the bound in bf16."""
    from zenrepro.ops.mla import reference

    arrays = [x.float().numpy() for x in (q, cache)]
    host = {name: array.numpy() for name, array in indices.items()}
    wanted = reference.decode(*arrays, **host)
    plain = reference.same_precision_decode(*arrays, **host, dtype="bf16")
    return wanted, bound("bf16", relative_error(plain, wanted))


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors that say they are on CUDA."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def test_fa3_decodes_latent_rows_as_two_products(
    recorded: list[dict[str, Any]], anywhere: None
) -> None:
    from zenrepro.ops.mla import torch_fa3_package

    q, cache, indices = latent([70, 2], heads=3, queries=2, pages=2)
    q, cache = q.bfloat16(), cache.bfloat16()
    out = torch_fa3_package.decode(q, cache, **indices)
    wanted, limit = absorbed(q, cache, indices)
    assert judge(out.float().numpy(), wanted, limit).passed
    given = recorded[0]
    assert (given["k"].shape[-1], given["v"].shape[-1]) == (64, 512)
    assert given["k"].data_ptr() != given["v"].data_ptr()  # parts of one cache, no copies
    assert given["k"].stride() == given["v"].stride()
    eight = torch.zeros(5, 64, 656, dtype=torch.uint8)
    with pytest.raises(UnsupportedError, match="no FP8"):
        torch_fa3_package.decode(q, eight, **indices)


DENSE = """dense_decode_fwd(Tensor q, Tensor cache, int value_dim, Tensor lengths, Tensor table,
float scale, bool causal, Tensor? plan, Tensor? splits, Tensor? out)
-> (Tensor, Tensor, Tensor, Tensor)"""
SPARSE = """sparse_decode_fwd(Tensor q, Tensor cache, Tensor rows, Tensor? topk_length,
Tensor? sink, Tensor? plan, Tensor? splits, Tensor? extra, Tensor? extra_rows,
Tensor? extra_length, int value_dim, float scale, Tensor? out)
-> (Tensor, Tensor, Tensor, Tensor)"""


def dense_flash_mla(q: Any, cache: Any, dv: int, lengths: Any, table: Any, *more: Any) -> Any:
    from zenrepro.ops.mla import torch_absorbed

    scale, causal, plan, splits, out = more
    assert (dv, causal, plan, splits, out) == (512, True, None, None, None)
    assert cache.dim() == 4
    assert cache.shape[2] == 1  # one head of keys
    found = torch_absorbed.decode(
        q, cache[:, :, 0], block_table=table, cache_seqlens=lengths, scale=scale
    )
    return found, torch.empty(0), torch.empty(0), torch.empty(0)


def sparse_flash_mla(q: Any, cache: Any, rows: Any, *more: Any) -> Any:
    """Every query over the rows that it is told, from a cache of 656 bytes a row."""
    from zenrepro.ops.mla import torch_cache

    dv, scale = more[7:9]
    assert more[:7] == (None,) * 7
    assert (dv, more[9]) == (512, None)
    assert rows.dtype == torch.int32
    assert rows.shape[-1] % 64 == 0
    table = torch_cache.dequantise(cache[:, :, 0], q.dtype).flatten(0, 1)
    out = q.new_zeros(*q.shape[:3], dv)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            kept = rows[b, t][rows[b, t] >= 0].long()
            if len(kept):
                k = table[kept].float()
                weights = (q[b, t].float() @ k.T * scale).softmax(-1)
                out[b, t] = (weights @ k[:, :dv]).to(q.dtype)
    return out, torch.empty(0), torch.empty(0), torch.empty(0)


@pytest.fixture
def flash_mla(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    from zenrepro.ops.mla import torch_flash_mla

    library = torch.library.Library("_flashmla_C", "DEF")
    for schema, function in ((DENSE, dense_flash_mla), (SPARSE, sparse_flash_mla)):
        library.define(" ".join(schema.split()))
        library.impl(schema.partition("(")[0], function, "CPU")
    monkeypatch.setattr(torch_flash_mla, "_load", lambda: None)
    caches = (torch_flash_mla._dense, torch_flash_mla._sparse)
    for cached in caches:
        cached.cache_clear()
    yield torch_flash_mla.decode
    for cached in caches:
        cached.cache_clear()
    library._destroy()


def test_flash_mla_gets_its_arguments_in_order(flash_mla: Callable[..., Any]) -> None:
    q, cache, indices = latent([70, 2, 64], heads=3, queries=2, pages=2)
    q, cache = q.bfloat16(), cache.bfloat16()
    wanted, limit = absorbed(q, cache, indices)
    out = flash_mla(q, cache, **indices)
    assert judge(out.float().numpy(), wanted, limit).passed


def test_flash_mla_reads_an_fp8_cache_by_the_numbers_of_all_its_rows(
    flash_mla: Callable[..., Any],
) -> None:
    from zenrepro.ops.mla import cache as host_cache
    from zenrepro.ops.mla import reference

    q, cache, indices = latent([70, 2, 0], heads=2, queries=3, pages=2)
    eight = host_cache.quantise(cache.float().numpy())
    q = q.bfloat16()
    out = flash_mla(q, torch.from_numpy(eight), **indices)
    host = {name: array.numpy() for name, array in indices.items()}
    wanted = reference.decode(q.float().numpy(), eight, **host)
    assert judge(out.float().numpy(), wanted, 2.0**-7).passed
    assert (out[2] == 0).all()  # an empty sequence
    assert (out[1, 0] == 0).all()  # more queries than rows: the first sees none


def test_a_library_named_by_the_variable_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from zenrepro.ops.mla import torch_flash_mla

    for module in (fa3_library, torch_flash_mla):
        monkeypatch.setenv(module.VARIABLE, str(tmp_path / "none.so"))
        module._load.cache_clear()
        with pytest.raises(UnsupportedError, match=f"{module.VARIABLE} names .*not a file"):
            module._load()
        monkeypatch.delenv(module.VARIABLE)
        module._load.cache_clear()
        with pytest.raises(UnsupportedError, match=r"^no Flash"):
            module._load()


@pytest.mark.parametrize("case", some("unequal", "latent"), ids=lambda case: case.name)
def test_cudnn_gets_values_narrower_than_keys(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    pytest.importorskip("jax")
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    from zenrepro.ops.attention import jax_cudnn, jax_naive

    def stand_in(q: Any, k: Any, v: Any, bias: Any, mask: Any, *, scale: float, mask_type: Any):
        assert bias is None
        assert mask is None
        causal = {cudnn.MaskType.CAUSAL: True, cudnn.MaskType.NO_MASK: False}[mask_type]
        return jax_naive.attention(q, k, v, causal=causal, scale=scale)

    monkeypatch.setattr(cudnn, "dot_product_attention", stand_in)
    drawn = Problem(backends.open("jax", "cpu"), case, "bf16", seed=0)
    verdict = drawn.judge(lambda: jax_cudnn.attention(*drawn.arrays, causal=case.causal))
    assert verdict.passed, verdict.reason


def test_the_libraries_inside_an_unpacked_wheel_are_found_and_vllm_is_not_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from zenrepro.ops.entry import installed
    from zenrepro.ops.mla import torch_flash_mla

    package = tmp_path / "vllm"
    (package / "vllm_flash_attn").mkdir(parents=True)
    for file in ("__init__.py", "vllm_flash_attn/__init__.py"):
        (package / file).write_text("raise ImportError('imported')")
    libraries = [
        package / "vllm_flash_attn" / "_vllm_fa3_C.abi3.so", package / "_flashmla_C.abi3.so",
    ]  # fmt: skip
    for library in libraries:
        library.write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", lambda path: loaded.append(str(path)))
    for module in (fa3_library, torch_flash_mla):
        monkeypatch.delenv(module.VARIABLE, raising=False)
        assert any(installed(place) for place in module.PLACES)
        module._load.cache_clear()
        module._load()
        module._load.cache_clear()
    assert loaded == [str(library) for library in libraries]
    named = tmp_path / "mine.so"
    named.write_bytes(b"")
    monkeypatch.setenv(fa3_library.VARIABLE, str(named))  # what is named goes first
    assert fa3_library._load() == fa3_library.VARIABLE
    fa3_library._load.cache_clear()
    assert loaded[-1] == str(named)
