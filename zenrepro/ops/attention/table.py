"""Every implementation of attention, one literal row each. Reading it imports no framework."""

from __future__ import annotations

from zenrepro.ops.entry import Entry, Needs, check_table
from zenrepro.records import Origin

TABLE: tuple[Entry, ...] = check_table(
    (
        Entry(
            name="torch.naive",
            backend="torch",
            algorithm="naive",
            origin=Origin.OURS,
            function="zenrepro.ops.attention.torch_naive:attention",
            needs=Needs(
                dtypes={"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")},
                layouts=("dense", "varlen", "paged"),
            ),
            paper="Vaswani et al. 2017, Attention Is All You Need, eq. 1",
        ),
        Entry(
            name="torch.fa3",
            backend="torch",
            algorithm="fa3",
            origin=Origin.OURS,
            function="zenrepro.ops.attention.torch_fa3:attention",
            compiled=False,
            sources=(
                "kernels/cuda/attention_hopper.cu",
                "kernels/cuda/hopper.cuh",
                "kernels/cuda/values_e4m3.cu",
            ),
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16", "fp8_e4m3")},
                layouts=("dense", "varlen", "paged"),
                page_sizes=(16, 32, 64, 128, 256),
                architectures=((9, 0),),
                # Others than these three pairs run, padded, at the next larger.
                dims=(
                    (16, 16),
                    (32, 32),
                    (48, 32),
                    (64, 64),
                    (80, 80),
                    (96, 96),
                    (128, 128),
                    (192, 128),
                ),
                packages=("cuda.bindings",),
            ),
            paper="Shah et al. 2024, FlashAttention-3, algorithm 2",
        ),
        Entry(
            name="torch.fa2",
            backend="torch",
            algorithm="fa2",
            origin=Origin.OURS,
            function="zenrepro.ops.attention.torch_fa2:attention",
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16", "fp32")},
                compute_capability=(8, 0),
                layouts=("dense", "varlen", "paged"),
                packages=("triton",),
            ),
            sources=("kernels/triton/attention.py",),
            paper="Dao 2023, FlashAttention-2, arXiv 2307.08691",
        ),
        Entry(
            name="torch.fa3_package",
            backend="torch",
            algorithm="fa3_package",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.torch_fa3_package:attention",
            compiled=False,
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16", "fp8_e4m3")},
                layouts=("dense", "varlen", "paged"),
                architectures=((9, 0),),
                one_of=(
                    "$ZENREPRO_FA3_LIBRARY",
                    "flash_attn_interface",
                    "vllm.vllm_flash_attn._vllm_fa3_C",
                ),
            ),
            paper="Shah et al. 2024, FlashAttention-3",
        ),
        Entry(
            name="torch.fa4",
            backend="torch",
            algorithm="fa4",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.torch_fa4:attention",
            compiled=False,
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16")},
                layouts=("dense", "varlen", "paged"),
                compute_capability=(8, 0),
                packages=("flash_attn.cute", "cutlass"),
            ),
            paper="FlashAttention-4, flash-attn-4 in the CuTe DSL",
        ),
        Entry(
            name="torch.flashinfer",
            backend="torch",
            algorithm="flashinfer",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.torch_flashinfer:attention",
            compiled=False,
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16")},
                layouts=("dense", "varlen", "paged"),
                compute_capability=(8, 0),
                packages=("flashinfer",),
            ),
            paper="Ye et al. 2025, FlashInfer, arXiv 2501.01005",
        ),
        Entry(
            name="torch.flex",
            backend="torch",
            algorithm="flex",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.torch_flex:attention",
            compiled=False,
            needs=Needs(
                dtypes={"cuda": ("bf16", "fp16", "fp32")},
                compute_capability=(8, 0),
                packages=("triton",),
            ),
            paper="Dong et al. 2024, FlexAttention, arXiv 2412.05496",
        ),
        Entry(
            name="torch.sdpa_flash",
            backend="torch",
            algorithm="sdpa_flash",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.torch_sdpa_flash:attention",
            needs=Needs(
                layouts=("dense", "varlen"),
                dtypes={"cpu": ("fp32", "bf16", "fp16"), "cuda": ("bf16", "fp16")},
                compute_capability=(8, 0),
                unequal_dims=False,
            ),
            paper="Dao 2023, FlashAttention-2",
        ),
        Entry(
            name="torch.sdpa_cudnn",
            backend="torch",
            algorithm="sdpa_cudnn",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.torch_sdpa_cudnn:attention",
            needs=Needs(dtypes={"cuda": ("bf16", "fp16")}, compute_capability=(8, 0)),
            paper="NVIDIA cuDNN, scaled dot product attention",
        ),
        Entry(
            name="torch.sdpa_efficient",
            backend="torch",
            algorithm="sdpa_efficient",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.torch_sdpa_efficient:attention",
            needs=Needs(
                dtypes={"cuda": ("fp32", "bf16", "fp16")},
                compute_capability=(5, 0),
                grouped_heads=False,
            ),
            paper="Rabe and Staats 2021, Self-attention Does Not Need O(n^2) Memory",
        ),
        Entry(
            name="jax.naive",
            backend="jax",
            algorithm="naive",
            origin=Origin.OURS,
            function="zenrepro.ops.attention.jax_naive:attention",
            needs=Needs(
                layouts=("dense", "varlen", "paged"),
                dtypes={
                    "cpu": ("fp32", "bf16", "fp16"),
                    "gpu": ("fp32", "bf16", "fp16"),
                    "tpu": ("fp32", "bf16"),
                },
            ),
            paper="Vaswani et al. 2017, Attention Is All You Need, eq. 1",
        ),
        Entry(
            name="jax.xla",
            backend="jax",
            algorithm="xla",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.jax_xla:attention",
            needs=Needs(
                layouts=("dense", "varlen", "paged"),
                dtypes={
                    "cpu": ("fp32", "bf16"),  # it asks for fp16 products that XLA's CPU lacks
                    "gpu": ("fp32", "bf16", "fp16"),
                    "tpu": ("fp32", "bf16"),
                },
                unequal_dims=False,
            ),
            paper="jax.nn.dot_product_attention, implementation xla",
        ),
        Entry(
            name="jax.cudnn",
            backend="jax",
            algorithm="cudnn",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.jax_cudnn:attention",
            needs=Needs(
                dtypes={"gpu": ("bf16", "fp16")},
                compute_capability=(8, 0),
            ),
            paper="jax.nn.dot_product_attention, implementation cudnn",
        ),
        Entry(
            name="jax.pallas_flash",
            backend="jax",
            algorithm="pallas_flash",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.jax_pallas_flash:attention",
            needs=Needs(dtypes={"tpu": ("fp32", "bf16")}, phases=("prefill",)),
            paper="JAX, jax.experimental.pallas.ops.tpu.splash_attention; Dao 2023, "
            "FlashAttention-2 (arXiv 2307.08691)",
        ),
        Entry(
            name="mlx.naive",
            backend="mlx",
            algorithm="naive",
            origin=Origin.OURS,
            function="zenrepro.ops.attention.mlx_naive:attention",
            compiled=False,  # mx.compile fuses nothing here and wants a C++ compiler on a CPU
            needs=Needs(
                layouts=("dense", "varlen", "paged"),
                dtypes={
                    "cpu": ("fp32", "bf16", "fp16"),
                    "metal": ("fp32", "bf16", "fp16"),
                    "gpu": ("fp32", "bf16", "fp16"),
                },
            ),
            paper="Vaswani et al. 2017, Attention Is All You Need, eq. 1",
        ),
        Entry(
            name="mlx.fast",
            backend="mlx",
            algorithm="fast",
            origin=Origin.PEER,
            function="zenrepro.ops.attention.mlx_fast:attention",
            compiled=False,
            needs=Needs(
                layouts=("dense", "varlen", "paged"),
                dtypes={
                    "cpu": ("fp32", "bf16", "fp16"),
                    "metal": ("fp32", "bf16", "fp16"),
                    "gpu": ("fp32", "bf16", "fp16"),
                },
            ),
            paper="MLX, mx.fast.scaled_dot_product_attention",
        ),
    )
)
