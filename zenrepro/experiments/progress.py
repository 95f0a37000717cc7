"""Where a session's progress goes: to the run that started the notebook, else to its reader."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from zenrepro.experiments import events


class Progress:
    """Appends events to the file that ``ZENREPRO_EVENTS`` names, or prints them as lines."""

    def __init__(self) -> None:
        name = os.environ.get(events.VARIABLE)
        self._file = Path(name) if name else None
        self._lines = Lines()

    def emit(self, event: events.Event) -> None:
        """Tell one event at once: the process may die in the next moment."""
        if self._file is not None:
            with self._file.open("ab") as stream:
                stream.write(msgspec.json.encode(event) + b"\n")
            return
        for line in self._lines.of(event):
            print(line, flush=True)


class Lines:
    """Events in words, one plain line each where a reader needs one."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def of(self, event: events.Event) -> list[str]:
        """The lines for one event."""
        if isinstance(event, events.Opened):
            lines = [
                f"{event.experiment} on {event.machine}, {event.backend} {event.device}"
                f", scale {event.scale}"
            ]
            if event.missing is not None:
                lines.append(f"  {event.backend} is not here: {event.missing}")
            return lines
        if isinstance(event, events.Planned):
            todo = len(event.estimates_s)
            lines = [f"  {todo} of {event.total} points to measure{_estimate(event)}"]
            if event.edited is not None:
                lines.append(f"  edited notebook, so its records are drafts: {event.edited}")
            return lines
        if isinstance(event, events.Waiting):
            return [f"  waiting: another run is measuring on {event.device}"]
        if isinstance(event, events.Measuring):
            if not event.rounds:
                self._names[event.index] = event.name
            return []
        if isinstance(event, events.Measured):
            name = self._names.pop(event.index, "")
            outcome = (
                "" if event.status == "ok" else f"  {event.status}: {event.reason or 'flagged'}"
            )
            return [
                f"  [{event.index + 1}/{event.total}] {name}  {duration(event.seconds)}{outcome}"
            ]
        counts = ", ".join(f"{count} {status}" for status, count in event.statuses.items())
        return [f"  records: {counts or 'none'}"]


def _estimate(event: events.Planned) -> str:
    known = [seconds for seconds in event.estimates_s if seconds is not None]
    unknown = len(event.estimates_s) - len(known)
    if not event.estimates_s:
        return ""
    if not known:
        return ", never measured here before"
    more = f" and {unknown} never measured" if unknown else ""
    return f", about {duration(sum(known))}{more}"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
