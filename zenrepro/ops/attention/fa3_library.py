"""An installed FlashAttention-3: where it is, and one call that all its builds understand.

Looked for in this order: the shared library that the variable ZENREPRO_FA3_LIBRARY names, the
package ``flash_attn_interface``, the library inside an installed (or just unpacked) ``vllm``. The
builds register the same operator with different argument lists, so arguments go by the names in
its schema.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.installed import refusals

if TYPE_CHECKING:
    import torch

VARIABLE = "ZENREPRO_FA3_LIBRARY"
# What makes a row available: ``Needs.one_of``.
PLACES = (f"${VARIABLE}", "flash_attn_interface", "vllm.vllm_flash_attn._vllm_fa3_C")
_NAMESPACES = ("flash_attn_3", "_vllm_fa3_C")
# Arguments without a default in some build, where they neither are given nor may be None.
_PLAIN: dict[str, Any] = {
    "window_size_left": -1, "window_size_right": -1, "attention_chunk": 0, "softcap": 0.0,
    "is_rotary_interleaved": True, "num_splits": 0, "sm_margin": 0, "cp_world_size": 1,
    "cp_rank": 0,
}  # fmt: skip
_PACKED_ONLY = "only supports varlen"  # vLLM's build, of dense batches
_kept: dict[tuple[Any, int, int], Any] = {}  # offsets by device, batch and length


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, causal: bool, **given: Any
) -> torch.Tensor:
    """The attention of FlashAttention-3; ``given`` are further arguments of its operator ``fwd``.

    Without ``scheduler_metadata`` the call makes its own where it needs any, and without
    ``num_splits`` it chooses. A batch of equal lengths goes to a build that only takes packed
    sequences as such. Raises UnsupportedError with the library's words when it refuses.
    """
    given = {"num_splits": 0, "softmax_scale": scale, "is_causal": causal, **given}
    equal_lengths = q.ndim == 4 and not {"page_table", "seqused_k", "cu_seqlens_k"} & set(given)
    try:
        result = _call("fwd", q=q, k=k, v=v, **given)
    except UnsupportedError as refusal:
        if not (equal_lengths and _PACKED_ONLY in str(refusal)):
            raise
        return _packed(q, k, v, given)
    out: torch.Tensor = result[0]
    return out


def _packed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, given: dict[str, Any]
) -> torch.Tensor:
    """The same batch as packed sequences."""
    batch, query_len = q.shape[:2]
    offsets = {
        "cu_seqlens_q": _offsets(q, batch, query_len),
        "cu_seqlens_k": _offsets(q, batch, k.shape[1]),
        "max_seqlen_q": query_len,
        "max_seqlen_k": k.shape[1],
    }
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out: torch.Tensor = _call("fwd", q=q, k=k, v=v, **offsets, **given)[0]
    return out.unflatten(0, (batch, query_len))


def _offsets(q: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Those of sequences of one length; kept, since they are not part of a caller's step."""
    import torch

    key = (q.device, batch, length)
    if key in _kept:
        return _kept[key]
    made = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * length
    # What is made during a capture lives as long as the graph does.
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        return made
    if q.is_cuda:  # the next call may be on another stream
        torch.cuda.current_stream(q.device).synchronize()
    _kept[key] = made
    return made


def scheduler_metadata(**given: Any) -> torch.Tensor:
    """What a caller may compute once for many calls with the same lengths; arguments as the
    operator ``get_scheduler_metadata`` names them."""
    out: torch.Tensor = _call("get_scheduler_metadata", **given)
    return out


def _call(name: str, **given: Any) -> Any:
    operator, required = _operator(name)
    unknown = set(given) - set(operator[1])
    if unknown:
        raise UnsupportedError(
            f"this build of FlashAttention-3 has no {', '.join(sorted(unknown))}"
        )
    with refusals(RuntimeError, NotImplementedError):
        return operator[0](**{**required, **given})


@functools.cache
def _operator(name: str) -> tuple[tuple[Any, tuple[str, ...]], dict[str, Any]]:
    """The operator and its arguments' names; values for those that have no default."""
    import torch

    _load()
    for namespace in _NAMESPACES:
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is None:
            continue
        operator = packet.default
        required: dict[str, Any] = {}
        for argument in operator._schema.arguments:
            if argument.has_default_value():
                continue
            if isinstance(argument.type, torch.OptionalType):
                required[argument.name] = None
            elif argument.name in _PLAIN:
                required[argument.name] = _PLAIN[argument.name]
        names = tuple(argument.name for argument in operator._schema.arguments)
        return (operator, names), required
    raise UnsupportedError(f"this build of FlashAttention-3 registers no operator {name}")


@functools.cache
def _load() -> str:
    """Load the library; where from, in words."""
    import torch

    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise UnsupportedError(f"{VARIABLE} names {named}, which is not a file")
        torch.ops.load_library(named)
        return VARIABLE
    if importlib.util.find_spec("flash_attn_interface") is not None:
        importlib.import_module("flash_attn_interface")
        return "flash_attn_interface"
    vllm = importlib.util.find_spec("vllm")  # found, not imported: it would bring all of vLLM
    for folder in (vllm.submodule_search_locations or []) if vllm is not None else []:
        library = Path(folder) / "vllm_flash_attn" / "_vllm_fa3_C.abi3.so"
        if library.is_file():
            torch.ops.load_library(str(library))
            return "vllm"
    raise UnsupportedError(f"no FlashAttention-3 in any of {', '.join(PLACES)}")
