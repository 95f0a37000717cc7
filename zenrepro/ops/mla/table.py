"""Every implementation of latent attention, one literal row each. Reading it imports no framework.

A row's module has ``decode``, ``prefill`` or both, as its ``phases`` tell; ``load`` picks. A row
that reads the FP8 cache says ``formats=("fp8_e4m3",)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from zenrepro.ops.entry import Entry, Needs, check_table
from zenrepro.records import Origin

TABLE: tuple[Entry, ...] = check_table(
    (
        Entry(
            name="torch.decompressed",
            backend="torch",
            algorithm="decompressed",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.torch_decompressed:prefill",
            needs=Needs(
                dtypes={"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")},
                phases=("prefill",),
            ),
            paper="DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), eq. 9-19",
        ),
        Entry(
            name="torch.absorbed",
            backend="torch",
            algorithm="absorbed",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.torch_absorbed:decode",
            needs=Needs(
                dtypes={"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")},
                formats=("fp8_e4m3",),
            ),
            paper="DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), section 2.1.2, absorption",
        ),
        Entry(
            name="torch.decompressed_fa2",
            backend="torch",
            algorithm="decompressed_fa2",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.torch_decompressed_fa2:prefill",
            compiled=False,
            sources=("kernels/triton/attention.py",),
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16")},
                compute_capability=(8, 0),
                phases=("prefill",),
                packages=("triton",),
            ),
            paper="Dao 2023, FlashAttention-2, behind DeepSeek-V2's eq. 10 and 11",
        ),
        Entry(
            name="torch.decompressed_fa3",
            backend="torch",
            algorithm="decompressed_fa3",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.torch_decompressed_fa3:prefill",
            compiled=False,
            sources=("kernels/cuda/attention_hopper.cu", "kernels/cuda/hopper.cuh"),
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16")},
                phases=("prefill",),
                architectures=((9, 0),),
                packages=("cuda.bindings",),
            ),
            paper="Shah et al. 2024, FlashAttention-3, behind DeepSeek-V2's eq. 10 and 11",
        ),
        Entry(
            name="torch.triton",
            backend="torch",
            algorithm="triton",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.torch_triton:decode",
            compiled=False,
            sources=(
                "kernels/triton/mla_decode.py",
                "kernels/triton/arithmetic.py",
                "kernels/triton/e4m3.py",
            ),
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16")},
                compute_capability=(8, 0),
                phases=("decode",),
                formats=("fp8_e4m3",),
                packages=("triton",),
            ),
            paper="Dao et al. 2023, Flash-Decoding, over DeepSeek-V2's absorbed latent",
        ),
        Entry(
            name="torch.hopper",
            backend="torch",
            algorithm="hopper",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.torch_hopper:decode",
            compiled=False,
            sources=(
                "kernels/cuda/mla_decode_hopper.cu",
                "kernels/cuda/mla_decode_hopper_fp8.cu",
                "kernels/cuda/mla_schedule.cuh",
                "kernels/cuda/hopper.cuh",
            ),
            needs=Needs(
                dtypes={"cuda": ("bf16",)},
                phases=("decode",),
                architectures=((9, 0),),
                formats=("fp8_e4m3",),
                packages=("cuda.bindings",),
            ),
            paper="Shah et al. 2024, FlashAttention-3, over DeepSeek-V2's absorbed latent",
        ),
        Entry(
            name="torch.fused",
            backend="torch",
            algorithm="fused",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.torch_fused:prefill",
            compiled=False,
            sources=("kernels/triton/mla_prefill.py", "kernels/triton/arithmetic.py"),
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16")},
                compute_capability=(8, 0),
                phases=("prefill",),
                packages=("triton",),
            ),
            paper="the report's projection inside the tile loop, of DeepSeek-V2's eq. 10 and 11",
        ),
        Entry(
            name="torch.flash_mla",
            backend="torch",
            algorithm="flash_mla",
            origin=Origin.PEER,
            function="zenrepro.ops.mla.torch_flash_mla:decode",
            compiled=False,
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16")},
                phases=("decode",),
                architectures=((9, 0),),
                formats=("fp8_e4m3",),
                one_of=("$ZENREPRO_FLASHMLA_LIBRARY", "flash_mla", "vllm._flashmla_C"),
            ),
            paper="DeepSeek-AI 2025, FlashMLA",
        ),
        Entry(
            name="torch.fa3_package",
            backend="torch",
            algorithm="fa3_package",
            origin=Origin.PEER,
            function="zenrepro.ops.mla.torch_fa3_package:decode",
            compiled=False,
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16")},
                phases=("decode",),
                architectures=((9, 0),),
                one_of=(
                    "$ZENREPRO_FA3_LIBRARY",
                    "flash_attn_interface",
                    "vllm.vllm_flash_attn._vllm_fa3_C",
                ),
            ),
            paper="Shah et al. 2024, FlashAttention-3; its q_v argument",
        ),
        Entry(
            name="jax.decompressed",
            backend="jax",
            algorithm="decompressed",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.jax_decompressed:prefill",
            needs=Needs(
                dtypes={
                    "cpu": ("fp32", "bf16"),
                    "gpu": ("fp32", "bf16", "fp16"),
                    "tpu": ("fp32", "bf16"),
                },
                phases=("prefill",),
            ),
            paper="DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), eq. 9-19",
        ),
        Entry(
            name="jax.absorbed",
            backend="jax",
            algorithm="absorbed",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.jax_absorbed:decode",
            needs=Needs(
                dtypes={
                    "cpu": ("fp32", "bf16"),
                    "gpu": ("fp32", "bf16", "fp16"),
                    "tpu": ("fp32", "bf16"),
                },
                formats=("fp8_e4m3",),
            ),
            paper="DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), section 2.1.2, absorption",
        ),
        Entry(
            name="jax.tiled",
            backend="jax",
            algorithm="tiled",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.jax_tiled:decode",
            needs=Needs(
                dtypes={
                    "cpu": ("fp32", "bf16"),
                    "gpu": ("fp32", "bf16", "fp16"),
                    "tpu": ("fp32", "bf16"),
                },
                phases=("decode",),
                formats=("fp8_e4m3",),
            ),
            paper="Milakov and Gimelshein 2018, Online normalizer calculation for softmax "
            "(arXiv 1805.02867); DeepSeek-V2 (arXiv 2405.04434), section 2.1.2",
        ),
        Entry(
            name="jax.pallas",
            backend="jax",
            algorithm="pallas",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.jax_pallas:decode",
            needs=Needs(
                dtypes={"tpu": ("bf16", "fp32")},
                phases=("decode",),
            ),
            sources=("kernels/pallas/mla_decode.py",),
            paper="Milakov and Gimelshein 2018, Online normalizer calculation for softmax "
            "(arXiv 1805.02867); DeepSeek-V2 (arXiv 2405.04434), section 2.1.2",
        ),
        Entry(
            name="mlx.decompressed",
            backend="mlx",
            algorithm="decompressed",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.mlx_decompressed:prefill",
            compiled=False,  # as mx.fast's attention is, and the checks read lengths
            needs=Needs(
                dtypes={
                    "cpu": ("fp32", "bf16", "fp16"),
                    "metal": ("fp32", "bf16", "fp16"),
                    "gpu": ("fp32", "bf16", "fp16"),
                },
                phases=("prefill",),
            ),
            paper="DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), eq. 9-19",
        ),
        Entry(
            name="mlx.absorbed",
            backend="mlx",
            algorithm="absorbed",
            origin=Origin.OURS,
            function="zenrepro.ops.mla.mlx_absorbed:decode",
            compiled=False,  # as mx.fast's attention is, and the checks read lengths
            needs=Needs(
                dtypes={
                    "cpu": ("fp32", "bf16", "fp16"),
                    "metal": ("fp32", "bf16", "fp16"),
                    "gpu": ("fp32", "bf16", "fp16"),
                },
                formats=("fp8_e4m3",),
            ),
            paper="DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), section 2.1.2, absorption",
        ),
    )
)


def load(entry: Entry, phase: str) -> Callable[..., Any]:
    """The row's function of a phase, ``decode`` or ``prefill``. Raises ImportError when its
    framework is missing, ValueError for a phase that the row does not serve."""
    if phase not in entry.needs.phases:
        raise ValueError(f"phase: {entry.name} serves {', '.join(entry.needs.phases)}, not {phase}")
    function: Callable[..., Any] = getattr(importlib.import_module(entry.module), phase)
    return function
