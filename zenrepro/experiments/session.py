"""The session behind a notebook: validates, resumes, measures, records.

A notebook's first cell after its ``parameters`` cell is::

    from zenrepro.experiments import attention, session
    run = session.start("attention", globals())

and later ``run.measure(attention.points(run))``. ``points`` may read ``run.parameters``,
``run.hardware`` and ``run.scale``; it must touch ``run.backend`` only inside a point's ``measure``,
because a missing framework leaves a session without a backend whose points become records with
the reason.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from zenrepro import backends, measure, params, paths, sources
from zenrepro import hardware as hardware_module
from zenrepro.backends.turns import forgotten
from zenrepro.conditions import canonical
from zenrepro.errors import InputError
from zenrepro.experiments import drafts, events, freshness, provenance
from zenrepro.experiments.durations import Durations
from zenrepro.experiments.point import (
    UNITS,
    Parameters,
    Point,
    Prepared,
    Result,
    default_scale,
    together,
)
from zenrepro.experiments.progress import Progress
from zenrepro.experiments.ready import Ready, free_name
from zenrepro.experiments.table import Table
from zenrepro.measure import Sampled
from zenrepro.ops.entry import UnsupportedError
from zenrepro.paths import Project
from zenrepro.records import Inputs, Kind, Record, Status, check
from zenrepro.results.store import Store

if TYPE_CHECKING:
    from zenrepro.backends import Backend
    from zenrepro.hardware import Hardware

_exit = os._exit

__all__ = ["Parameters", "Point", "Prepared", "Result", "Session", "start"]


def start(experiment: str, given: Mapping[str, Any], project: Project | None = None) -> Session:
    """Validate the parameters and probe the hardware; imports no framework.

    ``given`` is the notebook's ``globals()`` or a mapping of parameters. Raises InputError for an
    unknown experiment, an unknown or ill-typed parameter, or a device that is not there. A missing
    framework raises nothing: the session's points then become records with that reason.
    """
    project = project or paths.find()
    notebook = project.notebook(experiment)
    if str(project.root) not in sys.path:
        sys.path.insert(0, str(project.root))
    module = importlib.import_module(project.experiments[experiment].module)
    values = _parameters(experiment, module, notebook, given)
    hardware, missing = place(values.backend, values.device, project)
    resolved = msgspec.structs.replace(
        values,
        device=hardware.device,
        scale=values.scale or default_scale(hardware.device, hardware.device_class),
    )
    return Session(experiment, module, project, resolved, hardware, missing)


def place(backend: str, device: str | None, project: Project) -> tuple[Hardware, str | None]:
    """The device to measure on, and why the backend's framework is missing (None: it is there).

    Imports no framework. Where it is missing, the machine is told by what another backend sees.
    Raises InputError for a device that is not there, and where no framework is installed at all.
    """
    device = hardware_module.resolve(backend, device)
    missing = hardware_module.absent(backend, "cpu")
    if missing is None:
        return hardware_module.probe(backend, device, project), None
    for other in hardware_module.BACKENDS:
        if hardware_module.absent(other, "cpu") is None:
            seen = hardware_module.probe(other, None, project)
            environment = msgspec.structs.replace(seen.environment, packages={}, compilers={})
            return msgspec.structs.replace(
                seen, backend=backend, device=device, environment=environment
            ), missing
    raise InputError(
        f"none of {', '.join(hardware_module.BACKENDS)} is installed in this environment; "
        "install one to run experiments, or use `zenrepro report` on the results there are"
    )


class Session:
    """One experiment on one backend and device: resumes, measures, records.

    ``missing`` says why there is no backend, None where there is one.
    ``scale`` and ``seed`` repeat the parameters for brevity.
    """

    def __init__(
        self,
        experiment: str,
        module: ModuleType,
        project: Project,
        parameters: Any,
        hardware: Hardware,
        missing: str | None,
    ) -> None:
        self.experiment = experiment
        self.module = module
        self.project = project
        self.parameters = parameters
        self.scale: str = parameters.scale
        self.seed: int = parameters.seed
        self.hardware = hardware
        self.missing = missing
        self._backend: Backend | None = None
        self._commit = provenance.commit(project)
        self._stores = drafts.stores(project, None)
        self._durations = Durations(project, experiment, parameters.backend, hardware.machine)
        self._seen: dict[tuple[Any, ...], Record] = {}
        self._hashed: dict[tuple[tuple[str, ...], ...], Inputs] = {}
        self._force = os.environ.get("ZENREPRO_FORCE") == "1"
        self._run_started = os.environ.get("ZENREPRO_RUN_STARTED", "")
        self.progress = Progress()
        self.progress.emit(
            events.Opened(
                experiment=experiment,
                backend=parameters.backend,
                device=hardware.device,
                machine=hardware.machine,
                scale=self.scale,
                missing=missing,
            )
        )

    @property
    def backend(self) -> Backend:
        """The backend, opened on first use. Raises Unavailable where its framework is missing."""
        if self._backend is None:
            if self.missing is not None:
                raise backends.Unavailable(self.missing)
            self._backend = backends.open(self.parameters.backend, self.hardware.device)
        return self._backend

    def _open(self) -> bool:
        """Whether the backend opens; where not, the session goes on without it."""
        try:
            return self.backend is not None
        except backends.Unavailable as error:
            self.missing = provenance.one_line(error).removeprefix("Unavailable: ")
            return False

    def plan(self, points: Iterable[Point]) -> list[tuple[Point, str | None]]:
        """Each point with why it must be measured, or None where its records are fresh.

        Raises ValueError when two points would write the same record.
        """
        stored = {r.identity(): r for store in self._stores for r in self._load(store)}
        planned: list[tuple[Point, str | None]] = []
        taken: set[tuple[Any, ...]] = set()
        for point in points:
            shells = self._shells(point)
            for shell in shells:
                if shell.identity() in taken:
                    raise ValueError(
                        f"two points write {shell.quantity}/{shell.metric} of "
                        f"{point.implementation} under {shell.conditions}"
                    )
                taken.add(shell.identity())
            found = [stored.get(shell.identity()) for shell in shells]
            self._seen |= {r.identity(): r for r in found if r is not None}
            planned.append((point, self._why(point, shells, found)))
        return planned

    def measure(self, points: Iterable[Point]) -> list[Record]:
        """Measure what is missing or stale; return the records of all points, in their order.

        Points of one group are prepared one by one, then sampled in turn. Records are stored before
        the next group, or point without one, starts. A point that raises becomes ``failed``
        records, and the others are measured; KeyboardInterrupt stops at once.
        """
        edited = drafts.edited(
            self.project,
            self.project.notebook(self.experiment),
            set(self.parameters.__struct_fields__),
        )
        self._stores = drafts.stores(self.project, edited)
        planned = self.plan(points)
        if any(why and self._reason(p) is None for p, why in planned) and not self._open():
            planned = self.plan([point for point, _ in planned])
        for point, why in planned:
            if why is not None and self._reason(point) is not None:
                self._store(self._not_attempted(point))
        todo = [point for point, why in planned if why and self._reason(point) is None]
        self._announce(len(planned), todo, edited)
        if todo:
            with self._device() as waited:
                if waited:  # the run before may have measured some of these
                    again = {id(point): why for point, why in self.plan(todo)}
                    todo = [point for point in todo if again[id(point)]]
                    self._announce(len(planned), todo, edited)
                index = 0
                for group in together(todo, alone={id(p) for p in todo if self._split(p)}):
                    self._measure(group, index, len(todo))
                    index += len(group)
        records = [self._seen[shell.identity()] for p, _ in planned for shell in self._shells(p)]
        self.progress.emit(events.Done.of(records))
        return records

    def estimate(self, point: Point) -> float | None:
        """Seconds that the point takes, judged by earlier runs; None where there were none."""
        if self._reason(point) is not None:
            return 0.0
        return self._durations.estimate(self._durations.key(point, self.scale))

    def records(self) -> list[Record]:
        """The records that this session measured or found fresh."""
        return list(self._seen.values())

    def table(self) -> Table:
        """The session's records as a table, for a notebook's cell."""
        return Table(self.records())

    # -- one point ---------------------------------------------------------------------------

    def _measure(self, points: list[Point], index: int, total: int) -> None:
        """Prepare each point, sample those that are ready in turn, store the records of all."""
        ready: dict[str, Ready] = {}
        for place, point in enumerate(points, start=index):
            one = Ready(place, point, self._shells(point))
            self.progress.emit(
                events.Measuring(
                    index=place,
                    total=total,
                    name=one.name,
                    estimate_s=self.estimate(point),
                    if_it_dies=one.shells,
                )
            )
            try:
                done = point.prepare() if point.prepare else None
                if isinstance(done, Prepared):
                    one.take(done)
                    ready[free_name(point.implementation, ready)] = one
                    continue
                if done is None:
                    done = point.measure() if point.measure else []
                records = self._fill(one.shells, done)
            except Exception as error:  # noqa: BLE001  (recorded; the others go on)
                records = self._failed(one.shells, forgotten(error))
                if self._lost():
                    self._leave([one], records, total)
            self._store(records)
            self._ended(one, records, total)
        if ready:
            self._sample(ready, total)

    def _sample(self, ready: dict[str, Ready], total: int) -> None:
        """Sample calls that passed their gates, in turn where there are several."""
        if len(ready) > 1:
            self._announce_rounds(ready, total)
        began = time.perf_counter()
        calls = {name: one.call for name, one in ready.items() if one.call is not None}
        every = list(ready.values())
        sampled: dict[str, Sampled] = {}
        failure: Exception | None = None
        try:
            sampled = measure.sample_together(self.backend, calls, scale=self.scale)
        except Exception as error:  # noqa: BLE001  (recorded; the points behind go on)
            failure = forgotten(error)
        bad = failure is not None or any(one.status is Status.FAILED for one in sampled.values())
        if bad and self._lost():
            self._leave(every, self._lost_together(every), total)
        each = (time.perf_counter() - began) / len(ready)
        stored = [
            self._failed(one.shells, failure) if failure else self._finished(one, sampled[name])
            for name, one in ready.items()
        ]
        for one, records in zip(every, stored, strict=True):
            one.sampled_s = each
            self._store(records)
        for one, records in zip(every, stored, strict=True):  # all are stored by now
            self._ended(one, records, total)

    @staticmethod
    def _lost_together(points: list[Ready]) -> list[Record]:
        """The device went while these were sampled: of several nobody knows whose fault it is."""
        flags = [freshness.DIED_TOGETHER] if len(points) > 1 else []
        reason = "the device was lost while it was sampled" + (" in turn" if flags else "")
        return [
            msgspec.structs.replace(shell, reason=reason, flags=flags)
            for one in points
            for shell in one.shells
        ]

    def _finished(self, one: Ready, seen: Sampled) -> list[Record]:
        seen.reason = seen.reason and provenance.without_places(seen.reason)
        try:
            return self._fill(one.shells, one.finish(seen) if one.finish else [])
        except Exception as error:  # noqa: BLE001  (recorded; the others go on)
            return self._failed(one.shells, forgotten(error))

    def _lost(self) -> bool:
        return self._backend is not None and self._backend.lost()

    def _leave(self, points: list[Ready], records: list[Record], total: int) -> None:
        """End a process whose device answers no more: whatever came next would fail for that.

        A run starts another process, which goes on behind these points.
        """
        self._store(records)
        self.progress.emit(
            events.Measuring(
                index=points[0].index,
                total=total,
                name=", ".join(one.name for one in points),
                estimate_s=None,
                if_it_dies=records,
                rounds=len(points),
            )
        )
        if events.VARIABLE in os.environ:
            sys.stdout.flush()
            _exit(70)
        raise RuntimeError(
            "a kernel's fault ended the device's context in this process; restart the kernel and "
            "run again: what was measured is kept, and what comes behind goes on"
        )

    def _announce_rounds(self, ready: dict[str, Ready], total: int) -> None:
        first = next(iter(ready.values()))
        self.progress.emit(
            events.Measuring(
                index=first.index,
                total=total,
                name=f"{', '.join(ready)} in turn, {first.conditions}",
                estimate_s=None,
                if_it_dies=[
                    msgspec.structs.replace(shell, flags=[freshness.DIED_TOGETHER])
                    for one in ready.values()
                    for shell in one.shells
                ],
                rounds=len(ready),
            )
        )

    def _ended(self, one: Ready, records: list[Record], total: int) -> None:
        """Tell that a point whose records are stored ended, and remember how long it took."""
        self._durations.put(self._durations.key(one.point, self.scale), one.seconds)
        self.progress.emit(events.Measured.of(one.index, total, records, one.seconds))

    def _shells(self, point: Point) -> list[Record]:
        """What the point would write if it died now: failed records, complete but for a reason."""
        conditions = canonical(point.conditions, f"{self.experiment}: {point.implementation}")
        modules = (self.module.__name__, *point.modules)
        return [
            Record(
                experiment=self.experiment,
                quantity=quantity,
                metric=metric,
                implementation=point.implementation,
                conditions=conditions,
                unit=UNITS.get(quantity, "1"),
                status=Status.FAILED,
                kind=Kind.MEASURED,
                origin=point.origin,
                machine=self.hardware.machine,
                device_class=self.hardware.device_class,
                environment=provenance.with_packages(self.hardware.environment, point.packages),
                baseline=point.baseline,
                inputs=self._inputs(modules, tuple(point.rows), tuple(point.data)),
                parameters=msgspec.to_builtins(self.parameters),
                seed=self.seed,
                commit=self._commit[0],
                dirty=self._commit[1],
                started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
            for quantity, metric in point.produces
        ]

    def _fill(self, shells: list[Record], results: list[Result]) -> list[Record]:
        by_name = {(result.quantity, result.metric): result for result in results}
        unannounced = set(by_name) - {(shell.quantity, shell.metric) for shell in shells}
        if unannounced or len(by_name) != len(results):
            names = ", ".join("/".join(n) for n in sorted(unannounced)) or "one result twice"
            raise ValueError(f"the point returned {names}, which its `produces` does not list")
        records = []
        for shell in shells:
            result = by_name.get((shell.quantity, shell.metric))
            if result is None:
                reason = "the point returned no result for it"
                records.append(msgspec.structs.replace(shell, reason=reason))
                continue
            environment = shell.environment
            if result.state is not None:
                environment = provenance.with_state(environment, result.state)
            record = msgspec.structs.replace(
                shell,
                unit=result.unit,
                samples=[float(sample) for sample in result.samples],
                status=result.status,
                reason=result.reason,
                kind=result.kind,
                work=result.work,
                method=result.method,
                flags=list(result.flags),
                environment=environment,
            )
            records.append(check(record, f"{shell.implementation} {shell.quantity}"))
        return records

    def _failed(self, shells: list[Record], error: Exception) -> list[Record]:
        status, reason = Status.FAILED, provenance.one_line(error)
        if isinstance(error, UnsupportedError):
            status, reason = Status.UNSUPPORTED, " ".join(str(error).split()) or reason
        elif self._backend is not None and self._backend.is_out_of_memory(error):
            status = Status.OOM
        return [msgspec.structs.replace(s, status=status, reason=reason) for s in shells]

    # -- points that cannot be measured --------------------------------------------------------

    def _reason(self, point: Point) -> tuple[Status, str] | None:
        if self.missing is not None:
            return Status.UNSUPPORTED, self.missing
        return point.unavailable

    def _not_attempted(self, point: Point) -> list[Record]:
        status, reason = self._reason(point) or (Status.SKIPPED, "not attempted")
        return [
            msgspec.structs.replace(
                shell, status=status, reason=reason, flags=[freshness.NOT_ATTEMPTED]
            )
            for shell in self._shells(point)
        ]

    # -- freshness ---------------------------------------------------------------------------

    def _why(self, point: Point, shells: list[Record], found: list[Record | None]) -> str | None:
        """Why the point must be measured (or its reason written), None where all is fresh."""
        reason = self._reason(point)
        for shell, record in zip(shells, found, strict=True):
            if record is None:
                return "missing"
            if reason is not None:
                # A framework that went missing takes no measured number away.
                kept = self.missing is not None and record.samples
                if not kept and (record.status, record.reason) != reason:
                    return f"{reason[0]}: {reason[1]}"
                continue
            if self._run_started and (record.started or "") >= self._run_started:
                if freshness.DIED_TOGETHER in record.flags:
                    return "its process died while several were sampled in turn: now by itself"
                continue  # written in this very run, before its kernel died
            if self._force:
                return "forced"
            why = freshness.why_stale(record, shell, self.parameters.selecting)
            if why is not None:
                return why
        return None

    def _split(self, point: Point) -> bool:
        """Whether the point is to be sampled by itself: its process died in rounds in this run."""
        if not self._run_started:
            return False
        found = [self._seen.get(shell.identity()) for shell in self._shells(point)]
        return any(
            record is not None
            and freshness.DIED_TOGETHER in record.flags
            and (record.started or "") >= self._run_started
            for record in found
        )

    def _inputs(
        self, modules: tuple[str, ...], rows: tuple[str, ...], data: tuple[str, ...]
    ) -> Inputs:
        key = (modules, rows, data)
        if key not in self._hashed:
            others = [name for name in backends.NAMES if name != self.parameters.backend]
            self._hashed[key] = sources.inputs(
                self.project,
                modules,
                rows,
                data,
                without=[f"{backends.__name__}.{name}" for name in others],
            )
        return self._hashed[key]

    def _load(self, store: Store) -> list[Record]:
        if self.hardware.machine not in store.machines():
            return []
        return store.load(self.hardware.machine, self.experiment)

    def _store(self, records: list[Record]) -> None:
        self._stores[-1].put(records)
        self._seen |= {record.identity(): record for record in records}

    # -- progress and the device ---------------------------------------------------------------

    def _announce(self, total: int, todo: list[Point], edited: str | None) -> None:
        self.progress.emit(
            events.Planned(
                total=total, estimates_s=[self.estimate(point) for point in todo], edited=edited
            )
        )

    @contextmanager
    def _device(self) -> Iterator[bool]:
        """Hold the device's lock; yields whether another run held it before."""
        with ExitStack() as held:
            waited = False
            try:
                held.enter_context(hardware_module.lock(self.hardware, wait=False))
            except InputError:
                waited = True
                self.progress.emit(events.Waiting(device=self.hardware.device))
                held.enter_context(hardware_module.lock(self.hardware, wait=True))
            yield waited


def _parameters(
    experiment: str,
    module: ModuleType,
    notebook: Path,
    given: Mapping[str, Any],
) -> Any:
    """The experiment's ``Parameters`` from what the notebook holds. Raises InputError."""
    struct: type[Any] = module.Parameters
    declared = params.of_struct(struct)
    names = {parameter.name for parameter in declared}
    place = f"experiment {experiment}"
    params.agree(params.read(notebook), declared, str(notebook))
    if "__name__" in given:  # a notebook's globals: everything else in it is the notebook's own
        values = {name: given[name] for name in names if name in given}
    else:
        values = dict(given)
    params.refuse_unknown({*values, *params.assigned(drafts.history(), names)}, declared, place)
    return params.build(struct, params.validate(declared, values, place), place)
