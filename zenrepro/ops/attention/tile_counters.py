"""Counters by which the blocks of a persistent kernel draw their tiles and find their last.

A launch finds its row of them at zero and leaves it at zero, so that none pays for clearing it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST = 128  # counters a launch has
_ROWS = 1 << 14  # 8 MiB


class _Slots:
    """The rows of a device.

    Launches on one stream follow each other and share a row; a captured launch may be replayed
    anywhere, so it keeps a row of its own.
    """

    def __init__(self, device: int) -> None:
        import torch

        self.rows = torch.zeros(_ROWS, MOST, dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)
        self.used = 0
        self.of_stream: dict[int, torch.Tensor] = {}

    def take(self) -> torch.Tensor | None:
        if self.used == _ROWS:
            return None
        self.used += 1
        return self.rows[self.used - 1]


_slots: dict[int, _Slots] = {}
_lock = threading.Lock()  # two threads that launch at once must not be given one row


def take(device: int, stream: int) -> torch.Tensor:
    """int32 [MOST], zeros, that no other launch uses at the same time as one on this stream."""
    import torch

    capturing = torch.cuda.is_current_stream_capturing()
    with _lock:
        if device not in _slots and not capturing:
            _slots[device] = _Slots(device)
        slots = _slots.get(device)
        if slots is not None:
            if not capturing and stream in slots.of_stream:
                return slots.of_stream[stream]
            row = slots.take()
            if row is not None:
                if not capturing:
                    slots.of_stream[stream] = row
                return row
    return torch.zeros(MOST, dtype=torch.int32, device=device)
