"""Latent decode in jax on a GPU: gathered whole against a few pages at a time.

    python tests/device/time_mla_jax.py

A minute on an H200, compilation included. A line a shape and chunk; what is asked: from which chunk
on the gathered rows stay in the L2 (50 MB on an H100 or H200), and what the loop costs.
"""

from __future__ import annotations

import functools
import statistics
import sys

from zenrepro import backends
from zenrepro.ops.mla import CASES, jax_absorbed, jax_tiled
from zenrepro.ops.mla.prediction import predict
from zenrepro.ops.mla.problem import Problem
from zenrepro.ops.mla.sizes import SCALE

NAMES = ("full_128_16_4096", "full_64_64_4096", "full_8_16_32768", "full_128_16_4096_ragged")
CHUNKS_MB = (4, 8, 16, 32, 64)


def main() -> None:
    import jax

    try:
        backend = backends.open("jax", "gpu:0")
    except backends.Unavailable as reason:
        sys.exit(str(reason))
    for name in NAMES:
        case = next(case for case in CASES["full"] if case.name == name)
        problem = Problem(backend, case, "bf16", seed=0)
        moved = predict(case, "bf16", None, None).bytes
        ways = {"absorbed": (jax_absorbed.decode, 0)}
        ways |= {f"tiled, {size} MB": (jax_tiled.decode, size) for size in CHUNKS_MB}
        for label, (function, size) in ways.items():
            jax_tiled.CHUNK_BYTES = size * 2**20 or jax_tiled.CHUNK_BYTES
            # A function of its own, or jit would answer with what it compiled for another chunk.
            run = jax.jit(functools.partial(function, scale=SCALE))
            call = functools.partial(run, *problem.arrays, **problem.indices)
            verdict = problem.judge(call)
            if not verdict.passed:
                print(f"{name:28} {label:14} {verdict.reason}")
                continue
            seconds = statistics.median(
                backend.time(call, samples=9, warmup=2, cold=True, budget_s=1.0).seconds
            )
            print(
                f"{name:28} {label:14} {seconds * 1e6:9.1f} µs {moved / seconds / 1e12:6.2f} TB/s"
            )
        del problem
        backend.release()


main()
