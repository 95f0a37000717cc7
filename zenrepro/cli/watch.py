"""Show a running notebook's progress: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import msgspec

from zenrepro.experiments import events
from zenrepro.experiments.progress import Lines, duration

_POLL_S = 0.1
_SILENCE_S = 30.0


class Estimate:
    """The time left, from what each point took before and what the others take now."""

    def __init__(self, plan: events.Planned) -> None:
        self._estimates_s = plan.estimates_s
        self._took: list[float] = []

    def ended(self, event: events.Measured) -> float | None:
        """A point ended; returns the seconds left, None after the last one."""
        self._took.append(event.seconds)
        left = self._estimates_s[event.index + 1 :]
        if not left:
            return None
        usual = sum(self._took) / len(self._took)
        return sum(usual if estimate is None else estimate for estimate in left)


class Watch:
    """Follows the file of events in a thread; keeps what a run must know when a kernel dies."""

    def __init__(self, path: Path, stream: TextIO | None = None) -> None:
        self.path = path
        self.opened: events.Opened | None = None
        self.planned: events.Planned | None = None
        self.measuring: events.Measuring | None = None
        self.measured = 0
        self.statuses: dict[str, int] = {}
        stream = stream or sys.stderr
        self._show: Callable[[events.Event | None], None]
        self._close: Callable[[], None]
        self._show, self._close = _bar(stream) if stream.isatty() else _plain(stream)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._decoder = msgspec.json.Decoder(events.Event)

    def __enter__(self) -> Self:
        self.path.write_bytes(b"")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._close()
        self.path.unlink(missing_ok=True)

    def _follow(self) -> None:
        with self.path.open("rb") as stream:
            rest = b""
            while True:
                last = self._stop.is_set()
                *lines, rest = (rest + stream.read()).split(b"\n")
                for line in lines:
                    self._take(self._decoder.decode(line))
                if last:
                    return
                self._show(None)
                self._stop.wait(_POLL_S)

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.Opened):
            self.opened = event
        elif isinstance(event, events.Planned):
            self.planned = event
        elif isinstance(event, events.Measuring):
            self.measuring = event
        elif isinstance(event, events.Measured):
            self.measuring = None
            self.measured += 1
        elif isinstance(event, events.Done):
            for status, count in event.statuses.items():
                self.statuses[status] = self.statuses.get(status, 0) + count
        self._show(event)


def _plain(stream: TextIO) -> tuple[Callable[[events.Event | None], None], Callable[[], None]]:
    """Lines as points end; a sign of life when one takes long."""
    lines = Lines()
    state: dict[str, Any] = {"at": time.monotonic(), "now": None, "since": 0.0, "estimate": None}

    def show(event: events.Event | None) -> None:
        now = time.monotonic()
        if event is None:
            if state["now"] is not None and now - state["at"] > _SILENCE_S:
                took = duration(now - state["since"])
                print(f"  … {state['now']}: running for {took}", file=stream, flush=True)
                state["at"] = now
            return
        estimate: Estimate | None = state["estimate"]
        text = lines.of(event)
        if isinstance(event, events.Planned):
            state["estimate"] = Estimate(event)
        elif isinstance(event, events.Measuring):
            state["now"], state["since"] = event.name, now
        elif isinstance(event, events.Measured):
            state["now"] = None
            left = estimate.ended(event) if estimate else None
            if left is not None and left >= 1:
                text[-1] += f"  (about {duration(left)} left)"
        for line in text:
            print(line, file=stream, flush=True)
            state["at"] = now

    return show, lambda: None


def _bar(stream: TextIO) -> tuple[Callable[[events.Event | None], None], Callable[[], None]]:
    """One live line: what runs, how far, how long, how long still."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=stream)
    progress = Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        refresh_per_second=2,  # drawing takes time that a measurement on the CPU would feel
    )
    lines = Lines()
    state: dict[str, Any] = {"task": None, "estimate": None}

    def show(event: events.Event | None) -> None:
        if event is None:
            return
        for line in lines.of(event):
            if not isinstance(event, events.Measured) or event.status != "ok":
                progress.console.print(escape(line), highlight=False, soft_wrap=True)
        if isinstance(event, events.Planned) and event.estimates_s:
            progress.start()
            state["estimate"] = Estimate(event)
            if state["task"] is not None:
                progress.remove_task(state["task"])
            state["task"] = progress.add_task("", total=len(event.estimates_s), left="")
        task, estimate = state["task"], state["estimate"]
        if task is None:
            return
        if isinstance(event, events.Measuring):
            progress.update(task, description=escape(event.name), total=event.total)
        elif isinstance(event, events.Measured):
            left = estimate.ended(event)
            shown = "" if left is None else f"about {duration(left)} left"
            progress.update(task, advance=1, left=shown)

    return show, progress.stop
