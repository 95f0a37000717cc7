"""The inferred architectures give the sizes that the report prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from zenrepro import architecture, claims
from zenrepro.architecture import Architecture
from zenrepro.errors import InputError
from zenrepro.printed import Interval

ROOT = Path(__file__).parents[2]
MODELS = architecture.load(ROOT / "data" / "models")
PUBLICATION = claims.load(ROOT / "data" / "published" / "zen.yaml")
POLICIES = {policy.name: policy for policy in PUBLICATION.policies}


def _published(quantity: str, metric: str) -> list[claims.Claim]:
    return [
        c
        for c in PUBLICATION.claims
        if (c.quantity, c.metric, c.kind) == (quantity, metric, "scalar") and c.where.table
    ]


def test_every_model_of_the_report_has_a_configuration() -> None:
    named = {c.conditions["model"] for c in PUBLICATION.claims if "model" in c.conditions}
    assert named == set(MODELS)


@pytest.mark.parametrize(
    ("name", "billions", "within"),
    [("zen-mode-1.5b", 1.5, 0.01), ("zen-mode-7b", 7, 0.01), ("zen-mode-32b", 32, 0.01),
     ("zen-mode-72b", 72, 0.0035)],
)  # fmt: skip
def test_totals_match_the_name(name: str, billions: float, within: float) -> None:
    total = architecture.parameters(MODELS[name])
    assert total == pytest.approx(billions * 1e9, rel=within)
    assert MODELS[name].stated().meets(Interval(total, total))


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("zen-mode-1.5b", 1.496, 1.1), ("zen-mode-7b", 7.004, 5.0), ("zen-mode-32b", 32.12, 23.2),
     ("zen-mode-72b", 71.99, 49.8)],
)  # fmt: skip
def test_totals_are_the_design_s(name: str, total: float, active: float) -> None:
    assert architecture.parameters(MODELS[name]) / 1e9 == pytest.approx(total, rel=6e-4)
    assert architecture.active_parameters(MODELS[name]) / 1e9 == pytest.approx(active, abs=0.05)


@pytest.mark.parametrize("policy", ["fp16", "fp8", "int4", "int4-fp16-anchor", "fp8-int4-mixed"])
def test_the_five_published_sizes(policy: str) -> None:
    [claim] = [
        c for c in _published("size", "weights")
        if c.where.table == "quantisation" and c.conditions["policy"] == policy
    ]  # fmt: skip
    found = architecture.size(MODELS[claim.conditions["model"]], POLICIES[policy])
    gigabytes = found.elements / 1e9
    assert f"{gigabytes:.0f}" == claim.printed
    assert claim.interval().meets(Interval(gigabytes, gigabytes))


def test_scales_are_told_apart() -> None:
    model = MODELS["zen-mode-72b"]
    mixed = architecture.size(model, POLICIES["fp8-int4-mixed"])
    # 38.4 B weights in groups of 128, a two-byte scale each.
    assert mixed.scales == pytest.approx(38.4e9 / 128 * 2, rel=0.01)
    assert mixed.total == mixed.elements + mixed.scales
    assert architecture.size(model, POLICIES["fp16"]).scales == 0


def test_parts_of_the_largest_model() -> None:
    parts = {p.name: p.parameters / 1e9 for p in architecture.parts(MODELS["zen-mode-72b"])}
    assert parts["attention"] == pytest.approx(8.1, abs=0.05)
    assert parts["experts"] == pytest.approx(24.2, abs=0.05)
    assert parts["shared-ffn"] + parts["embeddings"] == pytest.approx(38.4, abs=0.05)
    assert parts["anchors"] == pytest.approx(1.34, abs=0.005)


def test_parts_are_those_that_the_policies_store() -> None:
    described = {part.name for part in PUBLICATION.parts}
    for model in MODELS.values():
        rest = [p for p in architecture.parts(model) if p.name not in described]
        assert [p.name for p in rest] == ["norms and gates"]
        assert rest[0].parameters < 0.001 * architecture.parameters(model)
        assert described <= {p.name for p in architecture.parts(model)}


def test_cache_of_the_7b_by_hand() -> None:
    model = MODELS["zen-mode-7b"]
    assert architecture.cache_bytes(model) == 32 * 576 * 2
    assert architecture.cache_bytes(model, "fp8_e4m3") == 32 * 576
    assert architecture.cache_bytes(model, form="mha") == 32 * 24 * (128 + 128) * 2
    assert architecture.cache_bytes(model, form="gqa") == 32 * 8 * (128 + 128) * 2
    with pytest.raises(InputError, match="no cache of the form 'mqa'"):
        architecture.cache_bytes(model, form="mqa")


def test_readings_of_a_sixfold_smaller_cache() -> None:
    readings = architecture.cache_readings(MODELS["zen-mode-7b"])
    assert readings == {
        "keys alone over the latent": 6.0,
        "keys and values over the latent": 12.0,
        "keys and values over all that is kept": pytest.approx(10.667, abs=1e-3),
        "8 shared heads over all that is kept": pytest.approx(3.556, abs=1e-3),
    }
    alone = "keys alone over the latent"
    sixfold = {n for n, m in MODELS.items() if 5.4 < architecture.cache_readings(m)[alone] < 6.6}
    assert sixfold == {"zen-mode-7b"}  # no other size of the family shrinks by about six
    odd = msgspec.structs.replace(MODELS["zen-mode-7b"], num_heads=30)
    assert [cache.form for cache in architecture.caches(odd)] == ["mha", "mla"]
    assert len(architecture.cache_readings(odd)) == 3


def test_every_field_that_shapes_the_model_rests_on_an_assumption() -> None:
    shape = set(Architecture.__struct_fields__) - {
        "schema", "name", "stated_parameters", "assumptions",
    }  # fmt: skip
    for model in MODELS.values():
        assert {key for a in model.assumptions for key in a.about} == shape
        assert all(a.why for a in model.assumptions)


def test_counts_agree_with_the_matrices_written_out() -> None:
    small = msgspec.structs.replace(
        MODELS["zen-mode-72b"], hidden_size=8, num_layers=2, num_heads=3, q_lora_rank=5,
        kv_lora_rank=4, qk_nope_head_dim=2, qk_rope_head_dim=1, v_head_dim=6, vocab_size=10,
        num_experts=4, top_k=2, expert_intermediate_size=7, shared_intermediate_size=9,
        anchor_rank=3,
    )  # fmt: skip
    shapes = {
        "attention": [(8, 5), (5, 3 * 3), (8, 5), (4, 3 * 8), (18, 8)],
        "experts": [(8, 7), (8, 7), (7, 8)] * 4,
        "shared-ffn": [(8, 9), (8, 9), (9, 8)],
        "anchors": [(8, 3), (3, 8)],
    }
    found = {p.name: p for p in architecture.parts(small)}
    for name, matrices in shapes.items():
        assert found[name].parameters == 2 * sum(a * b for a, b in matrices), name
    assert found["experts"].active * 2 == found["experts"].parameters
    assert (found["embeddings"].parameters, found["embeddings"].active) == (160, 80)
    # Two norms of the hidden size, one of each latent, a gate a layer; a last norm.
    assert found["norms and gates"].parameters == 2 * (16 + 4 + 5 + 32) + 8
    tied = msgspec.structs.replace(small, tie_embeddings=True)
    assert architecture.parameters(small) - architecture.parameters(tied) == 80


def test_cost_rows_add_up() -> None:
    rows = architecture.cost_rows(MODELS["zen-mode-7b"], list(POLICIES.values()))
    *parts, whole = rows
    assert whole.part == "all"
    assert whole.share == pytest.approx(1)
    assert sum(r.parameters for r in parts) == whole.parameters
    assert sum(r.active for r in parts) == whole.active
    assert whole.flops_per_token == 2 * whole.active
    for name in POLICIES:
        assert sum(r.bytes[name].total for r in parts) == pytest.approx(whole.bytes[name].total)


def _raw() -> dict[str, Any]:
    path = ROOT / "data" / "models" / "zen-mode-7b.yaml"
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return raw


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"hidden_size": "big"}, "$.hidden_size"),
        ({"num_layers": 0}, "num_layers wants a positive"),
        ({"heads": 3}, "unknown field `heads`"), ({"schema": 2}, "schema is 2"),
        ({"top_k": 17}, "of only 16 experts"),
        ({"stated_parameters": "7B"}, "not a printed number"),
        ({"name": "other"}, "the file's name differs"),
        ({"assumptions": [{"about": ["depth"], "why": "w", "stated": False}]}, "'depth'"),
    ],
)  # fmt: skip
def test_bad_configurations(changes: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "zen-mode-7b.yaml"
    path.write_text(yaml.safe_dump(_raw() | changes), encoding="utf-8")
    with pytest.raises(InputError) as error:
        architecture.load(tmp_path)
    assert str(error.value).startswith(str(path))
    assert wanted in str(error.value)
