"""How much of ``small`` scale a backend takes on a kind of device: the one place that decides it.

Where a backend multiplies matrices far slower than others do on the same device, its cases have
fewer heads. Heads are computed apart from each other, so lengths, layouts, masks, formats and the
number of queries stay what they are: every figure keeps its points, and implementations of the
backend are still compared on the same case. A record's conditions tell the heads.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from zenrepro.experiments.point import Parameters

CaseT = TypeVar("CaseT", bound=msgspec.Struct)

# By what the heads are divided, by backend and kind of device. MLX on a CPU: fp32 products at
# 5 GFLOP/s on two cores of an EPYC, where torch reaches 150 and JAX 180 (experiment ``hardware``).
FEWER_HEADS: dict[tuple[str, str], int] = {("mlx", "cpu"): 4}


def fewer_heads(case: CaseT, parameters: Parameters) -> CaseT:
    """The case with as many heads as its backend takes there; as many to a key as before.

    The case itself where the backend keeps up, at the other scales, and where the parameters say
    how many heads there are.
    """
    kind = (parameters.device or "").partition(":")[0]
    by = FEWER_HEADS.get((parameters.backend, kind), 1)
    said = any(getattr(parameters, name, None) is not None for name in ("heads", "kv_heads"))
    if by == 1 or said or (parameters.scale or "small") != "small":
        return case
    has: Any = case
    kept = getattr(case, "kv_heads", has.heads)
    fewer = max(1, kept // by)
    change = {"heads": has.heads // kept * fewer}
    if hasattr(case, "kv_heads"):
        change["kv_heads"] = fewer
    return msgspec.structs.replace(case, **change)
