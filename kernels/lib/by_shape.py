"""What dequant_matmul does over tiles where its config leaves it to the sizes: measured on an H200, legal anywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import triton

from ...reference.tiles import COLUMNS, ROWS
from . import ring_exact as ring
from . import ring_int8 as ring_8

if TYPE_CHECKING:
    from ..dequant_matmul import Config

# as many rows of x as a program of few rows takes; beyond them exact goes to `wide_exact`
MOST_ROWS = 64
# and the ring, where it is
RING_ROWS = 96


def plain(config: Config, M: int, N: int, K: int, precision: str, crowded: bool) -> Config:
    """What runs without m16n8k32 and m16n8k16; `crowded`: a tile of wide and what it loads ahead do not fit."""
    if config.warps if precision == "int8" else config.algorithm == "rows":
        asked = f"'{config.algorithm}' with {config.warps} warps"
        raise ValueError(f"dequant_matmul takes split, wide if exact, without integer tensor cores, not {asked}")
    split = config.algorithm != "split" if precision == "int8" else not config.algorithm and M > MOST_ROWS and crowded
    return replace(config, algorithm="split", split=_split(M, N, K)) if split else config


def _split(M: int, N: int, K: int) -> int:
    """About three programs a multiprocessor of 132."""
    return max(1, min(K // COLUMNS, round(350 / (N // ROWS * triton.cdiv(M, MOST_ROWS)))))


def by_shape(
    config: Config,
    M: int,
    N: int,
    K: int,
    format: str,
    precision: str,
    swiglu: bool,
    imma: bool,
    much_shared: bool,
    rings: bool,
    held: bool,
) -> Config:
    """What the sizes choose: measured on an H200, and legal everywhere. N: rows of the weight, gate and up together."""
    records = K // COLUMNS
    if precision == "int8" and not config.algorithm and not config.warps and 1 < M <= MOST_ROWS and rings:
        warps, resident, registers, pair = _ring_program_int8(M, N, records, format, swiglu)
        return replace(config, algorithm="ring", warps=warps, resident=resident, registers=registers, pair=pair)
    if precision == "int8" and config.algorithm not in ("split", "ring") and not config.warps:
        warps, pair, stages, early = _row_program(N, records, swiglu) if M == 1 else _rows_program(M, N, records)
        # a few that spill pay for one more program on sm90, where that was measured
        registers = _registers(M, format, warps, pair or swiglu) if held else 0
        chosen = replace(config, warps=warps, warp_rows=1, pair=pair, num_stages=stages, registers=registers)
        return replace(chosen, early=config.early or early)
    if precision == "int8" or config.algorithm:
        return config
    if M <= RING_ROWS and rings:
        warps, resident = _ring_program(M, N, records, format, swiglu)
        return replace(config, algorithm="ring", warps=warps, resident=resident)
    if M <= 8 and imma:
        stages = 2 if records > 32 or N <= 2048 else 1
        return replace(config, algorithm="rows", warps=4, warp_rows=1, pair=False, num_stages=stages)
    if M > MOST_ROWS and much_shared:
        # gate and up pass through shared memory at the end
        return replace(config, algorithm="wide", warps=8, tile_m=128, num_stages=2 if swiglu else 3, resident=1)
    if M > MOST_ROWS:
        return replace(config, algorithm="wide", warps=4, tile_m=64, num_stages=2, resident=2)
    if N <= 2048 or swiglu:
        return replace(config, algorithm="split", split=2 if swiglu else max(1, records // 2))
    if not much_shared or format == "q5_k" or N > 65536 or (N <= 8192 and records <= 20):
        return replace(config, algorithm="split", split=_split(M, N, K))
    # as many rows of W a program as share x without a spilled register
    warps = 16 if format in ("q4_k", "q4_0") else 8
    return replace(config, algorithm="wide", warps=warps, tile_m=64, num_stages=3, resident=1)


def _ring_program(M: int, N: int, records: int, format: str, swiglu: bool) -> tuple[int, int]:
    """Warps a program of the ring's, and programs a multiprocessor: several, so that one unpacks while others wait, but
    what each fetches of x is the more the fewer rows of W it has, and the sum the longer the more share it."""
    if swiglu:
        warps, resident = (8, 2) if M <= 24 else (16, 1) if M <= 32 else (8, 1)
    elif N > 65536 and M <= 32:
        warps, resident = 16, 1
    elif N > 65536 or M > MOST_ROWS:
        warps, resident = 8, 1
    elif N <= 2048:
        warps, resident = 4, 2
    elif M <= 16:
        # four where each has more than a few records; of few, two where three share a group unevenly
        many = N * records > 5120 * 32
        warps, resident = 4, 4 if many and M <= 8 and format != "q8_0" else 3 if many or records <= 20 else 2
    elif M <= 32 and format == "q4_k" and N >= 128 * 132 and records <= 24:
        # a group has few shares, so its sum is short
        warps, resident = 8, 2
    elif M <= 24:
        # three where a group has few shares, or each of them many records
        three = records <= 20 or (N * records > 5120 * 40 and format != "q6_k")
        warps, resident = 4, 3 if three and format != "q8_0" else 2
    else:
        # one where each has many records, and many a group to sum
        one = M > 48 or (N * records >= 5120 * 40 and (M > 32 or records > 24))
        warps, resident = (8, 1) if one else (4, 2)
    while resident > 1 and ring.stages(format, M, warps, resident, swiglu)[0] < 2:
        resident -= 1
    return warps, resident


def _ring_program_int8(M: int, N: int, records: int, format: str, swiglu: bool) -> tuple[int, int, int, bool]:
    """The same of int8, registers a thread at the start (0 are all there are, fewer leave room for the launch that
    quantises the next x: one microsecond of seventeen), and whether a warp has rows of two tiles: where there are
    enough of both for shares of like length."""
    pair = swiglu and format == "q4_k" and M > 16
    if pair:
        warps, resident, registers = 4, 2, 112
    elif swiglu:
        warps, resident, registers = (8, 2, 72) if M <= 32 else (8, 1, 144)
    else:
        three = M <= 16 and N * records > 5120 * 32 and (M > 8 or format != "q4_k")
        warps, resident, registers = (4, 3, 64) if three else (4, 2, 96 if M <= 40 else 104)
    while resident > 1 and ring_stages("int8", format, M, warps, resident, swiglu, pair) < 2:
        resident, registers = resident - 1, 0
    return warps, resident, registers, pair


def ring_rows(precision: str) -> int:
    """Rows of x that it takes."""
    return MOST_ROWS if precision == "int8" else RING_ROWS


def ring_stages(precision: str, format: str, M: int, W: int, resident: int, swiglu: bool, pair: bool = False) -> int:
    """Records in flight a program."""
    if precision == "int8":
        return ring_8.stages(format, M, W, resident, swiglu, 2 if pair else 1)
    return ring.stages(format, M, W, resident, swiglu)[0]


def ring_shares(groups: int, records: int, processors: int, resident: int) -> int:
    """Programs: as many as find room, one a multiprocessor where shares are short. Or, if shares are no more than a
    fifth longer for it, so many that they end with a group: then each has one sum to give."""
    short = groups * records <= 3 * resident * processors
    most = processors * (1 if short else resident)
    longest = triton.cdiv(groups * records, most)
    whole = next((n for n in range(longest, records) if records % n == 0), records)
    return groups * records // whole if longest <= 8 and 5 * whole <= 6 * longest else min(groups * records, most)


def _registers(M: int, format: str, warps: int, pair: bool) -> int:
    """So many that programs of int8 find room beside each other, where that costs little."""
    if M > 1:
        # fewer have the ring
        return 168
    if format == "q4_k" and warps == 4 and pair:
        return 96
    return 80 if format == "q6_k" and warps == 8 and not pair else 0


def _row_program(N: int, records: int, swiglu: bool) -> tuple[int, bool, int, str]:
    """One row of int8: warps a program, 32 rows a warp or 16, records in flight, and where the next launch may begin.

    Enough bytes in flight, and all programs on the GPU at once. The next launch begins at once where programs leave
    room for its own.
    """
    if swiglu:
        return (8 if N <= 8192 and records > 16 else 4), False, 1, "start"
    if N <= 8192 and records <= 16:
        return 4, False, 2, "start"
    if N <= 2048:
        return 16, False, 2, "start"
    if N <= 8192:
        return (8, True, 1, "start") if records <= 32 else (8, False, 1, "end")
    return (4, False, 2, "start") if N <= 12288 else (4, True, 1, "start")


def _rows_program(M: int, N: int, records: int) -> tuple[int, bool, int, str]:
    """The same of several rows."""
    return (8 if M <= 8 and N <= 8192 and records > 32 else 4), False, 1, "start"
