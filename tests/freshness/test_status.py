"""Exactly one factor changed makes exactly its records stale, and says so; nothing else does."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zenrepro import sources
from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status
from zenrepro.results.freshness import status
from zenrepro.results.store import Store

CLASS = DeviceClass(platform="cpu", model="Some CPU", memory_bytes=2**34)
ENVIRONMENT = Environment(
    os="Linux", python="3.11.2", driver="570", runtime="13", packages={"torch": "2.9"},
    compilers={"xla": "1"}, power_limit_w=700.0, clocks_mhz={"sm": 1980.0}, temperature_c=40.0,
)  # fmt: skip


class Here(msgspec.Struct):
    backend: str = "torch"
    machine: str = "cpu-lab"
    device_class: DeviceClass = CLASS
    environment: Environment = ENVIRONMENT


PARAMETERS = {"backend": "torch", "device": "cpu", "scale": "small", "seed": 0, "repeats": 3}
DEFAULTS = "backend: str = 'torch'\nscale: str | None = None\nseed: int = 0\nrepeats: int = 3"


@pytest.fixture
def measured(lab, make_notebook):
    """The lab with a fast and a slow record of this machine and one of another."""
    lab.write("notebooks/speed.ipynb", make_notebook(["x = 1"], DEFAULTS))
    made = [
        Record(
            experiment="speed", quantity="time", metric="call", implementation=name,
            conditions={"op": "matmul", "m": 64}, unit="s", status=Status.OK, kind=Kind.MEASURED,
            origin=Origin.OURS, machine=machine, device_class=CLASS, environment=ENVIRONMENT,
            samples=[1.0, 2.0], inputs=lab.inputs(name), parameters=PARAMETERS, seed=0,
        )
        for name, machine in (("torch.fast", "cpu-lab"), ("torch.slow", "cpu-lab"),
                              ("torch.fast", "cpu-other"))
    ]  # fmt: skip
    Store(lab.project.results).put(made)
    return lab


def states(lab, here=None, **given):
    return {
        (item.machine, item.implementation): (item.state, item.reasons)
        for item in status(lab.project, [Here()] if here is None else here, **given)
    }


FAST, SLOW, OTHER = (
    ("cpu-lab", "torch.fast"), ("cpu-lab", "torch.slow"), ("cpu-other", "torch.fast"),
)  # fmt: skip
FRESH = ("fresh", [])


def test_nothing_changed(measured):
    assert states(measured) == {FAST: FRESH, SLOW: FRESH, OTHER: ("elsewhere", [])}
    assert list(states(measured, machine="cpu-other")) == [OTHER]


def test_one_kernel_makes_exactly_its_own_stale(measured):
    measured.edit("kernels/cuda/b.cu", "// b", "// B")
    found = states(measured)
    assert found[SLOW] == ("stale", ["source kernels/cuda/b.cu changed"])
    assert found[FAST] == FRESH
    assert found[OTHER] == ("elsewhere", [])


def test_others_are_at_most_made_from_sources_that_changed(measured):
    measured.edit("lab/shapes.py", "(1, 2)", "(3,)")
    found = states(measured)
    assert found[OTHER] == ("sources changed since", ["source lab/shapes.py changed"])
    assert found[FAST][0] == found[SLOW][0] == "stale"
    # With no device at hand every machine is another one.
    assert {state for state, _ in states(measured, here=[]).values()} == {"sources changed since"}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("os", "macOS", "os was Linux, is macOS"),
        ("python", "3.12.0", "python was 3.11.2, is 3.12.0"),
        ("driver", "580", "driver was 570, is 580"),
        ("driver", None, "driver was 570, is unknown"),
        ("runtime", "12", "runtime was 13, is 12"),
        ("packages", {"torch": "2.10"}, "torch was 2.9, is 2.10"),
        ("packages", {"torch": "2.9", "triton": "3"}, "triton was absent, is 3"),
        ("compilers", {"xla": "2"}, "xla was 1, is 2"),
        ("power_limit_w", 500.0, "power_limit_w was 700.0, is 500.0"),
    ],
)
def test_the_machines_software(measured, field, value, says):
    now = Here(environment=msgspec.structs.replace(ENVIRONMENT, **{field: value}))
    found = states(measured, [now])
    assert found[FAST] == found[SLOW] == ("stale", [says])
    assert found[OTHER] == ("elsewhere", [])


@pytest.mark.parametrize(
    ("field", "value"),
    [("clocks_mhz", {}), ("temperature_c", 90.0), ("throttle_reasons", ["power"]),
     ("other_load", "much"), ("idle_power_w", 3.0), ("packages", {})],
)  # fmt: skip
def test_the_machines_mood_makes_nothing_stale(measured, field, value):
    now = Here(environment=msgspec.structs.replace(ENVIRONMENT, **{field: value}))
    assert states(measured, [now])[FAST] == FRESH


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "Another"), ("platform", "gpu"), ("memory_bytes", 1), ("count", 2),
     ("form_factor", "SXM")],
)  # fmt: skip
def test_the_device_class(measured, field, value):
    now = Here(device_class=msgspec.structs.replace(CLASS, **{field: value}))
    (reason,) = states(measured, [now])[FAST][1]
    assert reason.startswith(f"device {field} was ")


def test_another_backend_on_the_same_machine_is_not_compared(measured):
    other = Here(backend="jax", environment=Environment(os="Linux", packages={"jax": "1"}))
    assert states(measured, [Here(), other])[FAST] == FRESH


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (DEFAULTS.replace("seed: int = 0", "seed: int = 1"), "parameter seed was 0, is 1"),
        (DEFAULTS.replace("= 3", "= 4"), "parameter repeats was 3, is 4"),
    ],
)
def test_a_parameters_default(measured, make_notebook, cell, says):
    measured.write("notebooks/speed.ipynb", make_notebook(["x = 1"], cell))
    assert states(measured)[FAST] == ("stale", [says])


def test_a_parameter_that_comes_or_goes(measured, make_notebook):
    measured.write(
        "notebooks/speed.ipynb", make_notebook(["x = 1"], DEFAULTS + "\nwarm: bool = True")
    )
    changed = "source notebooks/speed.ipynb changed"
    assert states(measured)[FAST] == ("stale", [changed, "parameter warm is new, True"])
    gone = DEFAULTS.replace("\nrepeats: int = 3", "")
    measured.write("notebooks/speed.ipynb", make_notebook(["x = 1"], gone))
    assert states(measured)[FAST] == ("stale", [changed, "parameter repeats was 3, is gone"])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("smoke", FRESH), ("small", FRESH), ("full", ("stale", ["scale was small, is full"]))],
)
def test_a_larger_scale_serves_a_smaller_one(measured, scale, expected):
    assert states(measured, scale={"cpu-lab": scale})[FAST] == expected


def test_what_a_larger_run_left_of_a_smaller_one_is_not_stale(measured):
    store = Store(measured.project.results)
    first = store.load("cpu-lab")[0]
    larger = msgspec.structs.replace(
        first, conditions={"op": "matmul", "m": 4096}, parameters=PARAMETERS | {"scale": "full"}
    )
    assert states(measured, scale={"cpu-lab": "full"})[SLOW][0] == "stale"
    store.put([larger])
    assert states(measured, scale={"cpu-lab": "full"})[SLOW] == FRESH


def test_what_could_not_be_attempted_does_not_depend_on_parameters(measured):
    store = Store(measured.project.results)
    first = store.load("cpu-lab")[0]
    store.put([
        msgspec.structs.replace(first, samples=[], status=Status.UNSUPPORTED, reason="no GPU",
                                flags=["not attempted"], parameters=PARAMETERS | {"seed": 7})
    ])  # fmt: skip
    assert states(measured, scale={"cpu-lab": "full"})[FAST] == FRESH
    measured.edit("kernels/cuda/a.cu", "// a", "// z")
    assert states(measured)[FAST][0] == "stale"


def test_an_experiment_that_the_project_no_longer_lists(measured):
    from zenrepro import paths

    measured.write("zenrepro.toml", 'title = "t"\n')
    measured.project = paths.load(measured.root)
    assert states(measured)[FAST] == ("stale", ["zenrepro.toml no longer lists the experiment"])


def test_a_failed_record_is_tried_again(measured):
    store = Store(measured.project.results)
    first = store.load("cpu-lab")[0]
    store.put([msgspec.structs.replace(first, samples=[], status=Status.FAILED, reason="it broke")])
    assert states(measured)[FAST] == ("stale", ["it failed before"])


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.sets(st.sampled_from(["source", "row", "kernel", "data", "device", "environment"])))
def test_each_factor_is_told_apart_from_every_other(measured, factors):
    """Any set of factors: exactly they are given as reasons, and none is left out."""
    was = {
        name: (measured.root / name).read_text()
        for name in ("lab/ops/fast.py", "lab/ops/table.py", "kernels/cuda/a.cu", "data/tasks/t.txt")
    }
    try:
        now, expected = Here(), []
        for factor, name, old, new, says in (
            ("kernel", "kernels/cuda/a.cu", "// a", "// z", "source kernels/cuda/a.cu"),
            ("source", "lab/ops/fast.py", "1", "9", "source lab/ops/fast.py"),
            ("row", "lab/ops/table.py", '"torch.fast",', '"torch.fast", z=1,', "row torch.fast"),
            ("data", "data/tasks/t.txt", "hello", "bye", "data data/tasks/t.txt"),
        ):
            if factor in factors:
                measured.edit(name, old, new)
                expected.append(says)
        if "device" in factors:
            now.device_class = msgspec.structs.replace(CLASS, model="New")
            expected.append("device model")
        if "environment" in factors:
            now.environment = msgspec.structs.replace(ENVIRONMENT, driver="1")
            expected.append("driver")
        state, reasons = states(measured, [now])[FAST]
        assert state == ("stale" if factors else "fresh")
        assert len(reasons) == len(expected)
        assert all(any(says in reason for reason in reasons) for says in expected)
        slow = states(measured, [now])[SLOW]
        assert (slow[0] == "stale") == bool(factors & {"data", "device", "environment"})
    finally:
        for name, text in was.items():
            measured.write(name, text)


def test_the_evidence_tower_and_the_command_line_are_no_sources():
    """What a session of this package depends on has none of them, and all that measures."""
    from zenrepro import paths

    project = paths.load(sources.files.PACKAGE.parent)
    found = sources.inputs(project, ["zenrepro.experiments.session"], [], []).sources
    towers = ("results", "stats", "audit", "report", "cli", "setup")
    assert not [name for name in found if name.split("/")[1] in towers]
    assert "zenrepro/experiments/session.py" in found
    assert "zenrepro/experiments/point.py" in found
    assert "zenrepro/hardware/__init__.py" in found


def test_an_item_is_one_line(measured):
    measured.edit("kernels/cuda/a.cu", "// a", "// z")
    items = status(measured.project, [Here()])
    assert [item.line() for item in items if item.state == "stale"] == [
        "stale: cpu-lab speed torch.fast time/call m=64 op=matmul: source kernels/cuda/a.cu changed"
    ]
    assert all("\n" not in item.line() for item in items)
    several = msgspec.structs.replace(items[0], state="stale", reasons=list("abcde"))
    assert several.line().endswith(": a; b; c; and 2 more")


@pytest.mark.parametrize(
    ("ended", "state"),
    [(Status.OK, FRESH), (Status.FAILED, ("stale", ["it failed before"]))],
)
def test_a_notebook_that_ran_through_is_not_measured_again(measured, ended, state):
    ok = ended is Status.OK
    noted = Record(
        experiment="speed", quantity="count", metric="failed_cells",
        implementation="torch.notebook", conditions={}, unit="count", status=ended,
        kind=Kind.COUNTED, origin=Origin.OURS, machine="cpu-lab", device_class=CLASS,
        environment=ENVIRONMENT, samples=[0.0] if ok else [], reason=None if ok else "cell 3: no",
        parameters={"backend": "torch"},
    )  # fmt: skip
    Store(measured.project.results).put([noted])
    assert states(measured)["cpu-lab", "torch.notebook"] == state
