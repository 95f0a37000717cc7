"""The reference's layer against transformers' DeepSeek-V2 and -V3 attention, tiny and random."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from zenrepro.ops.gate import relative_error
from zenrepro.ops.mla import reference
from zenrepro.ops.mla.reference import Weights

HEADS, HIDDEN, LENGTH = 2, 48, 9


def model(version: int, q_lora_rank: int | None) -> Any:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="transformers is not installed: no oracle to ask")
    package = importlib.import_module(f"transformers.models.deepseek_v{version}")
    config = getattr(package, f"DeepseekV{version}Config")(
        vocab_size=16, hidden_size=HIDDEN, intermediate_size=32, moe_intermediate_size=32,
        num_hidden_layers=1, first_k_dense_replace=1, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, q_lora_rank=q_lora_rank, kv_lora_rank=512,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, max_position_embeddings=64,
        attn_implementation="eager", pad_token_id=None, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    made = getattr(package, f"DeepseekV{version}Model")(config).double().eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:  # ones by default: would hide a norm that is left out or misplaced
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
        elif "attn" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def weights(attention: Any) -> Weights:
    def of(module: Any) -> np.ndarray:
        return module.weight.detach().numpy()

    compressed = getattr(attention, "q_a_proj", None) is not None
    w_q = of(attention.q_b_proj if compressed else attention.q_proj)
    down, up = of(attention.kv_a_proj_with_mqa), of(attention.kv_b_proj)
    up = up.reshape(HEADS, 256, 512)
    return Weights(
        w_dq=of(attention.q_a_proj) if compressed else None,
        q_norm=of(attention.q_a_layernorm) if compressed else None,
        w_q=w_q.reshape(HEADS, 192, -1),
        w_dkv=down[:512],
        kv_norm=of(attention.kv_a_layernorm),
        w_kr=down[512:],
        w_uk=up[:, :128],
        w_uv=up[:, 128:],
        w_o=of(attention.o_proj),
    )


@pytest.mark.parametrize(("version", "q_lora_rank"), [(2, None), (2, 24), (3, 24)])
def test_layer_agrees_with_transformers(version: int, q_lora_rank: int | None) -> None:
    made = model(version, q_lora_rank)
    torch = importlib.import_module("torch")
    attention = made.layers[0].self_attn
    seen: dict[str, Any] = {}

    def keep(module: Any, args: Any, given: Any, out: Any) -> None:
        seen["x"] = given.get("hidden_states", args[0] if args else None)
        seen["out"] = out[0]

    attention.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        made(inputs_embeds=torch.randn(2, LENGTH, HIDDEN, dtype=torch.float64))
    x, wanted = seen["x"].numpy(), seen["out"].numpy()
    given = weights(attention)
    theta = 10000.0
    for form in ("decompressed", "absorbed"):
        out = reference.layer(x, given, form=form, theta=theta)
        # transformers makes its rotary angles in fp32
        assert relative_error(out, wanted) < 1e-6, form
    unrotated = reference.layer(x, given, theta=1e30)  # only the first pair still turns
    assert relative_error(unrotated, wanted) > 1e-3
