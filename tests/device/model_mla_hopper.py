"""Cycles a page of latent decode on Hopper by a model of its pipeline, for each order of work.

    python tests/device/model_mla_hopper.py

Needs no GPU. One SM: copies of 8 KiB chunks (a latency, then a rate), two page buffers, the tensor
cores as a server that takes turns between two warpgroups' queues, softmax and rescaling as plain
delays. wgmma at its published rate (64 x 64 x 16 in 32 cycles, 64 x 256 x 16 in 128); the delays
are estimates from instruction counts. What it is for: to compare orders, not to predict times.

What an H200 said of it: the eager order, which goes by whichever of the next page's chunks and the
other warpgroup's P comes first, was slower than the fixed one by 8 to 22 us at every shape in bf16;
the rendezvous that it needs is not in here. So it is gone from the kernel. Nor is it here that
copies compete: a page takes some 3500 cycles in the fixed order at 128 heads, not 2930. "Scores
first" was slower there (160 us against 141), as told here for slow copies; 4 of 9 chunks first
(FIRST) was faster (135), which is not modelled.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, NamedTuple

Order = Literal["fixed", "eager", "scores first"]
STEP = 8  # cycles
PAGES = 32
SCORES, VALUES = 32, 128  # cycles of one wgmma
SOFTMAX, HANDOVER, RESCALE, DRAIN = 520, 60, 140, 20
ORDER_OF_CHUNKS = (8, 0, 1, 2, 3, 4, 5, 6, 7)  # the rotary part, then the two halves


class Memory(NamedTuple):
    """What feeds an SM: bytes a cycle (of a bf16 page's 73,728), cycles until the first."""

    name: str
    rate: float
    latency: int


MEMORIES = (
    Memory("bf16 from HBM: 4.3 TB/s over 132 SMs at 1.755 GHz", 18.6, 900),
    Memory("the same with half the latency again", 18.6, 1400),
    Memory("bf16 from L2, 2 tiles a page: 30 bytes a cycle", 30, 700),
    Memory("bf16 from L2, 45 bytes a cycle", 45, 700),
    Memory("FP8 from HBM, expanded by the producer", 32.7, 300),
)


class Machine:
    """One SM. Two warpgroups as generators that yield a condition or a number of cycles."""

    def __init__(self, order: Order, memory: Memory) -> None:
        self.order, self.memory = order, memory
        self.now = 0
        self.landed: dict[tuple[int, int], float] = {}
        self.released: set[tuple[int, int]] = set()  # page, third: halves 0 and 1, rotary 2
        self.published: dict[int, int] = {}
        self.queues: list[list[int]] = [[], []]
        self.finishing: list[list[float]] = [[], []]
        self.issued, self.done = [0, 0], [0, 0]
        self.busy_until, self.turn, self.busy = 0.0, 0, 0
        self.link, self.next_chunk = 0.0, 0

    def run(self) -> tuple[float, float]:
        """Cycles a page; the share of them in which the tensor cores work."""
        groups: list[Generator[Any, None, None] | None] = [self.group(0), self.group(1)]
        waits: list[Any] = [0, 0]
        while any(group is not None for group in groups):
            self.copy()
            self.multiply()
            for w in (0, 1):
                group = groups[w]
                while group is not None and self.over(waits[w]):
                    try:
                        wanted = next(group)
                        waits[w] = self.now + wanted if isinstance(wanted, int) else wanted
                    except StopIteration:
                        groups[w] = group = None
            self.now += STEP
        return self.now / PAGES, self.busy / self.now

    def over(self, wait: Any) -> bool:
        return self.now >= wait if isinstance(wait, int) else bool(wait())

    def copy(self) -> None:
        while self.next_chunk < PAGES * 9:
            page, at = divmod(self.next_chunk, 9)
            chunk = ORDER_OF_CHUNKS[at]
            if page >= 2 and (page - 2, min(chunk // 4, 2)) not in self.released:
                return
            self.link = max(self.link, self.now + self.memory.latency) + 8192 / self.memory.rate
            self.landed[page, chunk] = self.link
            self.next_chunk += 1

    def multiply(self) -> None:
        while self.busy_until <= self.now and any(self.queues):
            w = self.turn if self.queues[self.turn] else 1 - self.turn
            cycles = self.queues[w].pop(0)
            self.busy_until = max(self.busy_until, self.now - STEP + 1) + cycles
            self.busy += cycles
            self.finishing[w].append(self.busy_until + DRAIN)
            self.turn = 1 - w
        for w in (0, 1):
            while self.finishing[w] and self.finishing[w][0] <= self.now:
                self.finishing[w].pop(0)
                self.done[w] += 1

    def issue(self, w: int, cycles: int) -> Any:
        """Four products; the condition that they are done."""
        self.queues[w] += [cycles] * 4
        self.issued[w] += 4
        last = self.issued[w]
        return lambda: self.done[w] >= last

    def there(self, page: int) -> bool:
        return self.published.get(page, self.now + 1) <= self.now

    def has_landed(self, page: int, chunk: int) -> bool:
        return self.landed.get((page, chunk), self.now + 1.0) <= self.now

    def values(self, w: int, page: int) -> Generator[Any, None, None]:
        if page % 2 != w:
            yield lambda: self.there(page)
        yield RESCALE
        yield self.issue(w, VALUES)
        self.released.add((page, w))

    def group(self, w: int) -> Generator[Any, None, None]:
        for page in range(PAGES):
            if page % 2 != w:
                if self.order == "fixed" or page == PAGES - 1:
                    yield from self.values(w, page)
                continue
            behind = self.order != "fixed" and page > 0
            done: Any = None
            for at, chunk in enumerate(ORDER_OF_CHUNKS):
                if self.order == "eager" and behind and at % 3 == 0:
                    while not self.has_landed(page, chunk) and not self.there(page - 1):
                        yield STEP
                    if self.there(page - 1):
                        yield from self.values(w, page - 1)
                        behind = False
                yield lambda chunk=chunk, page=page: self.has_landed(page, chunk)
                done = self.issue(w, SCORES)
            values: Any = None
            if behind:
                yield lambda page=page: self.there(page - 1)
                yield RESCALE
                values = self.issue(w, VALUES)
            yield done
            self.released.add((page, 2))
            yield SOFTMAX
            if behind:
                yield values
                self.released.add((page - 1, w))
            self.published[page] = self.now + HANDOVER
            yield from self.values(w, page)


def main() -> None:
    orders: tuple[Order, ...] = ("fixed", "eager", "scores first")
    products = 36 * SCORES + 8 * VALUES
    print(f"cycles a page (share of tensor cores); products alone {products}")
    for memory in MEMORIES:
        found = ((order, *Machine(order, memory).run()) for order in orders)
        words = ", ".join(f"{order} {cycles:.0f} ({share:.0%})" for order, cycles, share in found)
        print(f"{memory.name}: bytes alone {73728 / memory.rate:.0f}; {words}")


if __name__ == "__main__":
    main()
