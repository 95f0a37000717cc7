"""Bad input: a ValueError that names the argument, before anything is launched."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro.ops.attention import TABLE, arguments
from zenrepro.ops.entry import Entry, UnsupportedError

torch = pytest.importorskip("torch")

VARLEN = {
    "q": (9, 4, 8), "k": (12, 2, 8), "v": (12, 2, 6), "cu_seqlens_q": [0, 4, 4, 9],
    "cu_seqlens_k": [0, 5, 5, 12], "max_seqlen_q": 5, "max_seqlen_k": 7, "causal": True,
}  # fmt: skip
PAGED = {
    "q": (3, 2, 4, 8), "k_cache": (6, 4, 2, 8), "v_cache": (6, 4, 2, 6),
    "block_table": [[5, 1], [0, 9], [-1, -1]], "cache_seqlens": [7, 3, 0], "causal": True,
}  # fmt: skip
DENSE = {"q": (2, 3, 4, 8), "k": (2, 5, 2, 8), "v": (2, 5, 2, 6), "causal": True}
SERVED = [
    (entry, layout)
    for entry in TABLE
    for layout in entry.needs.layouts
    if "cpu" in entry.needs.dtypes
]
IDS = [f"{entry.name}-{layout}" for entry, layout in SERVED]


def array(backend: str, value: Any, dtype: str | None = None) -> Any:
    """Zeros of a shape, or whole numbers; dtype by its name."""
    if isinstance(value, tuple):
        host = np.zeros(value, dtype or "float32")
    else:
        host = np.array(value, dtype or "int32")
    if backend == "torch":
        return torch.from_numpy(host)
    if backend == "jax":
        import jax.numpy as jnp

        return jnp.asarray(host)
    if backend == "mlx":
        import mlx.core as mx

        return mx.array(host)
    return host


def arrays(backend: str, given_: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments as the backend's arrays; what is neither shape nor numbers stays."""
    return {
        name: array(backend, value) if isinstance(value, tuple | list) else value
        for name, value in given_.items()
    }


