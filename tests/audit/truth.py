"""True reports from a physical model: machines with ceilings, models with sizes, runs under them.

``report(seed)`` draws hardware, models and runs, computes every number from one set of exact
quantities, prints each with its own number of digits, rounded or truncated, and leaves some
conditions out. Whatever the audit calls an error in one of these is a false alarm.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

from zenrepro import claims, specs
from zenrepro.units import UNITS

RUNS = {"part": "table", "table": "runs"}
BITS = {"fp16": 16, "bf16": 16, "fp8_e4m3": 8, "int8": 8, "int4": 4, "nf4": 4}


@dataclass
class Machine:
    """A product: exact ceilings in base units, per device."""

    name: str
    flop_rates: dict[tuple[str, str], float]
    bandwidth: float
    capacity: float
    tdp: float


@dataclass
class Model:
    """Exact parameters of each part, and the share of the sparse parts that one token uses."""

    name: str
    parts: dict[str, tuple[float, str]]  # parameters, read
    routed: float

    @property
    def total(self) -> float:
        return sum(count for count, _ in self.parts.values())

    @property
    def active(self) -> float:
        share = {"always": 1.0, "sparse": self.routed, "gather": 0.0}
        return sum(count * share[read] for count, read in self.parts.values())


@dataclass
class Policy:
    """Format of each part and the scale bits a weight of each scaled format."""

    name: str | None
    formats: dict[str, str]
    group: int | None
    stated_group: bool
    scale_bits: float
    wide: float = 0.0  # share kept in 16 bits, for a format without a policy

    def part_bytes(self, part: str, parameters: float) -> float:
        bits = BITS[self.formats[part]]
        bits += self.scale_bits if bits < 16 else 0.0
        return parameters * (bits * (1 - self.wide) + 16 * self.wide) / 8


@dataclass
class Writer:
    """Collects claims; prints numbers in this report's own ways."""

    rng: random.Random
    claims: list[dict[str, Any]] = field(default_factory=list)
    exact: dict[str, float] = field(default_factory=dict)  # base units, by id

    def number(self, value: float, least: int = 2, most: int = 5) -> str:
        """Digits that the exact value rounds or truncates to."""
        digits = self.rng.randint(least, most)
        if value == 0:
            return "0." + "0" * digits
        exponent = math.floor(math.log10(abs(value)))
        places = max(min(digits - 1 - exponent, 6), -exponent if exponent > 0 else 0)
        scale = 10.0**places
        steps = abs(value) * scale
        whole = math.floor(steps) if self.rng.random() < 0.4 else math.floor(steps + 0.5)
        if whole == 0:  # nothing would be left of it: one digit more until something is
            return self.number(value, digits + 1, digits + 1)
        text = f"{whole / scale:.{max(places, 0)}f}"
        if places <= 0:
            text = f"{round(whole / scale):,}" if self.rng.random() < 0.7 else text
        return ("-" if value < 0 else "") + text

    def add(
        self, value: float | None, quantity: str, metric: str, unit: str, *, kind: str = "scalar",
        conditions: dict[str, Any] | None = None, printed: str | None = None, **more: Any,
    ) -> str:  # fmt: skip
        name = f"c{len(self.claims)}"
        claim: dict[str, Any] = {
            "id": name, "kind": kind, "quantity": quantity, "metric": metric, "unit": unit,
            "where": {"part": "table", "line": len(self.claims) + 1, "table": quantity},
            "conditions": dict(conditions or {}), **more,
        }  # fmt: skip
        if value is not None:
            text = printed or self.number(value / UNITS[unit].factor)
            claim["printed"] = text
            claim["value"] = float(text.replace(",", ""))
            self.exact[name] = value
        self.claims.append(claim)
        return name


def report(
    seed: int,
) -> tuple[dict[str, Any], dict[str, specs.Datasheet]]:
    """One true report as the raw content of a claims file, and the datasheets it stands on."""
    rng = random.Random(seed)
    out = Writer(rng)
    machines = [_machine(rng, i) for i in range(rng.randint(1, 2))]
    divided = rng.random() < 0.6
    models = [_model(rng, i, divided) for i in range(rng.randint(1, 2))]
    policies = _policies(rng, divided, models)
    gibi = rng.random() < 0.25  # this report's GB are GiB
    # What this report's tokens a second are: output tokens while decoding, output tokens over the
    # whole time, or all tokens over the whole time.
    meaning = rng.choice(["decode", "decode", "whole time", "all tokens"])
    dense = {m.name: m.routed == 1.0 for m in models}
    for machine in machines:
        _hardware(out, machine)
    for model in models:
        _parameters(out, model, divided, dense[model.name])
    _sizes(out, models, policies, gibi)
    for machine in machines:
        for model in models:
            for policy in rng.sample(policies, min(2, len(policies))):
                _run(out, machine, model, policy, gibi, meaning)
    _quality(out, models[0])
    if rng.random() < 0.4:
        _budget(out, rng)
    _orphans(out, rng)
    raw = {
        "schema": 1,
        "report": {"title": "A true report", "version": str(seed)},
        "claims": out.claims,
    }
    if divided:
        raw["parts"] = [{"name": n, "read": r} for n, (_, r) in models[0].parts.items()]
        raw["policies"] = [
            {"name": p.name, "parts": p.formats,
             **({"group_size": p.group} if p.stated_group and p.group else {})}
            for p in policies
        ]  # fmt: skip
    return raw, {m.name: _sheet(m) for m in machines}


