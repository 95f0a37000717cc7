"""Compiles for a TPU v5e that is not there: a process of its own, since it loads the TPU's library.

Reads a JSON list of requests {"module", "function", "arrays": {name: [shape, dtype]}, "given": {},
"rows": [names]}, where ``rows`` are laid out row by row, and "updates": the name of one that is
donated and comes back in its layout. Prints a JSON list of {"arguments", "temporaries", "vmem"} in
bytes and the count of "kernels", or {"error"}.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
from typing import Any


def main() -> None:
    os.environ.update(
        JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_LOG_DIR="disabled",
    )  # fmt: skip
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.experimental.layout import Format, Layout
    from jax.sharding import SingleDeviceSharding

    described = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    place = SingleDeviceSharding(described.devices[0])
    answers: list[dict[str, Any]] = []
    for request in json.load(sys.stdin):
        function = getattr(importlib.import_module(request["module"]), request["function"])
        where = {
            name: Format(Layout(major_to_minor=tuple(range(len(shape)))), place)
            if name in request.get("rows", ())
            else place
            for name, (shape, _) in request["arrays"].items()
        }
        arrays = {
            name: jax.ShapeDtypeStruct(shape, getattr(jnp, dtype), sharding=where[name])
            for name, (shape, dtype) in request["arrays"].items()
        }
        kept: dict[str, Any] = {}
        if "updates" in request:
            kept = {
                "donate_argnames": request["updates"],
                "out_shardings": where[request["updates"]],
            }
        ready = functools.partial(function, **request["given"]) if request["given"] else function
        try:
            made = jax.jit(ready, **kept).lower(**arrays).compile()
        except Exception as error:  # noqa: BLE001  (handed to the test)
            answers.append({"error": f"{type(error).__name__}: {error}"})
            continue
        memory = made.memory_analysis()
        custom = [line for line in made.as_text().splitlines() if "tpu_custom_call" in line]
        used = [
            int(size)
            for line in custom
            for part in re.findall(r'"used_scoped_memory_configs":\[[^\]]*\]', line)
            for size in re.findall(r'"size":"(\d+)"', part)
        ]
        answers.append(
            {
                "arguments": memory.argument_size_in_bytes,
                "temporaries": memory.temp_size_in_bytes,
                "kernels": len(custom),
                "vmem": max(used, default=None),
            }
        )
    print(json.dumps(answers))


main()