# What is changed, and what the message must begin with and hold.
BAD_VARLEN: list[tuple[dict[str, Any], str]] = [
    ({"q": (9, 4)}, "q: wants 3 dimensions [Tq, H, D], got (9, 4)"),
    ({"k": (12, 2, 10)}, "k: wants D = 8 as q has, got (12, 2, 10)"),
    ({"v": (11, 2, 6)}, "v: wants Tk = 12, Hkv = 2 as k has, got (11, 2, 6)"),
    ({"v": (12, 1, 6)}, "v: wants Tk = 12, Hkv = 2 as k has, got (12, 1, 6)"),
    ({"k": (12, 3, 8), "v": (12, 3, 6)}, "k: wants a number of heads that divides q's 4, got 3"),
    ({"q": (9, 0, 8)}, "q: wants no empty dimension but rows, got (9, 0, 8)"),
    ({"cu_seqlens_q": [0, 4, 3, 9]}, "cu_seqlens_q: wants offsets that do not decrease, got 4 th"),
    ({"cu_seqlens_k": [0, 6, 5, 12]}, "cu_seqlens_k: wants offsets that do not decrease, got 6 t"),
    ({"cu_seqlens_q": [0, 4, 4, 10]}, "cu_seqlens_q: wants the number of rows, 9, as its last off"),
    ({"cu_seqlens_q": [0, 4, 4, 8]}, "cu_seqlens_q: wants the number of rows, 9, as its last offs"),
    ({"cu_seqlens_k": [0, 5, 5, 13]}, "cu_seqlens_k: wants at most the number of rows, 12, as its"),
    ({"cu_seqlens_q": [1, 4, 4, 9]}, "cu_seqlens_q: wants 0 as its first offset, got 1"),
    ({"cu_seqlens_k": [0, 12]}, "cu_seqlens_k: wants 4 offsets as cu_seqlens_q has, got 2"),
    ({"cu_seqlens_q": [9]}, "cu_seqlens_q: wants [B + 1] offsets, got (1,)"),
    ({"cu_seqlens_q": [[0, 9]]}, "cu_seqlens_q: wants [B + 1], got (1, 2)"),
    ({"cu_seqlens_q": None}, "cu_seqlens_q: wants an int32 array [B + 1], got NoneType"),
    ({"max_seqlen_q": 4}, "max_seqlen_q: wants at least the longest sequence, 5 (sequence 2), go"),
    ({"max_seqlen_k": 6}, "max_seqlen_k: wants at least the longest sequence, 7 (sequence 2), go"),
    ({"max_seqlen_k": 7.0}, "max_seqlen_k: wants a whole number of at least 0, got 7.0"),
    ({"max_seqlen_q": -1}, "max_seqlen_q: wants a whole number of at least 0, got -1"),
    ({"causal": None}, "causal: wants True or False, got None"),
    ({"scale": 0.0}, "scale: wants a positive finite number or None, got 0.0"),
    ({"scale": "0.1"}, "scale: wants a positive finite number or None, got '0.1'"),
    ({"scale": True}, "scale: wants a positive finite number or None, got True"),
    ({"scale": 10**400}, "scale: wants a positive finite number or None, got 1000"),
]
BAD_PAGED: list[tuple[dict[str, Any], str]] = [
    ({"q": (3, 4, 8)}, "q: wants 4 dimensions [B, T, H, D], got (3, 4, 8)"),
    ({"k_cache": (6, 4, 2, 9)}, "k_cache: wants D = 8 as q has, got (6, 4, 2, 9)"),
    ({"v_cache": (6, 5, 2, 6)}, "v_cache: wants P = 6, page = 4, Hkv = 2 as k_cache has, got (6,"),
    ({"k_cache": (6, 0, 2, 8)}, "k_cache: wants no empty dimension, got (6, 0, 2, 8)"),
    ({"q": (3, 2, 3, 8)}, "k_cache: wants a number of heads that divides q's 3, got 2"),
    ({"block_table": [[6, 1], [0, 0], [0, 0]]}, "block_table: wants page indices of 0 to 5, got 6"),
    ({"block_table": [[5, -1], [0, 0], [0, 0]]}, "block_table: wants page indices of 0 to 5, got "),
    ({"block_table": [[5, 1], [0, 9]]}, "block_table: wants B = 3 rows of at least one page, got"),
    ({"block_table": [5, 1, 0]}, "block_table: wants [B, pages], got (3,)"),
    ({"cache_seqlens": [9, 3, 0]}, "cache_seqlens: wants lengths of 0 to 8 (pages of 4), got 9 in"),
    ({"cache_seqlens": [7, -2, 0]}, "cache_seqlens: wants lengths of 0 to 8 (pages of 4), got -2"),
    ({"cache_seqlens": [7, 3]}, "cache_seqlens: wants B = 3, got (2,)"),
    ({"cache_seqlens": [7, 5, 0]}, "block_table: wants page indices of 0 to 5, got 9 at [1, 1]"),
    ({"causal": "yes"}, "causal: wants True or False, got 'yes'"),
    ({"scale": float("inf")}, "scale: wants a positive finite number or None, got inf"),
]
GOOD = {"dense": DENSE, "varlen": VARLEN, "paged": PAGED}
BAD = {"varlen": BAD_VARLEN, "paged": BAD_PAGED}


