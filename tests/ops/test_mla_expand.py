"""The expansion in front of FlashAttention-3 gives the plain form's keys and values."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("batch", "length", "heads"), [(1, 1, 1), (2, 37, 3)])
def test_keys_and_values_are_the_plain_forms(batch: int, length: int, heads: int) -> None:
    from zenrepro.ops.mla import torch_decompressed, torch_decompressed_fa3

    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(batch, length, 576, generator=generator)
    w_uk, w_uv = (torch.randn(heads, 128, 512, generator=generator) / 22 for _ in range(2))
    keys, values = torch_decompressed_fa3.expand(latent, w_uk, w_uv)
    plain_keys, plain_values = torch_decompressed.expand(latent, w_uk, w_uv)
    torch.testing.assert_close(keys, plain_keys.transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, plain_values.transpose(1, 2), atol=1e-5, rtol=1e-5)
    # As the kernel's tensor maps want them: rows without gaps, heads beside each other.
    assert keys.is_contiguous()
    assert values.is_contiguous()


def test_wrong_arguments_are_named_before_anything_runs() -> None:
    from zenrepro.ops.mla import torch_decompressed_fa3

    q, latent = torch.zeros(1, 4, 2, 192), torch.zeros(1, 4, 576)
    weight = torch.zeros(3, 128, 512)
    with pytest.raises(ValueError, match="w_uk"):
        torch_decompressed_fa3.prefill(q, latent, weight, weight, causal=True)
