"""How the Hopper attention kernel is compiled for a problem: sizes of its tiles, schedules."""

from __future__ import annotations

from typing import NamedTuple

from zenrepro.ops import nvrtc
from zenrepro.ops.attention import tile_counters

SERVED = (  # (head_dim, value_dim) that kernels are compiled for
    (64, 64),
    (128, 128),
    (192, 128),
)


class Variant(NamedTuple):
    """How one kernel is compiled: its macros. ``warpgroups`` that compute (64 rows each),
    ``block_n`` keys a step, ``stages`` of keys and of values and ``q_stages`` of queries in shared
    memory. The rest are schedules, each beside its plain twin (the kernel says what they do)."""

    head_dim: int
    value_dim: int
    causal: bool
    varlen: bool
    dtype: str  # BF16, F16 or E4M3
    warpgroups: int
    block_n: int
    stages: int
    q_stages: int = 1
    page_rows: int = 0  # of a page that one copy takes; 0: not paged
    ping_pong: bool = True
    split: bool = False
    q_registers: bool = False

    @property
    def defines(self) -> nvrtc.Defines:
        """The macros."""
        return (
            ("HEAD_DIM", self.head_dim),
            ("VALUE_DIM", self.value_dim),
            ("CAUSAL", int(self.causal)),
            ("VARLEN", int(self.varlen)),
            ("PAGE_ROWS", self.page_rows),
            ("DTYPE", self.dtype),
            ("WARPGROUPS", self.warpgroups),
            ("BLOCK_N", self.block_n),
            ("STAGES", self.stages),
            ("Q_STAGES", self.q_stages),
            ("PINGPONG", int(self.ping_pong)),
            ("SPLIT", int(self.split and not self.causal)),
            ("Q_REGISTERS", int(self.q_registers)),
        )

    @property
    def rows(self) -> int:
        """Query rows a tile."""
        return 64 * self.warpgroups

    @property
    def threads(self) -> int:
        """Of a block: the warpgroups that compute and the one that loads."""
        return 128 * (self.warpgroups + 1)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: barriers, Q, the stages, and room to align."""
        if self.dtype == "E4M3":  # rows of 128 bytes whatever the head size
            wide, values = -(-self.head_dim // 128) * 128, self.value_dim
        else:
            wide, values = self.head_dim * 2, self.value_dim * 2
        stage = self.block_n * (wide + values)
        return 1024 + 1024 + self.q_stages * self.rows * wide + self.stages * stage


def variant(head_dim: int, value_dim: int, *, causal: bool, varlen: bool, dtype: str) -> Variant:
    """The kernel for these sizes and this dtype ("bf16", "fp16" or "fp8_e4m3").

    Dense ones are chosen by measurement on an H200 (``tests/device/tune_attention_hopper.py``;
    docs/LOG.md has the numbers); packed and paged ones are compiled as dense causal ones are,
    unmeasured. Turns: three warpgroups (head size 64) are 2 to 9 % faster with them; two are 0.7 to
    0.9 % faster without at 128, full, and 0.9 to 3.2 % at 192. For two at 128, causal or of 8 bits,
    in the order of tiles they have, it is at most 1.3 %, of either sign: these keep them.

    Raises ValueError for sizes beyond the largest.
    """
    fitting = [pair for pair in SERVED if head_dim <= pair[0] and value_dim <= pair[1]]
    if not fitting or head_dim % 8 or value_dim % 8:
        raise ValueError(
            "q: wants head_dim/value_dim up to 128/128 or 192/128, multiples of 8, "
            f"got {head_dim}/{value_dim}"
        )
    wide, out = fitting[0]
    name = {"bf16": "BF16", "fp16": "F16", "fp8_e4m3": "E4M3"}[dtype]
    if name == "E4M3":
        if varlen:
            raise ValueError("q: wants torch.bfloat16 or torch.float16 when packed, got fp8_e4m3")
        if head_dim % 16 or value_dim % 16:
            raise ValueError(
                f"q: wants head_dim/value_dim that are multiples of 16, got {head_dim}/{value_dim}"
            )
        return Variant(wide, out, causal, varlen, name, 2, 192, 2, split=not causal)
    full = not causal and not varlen
    plain = Variant(wide, out, causal, varlen, name, 2, 128, 2, split=full)
    return {
        64: plain._replace(warpgroups=3, stages=4),
        128: plain._replace(q_registers=full, ping_pong=not full),
        192: plain._replace(ping_pong=False),
    }[wide]


def split(chosen: Variant, tiles: int, blocks: int, cache_len: int) -> tuple[int, int]:
    """How many of the last tiles to cut along the keys, and into how many parts each.

    Those left over when every block has had the same number, where they are few and long: cut, they
    take a part of a round and not a whole one. (0, 1) where there is nothing to win, and for
    causal tiles, the last of which are short.
    """
    left = tiles % blocks
    if not chosen.split or chosen.causal or tiles < blocks or left == 0:
        return 0, 1
    parts = min(blocks // left, -(-cache_len // chosen.block_n) // 4, 8)
    fit = left * chosen.warpgroups <= tile_counters.MOST - 2
    return (left, parts) if parts > 1 and fit else (0, 1)
