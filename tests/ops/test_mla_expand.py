"""The expansion in front of attention kernels gives the plain form's keys and values."""

from __future__ import annotations

import importlib

import pytest

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("batch", "length", "heads"), [(1, 1, 1), (2, 37, 3)])
def test_keys_and_values_are_the_plain_forms(batch: int, length: int, heads: int) -> None:
    from zenrepro.ops.mla import torch_decompressed, torch_expand

    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(batch, length, 576, generator=generator)
    w_uk, w_uv = (torch.randn(heads, 128, 512, generator=generator) / 22 for _ in range(2))
    keys, values = torch_expand.expand(latent, w_uk, w_uv)
    plain_keys, plain_values = torch_decompressed.expand(latent, w_uk, w_uv)
    torch.testing.assert_close(keys, plain_keys.transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, plain_values.transpose(1, 2), atol=1e-5, rtol=1e-5)
    # As the kernel's tensor maps want them: rows without gaps, heads beside each other.
    assert keys.is_contiguous()
    assert values.is_contiguous()


@pytest.mark.parametrize("kernel", ["fa2", "fa3"])
def test_wrong_arguments_are_named_before_anything_runs(kernel: str) -> None:
    module = importlib.import_module(f"zenrepro.ops.mla.torch_decompressed_{kernel}")
    q, latent = torch.zeros(1, 4, 2, 192), torch.zeros(1, 4, 576)
    weight = torch.zeros(3, 128, 512)
    with pytest.raises(ValueError, match="w_uk"):
        module.prefill(q, latent, weight, weight, causal=True)


def test_the_kernel_gets_what_was_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    from zenrepro.ops.attention import torch_fa2, torch_naive
    from zenrepro.ops.mla import torch_decompressed, torch_decompressed_fa2

    monkeypatch.setattr(torch_fa2, "attention", torch_naive.attention)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 3, 192, generator=generator)
    latent = torch.randn(2, 9, 576, generator=generator)
    w_uk, w_uv = (torch.randn(3, 128, 512, generator=generator) / 22 for _ in range(2))
    for given in ({"causal": True}, {"causal": False, "scale": 0.05}):
        out = torch_decompressed_fa2.prefill(q, latent, w_uk, w_uv, **given)
        wanted = torch_decompressed.prefill(q, latent, w_uk, w_uv, **given)
        torch.testing.assert_close(out, wanted, atol=2e-5, rtol=2e-5)