def load(seed: int) -> tuple[claims.Publication, dict[str, specs.Datasheet]]:
    """The report as the audit takes it."""
    raw, sheets = report(seed)
    return claims.parse(raw, f"truth {seed}"), sheets


def _machine(rng: random.Random, index: int) -> Machine:
    base = 10 ** rng.uniform(12.5, 15.2)
    rates = {("bf16", "dense"): base}
    if rng.random() < 0.8:
        rates["int8", "dense"] = 2 * base
    if rng.random() < 0.6:
        rates["bf16", "sparse"] = 2 * base
        rates["int8", "sparse"] = 4 * base
    return Machine(
        f"machine-{index}", rates, 10 ** rng.uniform(10.8, 12.9),
        rng.choice([8, 16, 24, 32, 40, 64, 80, 96, 141, 192]) * 1e9, 10 ** rng.uniform(1.2, 3.1),
    )  # fmt: skip


def _model(rng: random.Random, index: int, divided: bool) -> Model:
    total = 10 ** rng.uniform(8.7, 11.2)
    routed = 1.0 if rng.random() < 0.4 else rng.uniform(0.05, 0.6)
    lookups = min(rng.uniform(0.01, 0.3) * total, 1e10)
    rest = total - lookups
    cuts = sorted(rng.random() for _ in range(3))
    shares = [cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1], 1 - cuts[2]]
    if divided:
        names = ["attention", "experts", "shared", "kept"]
        reads = ["always", "sparse", "always", "always"]
        parts = {
            n: (s * rest, r) for n, s, r in zip(names, shares, reads, strict=True)
        }  # fmt: skip
        parts["tables"] = (lookups, "gather")
    else:
        sparse = "always" if routed == 1.0 else "sparse"
        parts = {"tables": (lookups, "gather"), "body": (rest, sparse)}
    return Model(f"model-{index}", parts, routed)


def _policies(rng: random.Random, divided: bool, models: list[Model]) -> list[Policy]:
    found = []
    parts = list(models[0].parts)
    for index, uniform in enumerate(["fp16", rng.choice(["fp8_e4m3", "int8"]), "int4", "nf4"]):
        if index and rng.random() < 0.4:
            continue
        group = rng.choice([32, 64, 128, 256])
        scale_bits = rng.choice([8.0, 16.0, 32.0, 16.0 + 16.0]) / group
        policy = Policy(
            f"policy-{index}", dict.fromkeys(parts, uniform), group, rng.random() < 0.5, scale_bits
        )
        if not divided:
            policy.name = None
            policy.stated_group = False
            policy.wide = rng.choice([0.0, 0.0, 0.05]) if uniform != "fp16" else 0.0
        found.append(policy)
    if divided:
        for index in range(rng.randint(1, 2)):
            group = rng.choice([32, 64, 128])
            mixed = {p: rng.choice(["fp16", "fp8_e4m3", "int4", "nf4"]) for p in parts}
            found.append(Policy(f"mixed-{index}", mixed, group, rng.random() < 0.5, 16.0 / group))
    return found


def _stated(policy: Policy) -> dict[str, Any]:
    if policy.name is not None:
        return {"policy": policy.name}
    return {"format": next(iter(policy.formats.values()))}


def weight_bytes(model: Model, policy: Policy) -> float:
    """Exact bytes of the stored weights."""
    return sum(policy.part_bytes(n, count) for n, (count, _) in model.parts.items())


