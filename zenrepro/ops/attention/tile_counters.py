"""Counters by which the blocks of a persistent kernel draw their tiles.

A launch finds its pair at zero and leaves it at zero, so that no launch pays for clearing it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PAIRS = 1 << 16  # 512 KiB


class _Slots:
    """The pairs of a device.

    Launches on one stream follow each other and share a pair; a captured launch may be replayed
    anywhere, so it keeps a pair of its own.
    """

    def __init__(self, device: int) -> None:
        import torch

        self.pairs = torch.zeros(_PAIRS, 2, dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)
        self.used = 0
        self.of_stream: dict[int, torch.Tensor] = {}

    def take(self) -> torch.Tensor | None:
        if self.used == _PAIRS:
            return None
        self.used += 1
        return self.pairs[self.used - 1]


_slots: dict[int, _Slots] = {}


def take(device: int, stream: int) -> torch.Tensor:
    """int32 [2], zeros, that no other launch uses at the same time as one on this stream."""
    import torch

    capturing = torch.cuda.is_current_stream_capturing()
    if device not in _slots and not capturing:
        _slots[device] = _Slots(device)
    slots = _slots.get(device)
    if slots is None:
        return torch.zeros(2, dtype=torch.int32, device=device)
    if not capturing and stream in slots.of_stream:
        return slots.of_stream[stream]
    pair = slots.take()
    if pair is None:
        return torch.zeros(2, dtype=torch.int32, device=device)
    if not capturing:
        slots.of_stream[stream] = pair
    return pair
