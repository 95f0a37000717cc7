"""Model architectures: inferred configurations, and what each part of them costs.

The schema of ``data/models/<name>.yaml``: latent attention, routed experts beside a shared dense
feed-forward in every layer, and an anchor projection (residual down and up) in every layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from zenrepro import printed
from zenrepro.claims import Policy
from zenrepro.documents import read_yaml
from zenrepro.errors import InputError
from zenrepro.formats import element_bytes
from zenrepro.printed import Interval

SCHEMA = 1

# A group of weights shares one scale of this format; formats with scales are those below 8 bits.
SCALE_FORMAT = "fp16"
SCALED = ("int4", "nf4")
# What a policy does not name (norms, router gates) stays in this format.
UNNAMED_FORMAT = "fp16"
# Heads that keep keys where the others share them: what published models of 7 to 70 B have.
GROUPED_HEADS = 8


class Assumption(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why fields have the values that they have; ``stated`` when the report itself says so."""

    about: list[str]
    why: str
    stated: bool


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model. Names of fields are those of the field's published configurations.

    ``stated_parameters`` is the number in the name, in Gparameter, as printed. Without
    ``q_lora_rank`` the queries are projected directly. Per-token cache: ``kv_lora_rank`` +
    ``qk_rope_head_dim`` elements a layer.
    """

    schema: int
    name: str
    stated_parameters: str
    hidden_size: int
    num_layers: int
    num_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    vocab_size: int
    num_experts: int
    top_k: int
    expert_intermediate_size: int
    shared_intermediate_size: int
    anchor_rank: int
    tie_embeddings: bool
    q_lora_rank: int | None = None
    assumptions: list[Assumption] = []

    def stated(self) -> Interval:
        """What the name's size may stand for, in parameters."""
        return printed.interval(self.stated_parameters).scaled(1e9)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of one part of a model; ``active``: those that take part in one token's step."""

    name: str
    parameters: int
    active: int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of stored weights: the elements, and the scales that their groups share."""

    elements: float
    scales: float

    @property
    def total(self) -> float:
        """Elements and scales."""
        return self.elements + self.scales


def load(folder: Path) -> dict[str, Architecture]:
    """Load every configuration in a folder, by name. Raises InputError naming the file and key."""
    models: dict[str, Architecture] = {}
    for path in sorted(folder.glob("*.yaml")):
        model = check(read_yaml(path), str(path))
        if model.name != path.stem:
            raise InputError(f"{path}: name is {model.name!r}, the file's name differs")
        models[model.name] = model
    return models


def check(raw: Any, place: str) -> Architecture:
    """Validate the decoded content of one configuration. Raises InputError naming ``place``."""
    try:
        model = msgspec.convert(raw, Architecture)
        model.stated()
    except (msgspec.ValidationError, InputError) as error:
        raise InputError(f"{place}: {error}") from None
    if model.schema != SCHEMA:
        raise InputError(f"{place}: schema is {model.schema}, this zenrepro reads {SCHEMA}")
    fields = set(msgspec.structs.asdict(model))
    for key, value in msgspec.structs.asdict(model).items():
        if isinstance(value, int) and not isinstance(value, bool) and value <= 0:
            raise InputError(f"{place}: {key} wants a positive whole number, got {value}")
    if model.top_k > model.num_experts:
        raise InputError(f"{place}: top_k is {model.top_k}, of only {model.num_experts} experts")
    for assumption in model.assumptions:
        for key in assumption.about:
            if key not in fields:
                raise InputError(f"{place}: an assumption is about {key!r}, which is no field")
    return model


def parts(model: Architecture) -> list[Part]:
    """The parts of the model, named as reports divide them; they make up the whole.

    Active: of the experts, the ``top_k`` that a token is sent to; of the embeddings, the output
    head (the input side is one row, which is looked up, not multiplied).
    """
    hidden, layers, heads = model.hidden_size, model.num_layers, model.num_heads
    query_out = heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)
    if model.q_lora_rank is None:
        queries = hidden * query_out
    else:
        queries = model.q_lora_rank * (hidden + query_out)
    latent = hidden * (model.kv_lora_rank + model.qk_rope_head_dim)
    up = model.kv_lora_rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    output = heads * model.v_head_dim * hidden
    attention = layers * (queries + latent + up + output)
    expert = 3 * hidden * model.expert_intermediate_size  # gate, up, down
    shared = layers * 3 * hidden * model.shared_intermediate_size
    anchors = layers * 2 * hidden * model.anchor_rank
    table = model.vocab_size * hidden
    norms = layers * (2 * hidden + model.kv_lora_rank + (model.q_lora_rank or 0)) + hidden
    gates = layers * hidden * model.num_experts
    return [
        Part(name="attention", parameters=attention, active=attention),
        Part(
            name="experts",
            parameters=layers * model.num_experts * expert,
            active=layers * model.top_k * expert,
        ),
        Part(name="shared-ffn", parameters=shared, active=shared),
        Part(
            name="embeddings",
            parameters=table if model.tie_embeddings else 2 * table,
            active=table,
        ),
        Part(name="anchors", parameters=anchors, active=anchors),
        Part(name="norms and gates", parameters=norms + gates, active=norms + gates),
    ]


def parameters(model: Architecture) -> int:
    """All parameters of the model."""
    return sum(part.parameters for part in parts(model))


def active_parameters(model: Architecture) -> int:
    """Parameters that take part in one token's step."""
    return sum(part.active for part in parts(model))