def _hardware(out: Writer, machine: Machine) -> None:
    where = {"platform": machine.name}
    for (dtype, metric), rate in machine.flop_rates.items():
        if out.rng.random() < 0.5:
            out.add(rate, "flop_rate", metric, "TFLOP/s", conditions={**where, "dtype": dtype})
    if out.rng.random() < 0.7:
        unit = out.rng.choice(["GB/s", "TB/s"])
        out.add(machine.bandwidth, "bandwidth", "peak", unit, conditions=where)
    if out.rng.random() < 0.7:
        out.add(machine.capacity, "memory", "capacity", "GB", conditions=where)
    if out.rng.random() < 0.7:
        out.add(machine.tdp, "power", "tdp", "W", conditions=where)


def _parameters(out: Writer, model: Model, divided: bool, dense: bool) -> None:
    open_share = [] if dense and not divided else ["active_parameters"]
    out.add(
        model.total, "count", "parameters", "Gparameter", conditions={"model": model.name},
        unstated=open_share,
    )  # fmt: skip
    if open_share and out.rng.random() < 0.3:
        active = model.active + out.rng.random() * model.parts["tables"][0]
        where = {"model": model.name}
        out.add(active, "count", "active_parameters", "Gparameter", conditions=where)


def _sizes(out: Writer, models: list[Model], policies: list[Policy], gibi: bool) -> None:
    for model in models:
        names = {}
        for policy in policies:
            if out.rng.random() < 0.7:
                exact = weight_bytes(model, policy)
                # Some print what a tool shows in GiB beside what they compute in GB.
                unit = 1e9 / 2**30 if gibi and out.rng.random() < 0.7 else 1.0
                where = {"model": model.name, **_stated(policy)}
                names[policy.name or _stated(policy)["format"]] = (
                    out.add(exact * unit, "size", "weights", "GB", conditions=where), exact * unit,
                )  # fmt: skip
        if len(names) > 1 and out.rng.random() < 0.7:
            (a, x), (b, y) = out.rng.sample(list(names.values()), 2)
            _derived(out, a, x, b, y, {"model": model.name}, ("reduction_factor", "reduction"))


def _derived(
    out: Writer, a: str, x: float, b: str, y: float, where: dict[str, Any], metrics: tuple[str, ...]
) -> None:
    metric = out.rng.choice(metrics)
    value = {
        "ratio": x / y, "speedup": x / y, "increase": x / y - 1, "reduction": 1 - x / y,
        "reduction_factor": y / x,
    }[metric]  # fmt: skip
    unit = out.rng.choice(["%", "1"]) if metric in ("increase", "reduction") else "x"
    if abs(value) < 1e-4:
        return
    out.add(
        value, "ratio", metric, unit, kind="ratio", conditions=where, of=[a], baseline=b,
        relation=out.rng.choice(["=", "=", "≈"]),
    )  # fmt: skip