def positional(layout: str, given_: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    names = ("q", "k_cache", "v_cache") if layout == "paged" else ("q", "k", "v")
    rest = {name: value for name, value in given_.items() if name not in names}
    return [given_[name] for name in names], rest


@pytest.mark.parametrize(("entry", "layout"), SERVED, ids=IDS)
def test_each_implementation_names_what_is_wrong(entry: Entry, layout: str) -> None:
    pytest.importorskip({"mlx": "mlx.core"}.get(entry.backend, entry.backend))
    function = entry.load(layout)
    for change, message in BAD.get(layout, []):
        tensors, rest = positional(layout, arrays(entry.backend, {**GOOD[layout], **change}))
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            function(*tensors, **rest)


@pytest.mark.parametrize(("entry", "layout"), SERVED, ids=IDS)
def test_wrong_dtypes_are_named(entry: Entry, layout: str) -> None:
    pytest.importorskip({"mlx": "mlx.core"}.get(entry.backend, entry.backend))
    function = entry.load(layout)
    good = arrays(entry.backend, GOOD[layout])
    for name, value in GOOD[layout].items():
        if not isinstance(value, tuple | list):
            continue
        floating = isinstance(value, tuple)
        other = array(entry.backend, value, "float16" if floating else "int16")
        tensors, rest = positional(layout, {**good, name: other})
        wanted = "q's dtype .*float.*, got .*float" if floating else "int32, got .*int16"
        named = "k_?[a-z]*" if name == "q" else name  # q's own is as good as theirs
        with pytest.raises(ValueError, match=f"^{named}: wants {wanted}"):
            function(*tensors, **rest)


EVERY = [(entry, layout) for entry in TABLE for layout in entry.needs.layouts]


@pytest.mark.parametrize(("entry", "layout"), EVERY, ids=[f"{e.name}-{la}" for e, la in EVERY])
def test_arrays_of_another_framework_are_named(entry: Entry, layout: str) -> None:
    """One of them or all, on every row, the ones for other devices too."""
    pytest.importorskip({"mlx": "mlx.core"}.get(entry.backend, entry.backend))
    function = entry.load(layout)
    good = GOOD[layout]
    listed = [name for name, value in good.items() if isinstance(value, tuple | list)]
    wanted = {"torch": "a torch tensor", "jax": "a jax array", "mlx": "an mlx array"}
    for foreign in ("numpy", "jax" if entry.backend == "torch" else "torch"):
        if foreign != "numpy" and importlib.util.find_spec(foreign) is None:
            continue
        for changed in (*([name] for name in listed), listed):
            mixed = {
                name: array(
                    foreign if name in changed else entry.backend, value, form(entry, value)
                )
                if name in listed
                else value
                for name, value in good.items()
            }
            tensors, rest = positional(layout, mixed)
            with pytest.raises(ValueError, match=r"^\w+: wants ") as caught:
                function(*tensors, **rest)
            name, _, told = str(caught.value).partition(": wants ")
            assert "\n" not in told
            if len(changed) > 1 or "dtype" not in told:  # k of another framework than q, say
                assert name == changed[0]
                assert told.startswith(f"{wanted[entry.backend]}, got {foreign}")


def form(entry: Entry, value: Any) -> str | None:
    """A dtype that the row takes on any of its devices; of whole numbers their own."""
    if isinstance(value, list):
        return None
    return "float32" if any("fp32" in forms for forms in entry.needs.dtypes.values()) else "float16"


def on_cpu(backend: str) -> bool:
    """Whether the backend is here, and puts arrays on a CPU unless told otherwise."""
    if backend != "jax" or importlib.util.find_spec("jax") is None:
        return False
    import jax

    return bool(jax.default_backend() == "cpu")


def test_rows_for_an_accelerator_refuse_a_cpus_arrays() -> None:
    for entry, layout in EVERY:
        if "cpu" in entry.needs.dtypes or entry.name == "torch.flex":  # flex's loops run on a CPU
            continue
        if entry.backend != "torch" and not on_cpu(entry.backend):
            continue
        value = {"k": (2, 5, 4, 16), "v": (2, 5, 4, 16), "q": (2, 3, 4, 16)}
        given_ = GOOD[layout] | (value if layout == "dense" else {})
        tensors, rest = positional(layout, {
            name: array(entry.backend, value, form(entry, value))
            if isinstance(value, tuple | list) else value
            for name, value in given_.items()
        })  # fmt: skip
        # Libraries that have code for several devices say themselves what they lack.
        by_library = entry.name.startswith(("torch.sdpa", "jax.cudnn"))
        refused = UnsupportedError if by_library else ValueError
        said = "." if by_library else r"^q: wants (a (cuda|CUDA) tensor|an array on an accel)"
        with pytest.raises(refused, match=said) as caught:
            entry.load(layout)(*tensors, **rest)
        assert "\n" not in str(caught.value)


CHECKS: dict[str, Callable[..., Any]] = {
    "dense": arguments.check, "varlen": arguments.check_varlen, "paged": arguments.check_paged,
}  # fmt: skip


@pytest.mark.parametrize("layout", CHECKS)
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "mlx"])
def test_good_arguments_give_sizes(backend: str, layout: str) -> None:
    pytest.importorskip({"mlx": "mlx.core"}.get(backend, backend))
    shape = CHECKS[layout](**arrays(backend, GOOD[layout]))
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.value_dim) == (4, 2, 8, 6)
    assert shape.batch == {"dense": 2}.get(layout, 3)
    assert shape.scale == pytest.approx(8**-0.5)