def stored(part: Part, policy: Policy) -> Stored:
    """Bytes of a part under a policy. Groups without a stated size are counted without scales."""
    name = policy.parts.get(part.name, UNNAMED_FORMAT)
    scales = 0.0
    if name in SCALED and policy.group_size is not None:
        scales = part.parameters / policy.group_size * element_bytes(SCALE_FORMAT)
    return Stored(elements=part.parameters * element_bytes(name), scales=scales)


def size(model: Architecture, policy: Policy) -> Stored:
    """Bytes of the whole model under a policy."""
    each = [stored(part, policy) for part in parts(model)]
    return Stored(elements=sum(s.elements for s in each), scales=sum(s.scales for s in each))


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """What one token keeps in one layer: keys of ``kv_heads`` heads, and the values beside them.

    In the form ``mla`` the one key is the latent with the rotary part behind it, and its first
    ``value_dim`` elements are the value: nothing is kept beside it.
    """

    form: str
    kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        """Elements a token and layer."""
        beside = 0 if self.form == "mla" else self.value_dim
        return self.kv_heads * (self.head_dim + beside)


def caches(model: Architecture) -> list[Cache]:
    """The model's cache with ordinary heads, with heads that share keys, and with the latent.

    Ordinary heads are as wide as the model's own without their rotary part: that is what the
    report's h·d_k counts. Grouped: ``GROUPED_HEADS`` of them, as the field's models of all sizes
    do (left out where they do not divide the heads).
    """
    wide = {"head_dim": model.qk_nope_head_dim, "value_dim": model.v_head_dim}
    found = [Cache(form="mha", kv_heads=model.num_heads, **wide)]
    if model.num_heads % GROUPED_HEADS == 0:
        found.append(Cache(form="gqa", kv_heads=GROUPED_HEADS, **wide))
    latent = model.kv_lora_rank
    whole = latent + model.qk_rope_head_dim
    return [*found, Cache(form="mla", kv_heads=1, head_dim=whole, value_dim=latent)]


def cache_bytes(model: Architecture, dtype: str = "bf16", form: str = "mla") -> float:
    """Bytes of cache a token, in every layer, in one of the forms of ``caches``.

    Raises InputError for a form that the model cannot have.
    """
    for cache in caches(model):
        if cache.form == form:
            return model.num_layers * cache.elements * element_bytes(dtype)
    raise InputError(f"{model.name} has no cache of the form {form!r}")


def cache_readings(model: Architecture) -> dict[str, float]:
    """Ordinary heads' cache over the latent's: what "so many times smaller" may compare."""
    keys = model.num_heads * model.qk_nope_head_dim
    both = keys + model.num_heads * model.v_head_dim
    latent, rotary = model.kv_lora_rank, model.qk_rope_head_dim
    out = {
        "keys alone over the latent": keys / latent,
        "keys and values over the latent": both / latent,
        "keys and values over all that is kept": both / (latent + rotary),
    }
    shared = GROUPED_HEADS * (model.qk_nope_head_dim + model.v_head_dim)
    if model.num_heads % GROUPED_HEADS == 0:
        out[f"{GROUPED_HEADS} shared heads over all that is kept"] = shared / (latent + rotary)
    return out


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of what an architecture costs. ``bytes`` maps policy names to stored bytes."""

    model: str
    part: str
    parameters: int
    share: float
    active: int
    flops_per_token: int
    bytes: dict[str, Stored]


def cost_rows(model: Architecture, policies: list[Policy]) -> list[CostRow]:
    """What the architecture costs part by part, then in all: for a table.

    FLOPs a token: two for each active parameter; attention over the cache comes on top.
    """
    whole = parameters(model)
    total = Part(name="all", parameters=whole, active=active_parameters(model))
    rows = []
    for part in (*parts(model), total):
        sizes = {p.name: size(model, p) if part is total else stored(part, p) for p in policies}
        rows.append(
            CostRow(
                model=model.name, part=part.name, parameters=part.parameters,
                share=part.parameters / whole, active=part.active,
                flops_per_token=2 * part.active, bytes=sizes,
            )
        )  # fmt: skip
    return rows