def _run(
    out: Writer, machine: Machine, model: Model, policy: Policy, gibi: bool, meaning: str
) -> None:  # fmt: skip
    """One configuration: throughput under both roofs, and what follows from it."""
    rng = out.rng
    stored = weight_bytes(model, policy)
    chips = 1
    while stored > 0.85 * machine.capacity * chips:
        chips *= 2
    if chips > 64:
        return
    if rng.random() < 0.2:
        chips *= 2
    batch = rng.choice([1, 1, 2, 4, 8, 16, 32, 64, 128, 256])
    touched = 1 - (1 - model.routed) ** batch
    on_chip = rng.random() * 60e6 * chips
    share = {"always": 1.0, "sparse": touched, "gather": 0.0}
    read = sum(policy.part_bytes(n, c) * share[r] for n, (c, r) in model.parts.items())
    cache = rng.uniform(0, 0.3) * (machine.capacity * chips - stored)
    read = max(read - on_chip, 0.2 * read) + cache * rng.random()
    peak = max(machine.flop_rates.values()) * chips * rng.uniform(0.2, 0.95)
    step = max(
        read / (machine.bandwidth * chips * rng.uniform(0.3, 0.97)),
        2 * model.active * batch / peak,
    ) * rng.uniform(1.0, 1.3)  # fmt: skip
    rate = batch / step
    if meaning != "decode":
        # Prompts of so many tokens an output token, read at most as fast as arithmetic allows.
        prompts = rng.uniform(0.5, 20)
        spent = step + 2 * model.active * batch * prompts / peak
        rate = batch * (1 if meaning == "whole time" else 1 + prompts) / spent
    drawn = machine.tdp * chips * rng.uniform(0.3, 1.0)
    where: dict[str, Any] = {
        "platform": machine.name, "model": model.name, **_stated(policy), "batch": batch,
        "chips": chips,
    }  # fmt: skip
    unstated = ["seq_len"] if rng.random() < 0.5 else []
    if meaning == "decode" and rng.random() < 0.3:
        where["phase"] = "decode"
    elif meaning == "decode":
        unstated += ["phase"] if rng.random() < 0.5 else []
    if rng.random() < 0.2:
        del where["batch"]
        unstated.append("batch")
    if chips == 1 and rng.random() < 0.5:
        del where["chips"]
    elif rng.random() < 0.1:
        del where["chips"]
        unstated.append("chips")
    more = {"conditions": where, "unstated": unstated, "where": {**RUNS, "line": 1}}
    main = out.add(rate, "throughput", "rate", "token/s", **more)
    if meaning != "decode":
        unstated += ["phase"] if rng.random() < 0.5 else []
    if rng.random() < 0.8:
        whole_batch = rng.random() < 0.15  # some print the time per token of the whole batch
        latency = step / batch if whole_batch else step
        unit = rng.choice(["ms/token", "ms", "us"] if latency < 1 else ["s", "ms"])
        out.add(latency, "latency", "tpot", unit, **more)
    power_stated = rng.random() < 0.6
    power = None
    if power_stated:
        power = out.add(drawn, "power", "draw", "W", **more)
    if rng.random() < 0.8:
        at_tdp = not power_stated and rng.random() < 0.5
        energy = rate / (machine.tdp * chips if at_tdp else drawn)
        if rng.random() < 0.8:
            out.add(energy, "energy_per_token", "rate", "token/J", **more)
        else:
            out.add(1 / energy, "energy_per_token", "rate", "J/token", **more)
    peak_bytes = stored + cache
    if rng.random() < 0.6:
        unit_factor = 1e9 / 2**30 if gibi else 1.0
        out.add(peak_bytes * unit_factor, "memory", "peak", "GB", **more)
    if "chips" in where and chips > 1 and rng.random() < 0.7:
        count = out.add(
            chips, "count", "chips", "count", printed=str(chips),
            conditions={k: v for k, v in where.items() if k not in ("chips", "batch")},
        )  # fmt: skip
        out.add(
            rate / chips, "throughput", "ratio", "token/s/chip", kind="ratio", of=[main],
            baseline=count, **more,
        )  # fmt: skip
    if rng.random() < 0.3:
        reading = peak * rng.uniform(0.3, 1.0) / (2 * model.active)
        at = {**where, "phase": "prefill", "seq_len": rng.choice([512, 2048, 8192])}
        out.add(reading, "throughput", "rate", "token/s", conditions=at, unstated=unstated)
    slower = rate / rng.uniform(1.05, 6)
    if rng.random() < 0.6:
        slow = out.add(
            slower, "throughput", "rate", "token/s", implementation="plain",
            conditions={**where, "optimisations": []}, unstated=unstated,
        )  # fmt: skip
        _derived(out, main, rate, slow, slower, where, ("speedup", "ratio", "increase"))
    if rng.random() < 0.3:
        _repeated(out, rate, where, unstated)
    if rng.random() < 0.3:
        _layer(out, rate, where, rng)
    if rng.random() < 0.3 and policy.name is not None:
        _drafted(out, main, rate, where, unstated, rng, peak / (2 * model.active))
    if rng.random() < 0.25:
        _utilisation(out, machine, rate, where, rng)
    assert power is None or power_stated


def _repeated(out: Writer, rate: float, where: dict[str, Any], unstated: list[str]) -> None:
    """The number again in a sentence, with fewer digits and fewer conditions."""
    rng = out.rng
    kept = {k: v for k, v in where.items() if k in ("platform", "model") or rng.random() < 0.5}
    if rng.random() < 0.3:  # another run, of which the sentence leaves a condition out
        missing = sorted(where.keys() - kept.keys())
        if missing:
            rate *= rng.uniform(0.2, 0.9)
            out.add(
                rate, "throughput", "rate", "token/s", conditions=kept, where=_sentence(out),
                unstated=[*missing, *unstated],
            )  # fmt: skip
        return
    printed = out.number(rate, 2, 3)
    out.add(
        rate, "throughput", "rate", "token/s", conditions=kept, printed=printed,
        where=_sentence(out), unstated=unstated,
    )  # fmt: skip


def _sentence(out: Writer) -> dict[str, Any]:
    return {"part": out.rng.choice(["text", "abstract", "conclusion"]), "line": len(out.claims) + 1}


def _layer(out: Writer, rate: float, where: dict[str, Any], rng: random.Random) -> None:
    """One layer and the routing in it, and the share of its time."""
    layer = rate * rng.uniform(8, 80)
    routing = layer / rng.uniform(0.05, 0.9)
    where = {**where, "op": "moe_layer"}
    a = out.add(layer, "throughput", "rate", "token/s", conditions=where)
    b = out.add(routing, "throughput", "rate", "token/s", conditions={**where, "op": "moe_route"})
    unit = rng.choice(["%", "1"])
    out.add(
        layer / routing, "share", "time_share", unit, kind="share", conditions=where, of=[b],
        baseline=a,
    )  # fmt: skip