@pytest.mark.parametrize("layout", CHECKS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_shape_is_taken_or_refused_by_name(layout: str, data: st.DataObject) -> None:
    """Sizes of any kind: either every size agrees, or a ValueError names an argument."""
    sizes = st.lists(st.integers(0, 5), min_size=0, max_size=5).map(tuple)
    given_ = dict(GOOD[layout])
    tensors = [name for name, value in given_.items() if isinstance(value, tuple)]
    for name in data.draw(st.lists(st.sampled_from(tensors), unique=True, min_size=1)):
        given_[name] = data.draw(sizes)
    numbers = [name for name, value in given_.items() if isinstance(value, list)]
    for name in data.draw(st.lists(st.sampled_from(numbers), unique=True)) if numbers else []:
        given_[name] = data.draw(st.lists(st.integers(-3, 15), max_size=5))
    try:
        shape = CHECKS[layout](**arrays("numpy", given_))
    except ValueError as error:
        name, _, rest = str(error).partition(": wants ")
        assert name in given_ or name == "scale"
        assert "got" in rest
        assert "\n" not in rest
        return
    q = given_["q"]
    assert shape.heads % shape.kv_heads == 0
    assert q[-1] == shape.head_dim > 0
    if layout == "paged":
        assert given_["v_cache"] == (shape.pages, shape.page_size, shape.kv_heads, shape.value_dim)
        assert max(given_["cache_seqlens"]) <= shape.table_width * shape.page_size
    elif layout == "varlen":
        assert given_["cu_seqlens_q"][-1] == shape.queries == q[0]
        assert given_["cu_seqlens_k"][-1] <= shape.keys
    else:
        assert shape.query_len <= shape.cache_len


def test_devices_are_compared() -> None:
    good = arrays("torch", PAGED)
    for name in ("k_cache", "v_cache", "block_table", "cache_seqlens"):
        moved = {**good, name: good[name].to("meta")}
        with pytest.raises(ValueError, match=f"^{name}: wants q's device cpu, got meta"):
            arguments.check_paged(**moved)


def test_values_are_not_read_while_they_have_none() -> None:
    jax = pytest.importorskip("jax")
    bad = arrays("jax", {**PAGED, "cache_seqlens": [99, 0, 0]})
    with pytest.raises(ValueError, match=r"^cache_seqlens: wants lengths"):
        arguments.check_paged(**bad)
    seen = []

    def traced(lengths: Any) -> Any:
        seen.append(arguments.check_paged(**{**bad, "cache_seqlens": lengths}))
        return lengths

    jax.jit(traced)(bad["cache_seqlens"])
    assert seen[0].page_size == 4


def test_values_are_not_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = arrays("torch", {**PAGED, "cache_seqlens": [99, 0, 0]})
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda c=capturing: c)
        if capturing:
            assert arguments.check_paged(**bad).batch == 3
        else:
            with pytest.raises(ValueError, match=r"^cache_seqlens: wants lengths"):
                arguments.check_paged(**bad)


def test_what_an_implementation_does_not_serve() -> None:
    q = torch.zeros(2, 3, 4, 8)
    shape = arguments.check(q, q, q, causal=True)
    arguments.check_served(shape, q, device="cpu", formats=("fp32",), dims=((8, 8),))
    with pytest.raises(ValueError, match=r"^q: wants a cuda tensor, got one on cpu$"):
        arguments.check_served(shape, q, device="cuda")
    with pytest.raises(ValueError, match=r"^q: wants float16 or bfloat16, got torch.float32$"):
        arguments.check_served(shape, q, formats=("fp16", "bf16"))
    with pytest.raises(ValueError, match=r"^q: wants head_dim/value_dim 64/64 or 192/128, got 8/8"):
        arguments.check_served(shape, q, dims=((64, 64), (192, 128)))


def test_strides_that_16_byte_loads_do_not_take() -> None:
    good = torch.zeros(2, 3, 4, 8, dtype=torch.bfloat16)
    arguments.check_strides(q=good, k=good[:, :, :2], v=torch.zeros(2, 1, 5, 8)[:, :, ::2])
    with pytest.raises(ValueError, match=r"^v: wants its last dimension contiguous, got strides"):
        arguments.check_strides(q=good, v=good.transpose(2, 3))
    with pytest.raises(ValueError, match=r"^k: wants strides that are multiples of 16 bytes"):
        arguments.check_strides(k=torch.zeros(2, 3, 4, 12, dtype=torch.bfloat16)[..., :8])
    with pytest.raises(ValueError, match=r"^q: wants its first element at a multiple of 16 byte"):
        arguments.check_strides(q=torch.zeros(4 * 8 + 1, dtype=torch.bfloat16)[1:].view(4, 8))


def test_formats_that_are_asked_for() -> None:
    eight = torch.zeros(1, 2, 2, 16).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"^q: wants float16, bfloat16, float32 or float64, got"):
        arguments.check(eight, eight, eight, causal=True)
    assert arguments.check(eight, eight, eight, causal=True, formats=("fp8_e4m3",)).head_dim == 16