def _drafted(
    out: Writer, main: str, rate: float, where: dict[str, Any], unstated: list[str],
    rng: random.Random, most: float,
) -> None:  # fmt: skip
    """Drafting ahead, at most at the rate that the arithmetic of the tokens allows."""
    gamma, acceptance = rng.randint(1, 8), rng.uniform(0.3, 0.95)
    speedup = sum(acceptance**i for i in range(gamma + 1)) * rng.uniform(0.4, 1.0)
    speedup = min(speedup, most / rate)
    where = {**where, "draft_model": "small", "gamma": gamma, "task": "chat"}
    more = {"conditions": where, "unstated": unstated}
    fast = out.add(rate * speedup, "throughput", "rate", "token/s", **more)
    out.add(acceptance, "acceptance", "rate", "%", **more)
    out.add(speedup, "ratio", "speedup", "x", kind="ratio", of=[fast], baseline=main, **more)


def _utilisation(
    out: Writer, machine: Machine, rate: float, where: dict[str, Any], rng: random.Random
) -> None:
    """One piece of work by some implementations, as shares of the dense peak."""
    peak = machine.flop_rates["bf16", "dense"]
    work = peak * rng.uniform(0.7, 0.9) / rate
    where = {k: v for k, v in where.items() if k != "chips"} | {"op": "mla_decode", "chips": 1}
    for name in ("plain", "tiled", "fused"):
        done = rate * rng.uniform(0.2, 1.0)
        more = {"conditions": where, "implementation": name}
        out.add(done * 20, "throughput", "rate", "token/s", **more)
        out.add(work * done / peak, "utilisation", "compute", "%", **more)


def _quality(out: Writer, model: Model) -> None:
    rng = out.rng
    base = rng.uniform(0.3, 0.95)
    where = {"model": model.name, "task": "exam"}
    a = out.add(base, "quality", "accuracy", "%", conditions=where)
    for index in range(rng.randint(1, 3)):
        other = base - rng.uniform(0, 0.05)
        b = out.add(
            other, "quality", "accuracy", "%", conditions={**where, "weights": f"variant {index}"}
        )
        out.add(
            other - base, "quality", "difference", "pp", kind="ratio", of=[b], baseline=a,
            conditions={**where, "weights": f"variant {index}"},
        )  # fmt: skip


def _budget(out: Writer, rng: random.Random) -> None:
    """Times of stages, their sum, and the share of some."""
    times = [rng.uniform(1e-4, 2e-2) for _ in range(rng.randint(2, 4))]
    names = [
        out.add(t, "time", "stage", "ms", conditions={"task": f"stage {i}"})
        for i, t in enumerate(times)
    ]
    total = out.add(
        sum(times), "time", "sum", "ms", kind="ratio", of=names, conditions={"task": "all"}
    )
    out.add(
        sum(times[:1]) / sum(times), "share", "share", "%", kind="share", of=names[:1],
        baseline=total, conditions={"task": "stage 0"},
    )  # fmt: skip


def _orphans(out: Writer, rng: random.Random) -> None:
    """Numbers without what they come from: true of runs that the report does not print."""
    if rng.random() < 0.5:
        out.add(rng.uniform(1.1, 9), "ratio", "speedup", "x", kind="ratio", unstated=["baseline"])
    if rng.random() < 0.3:
        out.add(rng.uniform(0.1, 0.8), "ratio", "reduction", "%", kind="ratio")


def _sheet(machine: Machine) -> specs.Datasheet:
    figures = [
        specs.Figure(
            quantity="flop_rate", metric=metric, dtype=dtype, value=rate / 1e12, unit="TFLOP/s",
            source=0,
        )
        for (dtype, metric), rate in machine.flop_rates.items()
    ]  # fmt: skip
    for quantity, metric, value, unit in (
        ("bandwidth", "peak", machine.bandwidth / 1e9, "GB/s"),
        ("memory", "capacity", machine.capacity / 1e9, "GB"),
        ("power", "tdp", machine.tdp, "W"),
    ):
        figures.append(
            specs.Figure(quantity=quantity, metric=metric, value=value, unit=unit, source=0)  # type: ignore[arg-type]
        )
    return specs.Datasheet(
        schema=1, platform=machine.name, name=machine.name.title(), vendor="Vendor",
        sources=[specs.Source(title="datasheet", url="https://example.org", publisher="Vendor")],
        figures=figures,
    )  # fmt: skip
