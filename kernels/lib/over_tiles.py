"""Launches of dequant_matmul over tiles: of each algorithm its programs, what they share memory for, and the call.

One row of int8: `lib/row_int8.py`; several: `lib/ring_int8.py` on sm90, else `lib/rows_int8.py`. Activations as they
are: `lib/ring_exact.py` on sm90, else `lib/rows_exact.py` up to 8 rows, `lib/wide_exact.py` beyond, and `lib/tiled.py`
where a program has little shared memory or a weight few rows; of int8, where m16n8k32 is missing.

Which of them, and with what, says `lib/by_shape.py`. All are called alike, but for `in_blocks`, which takes x as it is
or quantised, and `int8_row`, which norms it if asked to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from ...reference.dequant_matmul import GROUP, SMALLEST, group_of
from ...reference.tiles import COLUMNS, RECORD, ROWS
from . import ring_exact as ring
from . import ring_int8 as ring_8
from .by_shape import MOST_ROWS, ring_shares
from .device import (
    has_few_registers,
    has_imma,
    has_pdl,
    has_ptx,
    has_wgmma,
    lacks_dot,
    lacks_imma,
    processors,
)
from .handed import at_once, each, sharers, shares
from .parts import parts_of
from .row_int8 import row_int8
from .rows_exact import arrange, rows_exact
from .rows_int8 import quantise_pieces, quantise_rows, rows_int8
from .tiled import tiled
from .tiles import SCALES, D
from .wide_exact import wide_exact
from .workspace import counters, parts

if TYPE_CHECKING:
    from ..dequant_matmul import Config


def _meta(format: str, swiglu: bool) -> dict[str, Any]:
    return {"FORMAT": format, "RECORD": RECORD[format], "SCALES": SCALES[format], "D": D[format], "SWIGLU": swiglu}


def _stride(residual: torch.Tensor | None) -> int:
    return 0 if residual is None else residual.stride(0)


def _early(config: Config, device: torch.device) -> tuple[str, dict[str, Any]]:
    """Where the next launch may begin, and what Triton wants to be told of it and of registers."""
    early = (config.early or "start") if has_pdl(device) else "no"
    options: dict[str, Any] = {"launch_pdl": True} if early != "no" else {}
    if config.registers and has_imma(device):
        options["maxnreg"] = config.registers
    return early, options


def exact_split(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    config: Config,
) -> None:
    BM = min(config.tile_m, max(8, triton.next_power_of_2(len(x))))
    in_blocks(x, None, None, weight, format, residual, swiglu, out, config, BM)


def in_blocks(
    x: torch.Tensor,
    d: torch.Tensor | None,
    d_sum: torch.Tensor | None,
    weight: torch.Tensor,
    format: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    config: Config,
    BM: int,
) -> None:
    (M, N), K, warps, stages = out.shape, x.shape[1], 4, config.num_stages
    if lacks_dot(x.device):
        # whole rows and columns of a product stand in registers
        BM, warps = min(BM, 16 if d is None else 8), 8
    elif lacks_imma(x.device):
        # matrix cores take 16 rows
        BM = max(BM, 16)
    if has_few_registers(x.device):
        warps, stages = 8, 1
    split = min(config.split, K // COLUMNS)
    parts = split * M * N * (2 if swiglu else 1) if split > 1 else 0
    partial = torch.empty(parts, dtype=torch.float32, device=x.device)
    blocks = (N // ROWS, split, triton.cdiv(M, BM))
    tiled[blocks](
        x, x.stride(0), d, d_sum, weight.view(torch.int16), weight.view(torch.int32), residual, _stride(residual), out,
        partial, counters(x.device, blocks[0] * blocks[2]), M, N, K, **_meta(format, swiglu), SPLIT=split > 1, BM=BM,
        PARTS=parts_of(x.device), STAGES=stages, ASM=has_ptx(x.device), num_warps=warps,
    )  # fmt: skip


def exact_wide(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    config: Config,
) -> None:
    (M, N), K, W = out.shape, x.shape[1], max(4, config.warps)
    while N % (16 * W):
        W //= 2
    # two tiles side by side: gate and up, or neighbours
    R = 2 if swiglu or (config.together == 2 and N % (32 * W) == 0) else 1
    groups = N // (16 * W * (1 if swiglu else R))
    BM = min(config.tile_m, max(16, triton.next_power_of_2(M)))
    blocks = triton.cdiv(M, BM)
    P = min(groups * (K // COLUMNS), max(1, config.resident * processors(x.device) // blocks))
    partial = torch.empty(2 * P * blocks * R * 16 * W * BM, dtype=torch.float32, device=x.device)
    wide_exact[(P, blocks)](
        x, x.stride(0), weight.view(torch.int16), weight.view(torch.int32), residual, _stride(residual), out, partial,
        counters(x.device, groups * blocks), M, N, K, **_meta(format, swiglu), W=W, R=R, BM=BM,
        STAGES=config.num_stages, ASM=has_ptx(x.device), num_warps=W,
    )  # fmt: skip


def _blocks_of_8(M: int) -> tuple[int, int]:
    """Programs beside each other in M, and blocks of eight rows a program."""
    programs = triton.cdiv(M, MOST_ROWS)
    return programs, triton.cdiv(triton.cdiv(M, 8), programs)


def exact_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    config: Config,
) -> None:
    (M, N), K, W = out.shape, x.shape[1], config.warps or 4
    records, (programs, NT), WK = K // COLUMNS, _blocks_of_8(M), W // config.warp_rows
    early, options = _early(config, x.device)
    words = torch.empty(programs * NT * records * 1024, dtype=torch.int32, device=x.device)
    arrange[(records, programs * NT)](
        x.view(torch.int16), x.stride(0), words.view(torch.int16), M, EARLY=early, num_warps=4, **options
    )
    rows_exact[(N // ((32 if config.pair and not swiglu else 16) * config.warp_rows), programs)](
        words, weight.view(torch.int16), weight.view(torch.int32), residual, _stride(residual), out, M, N, K,
        **_meta(format, swiglu), BF16=x.dtype == torch.bfloat16, RB=2 if config.pair or swiglu else 1, NT=NT, W=W,
        WK=WK, STAGES=min(config.num_stages, 2), WHOLE=records % WK == 0, EARLY=early,
        ASM=has_imma(x.device), num_warps=W, **options,
    )  # fmt: skip


def _ring_warps(device: torch.device, weight: torch.Tensor, swiglu: bool, config: Config, R: int = 1) -> int:
    """R: tiles a warp."""
    if not has_wgmma(device):
        raise ValueError("the ring's products are those of sm90: another algorithm, or none, for this GPU")
    W = max(8 if swiglu and R == 1 else 4, config.warps)
    while weight.shape[0] % (W // 4 * R):
        W //= 2
    return W


def _has_room(stages: int, W: int, M: int, resident: int) -> int:
    if stages < 2:
        raise ValueError(f"the ring has no room for {resident} programs of {W} warps and {M} rows of x")
    return stages


def _shares(
    device: torch.device, groups: int, records: int, W: int, E: int, resident: int, registers: int, R: int = 1
) -> tuple[int, torch.Tensor, tuple[int, ...], dict[str, int]]:
    """A ring's programs, where they hand sums over, what they are to know of their shares, and who takes what. E:
    eights of sums a warp, of R tiles."""
    P = ring_shares(groups, records, processors(device), resident)
    numbers, alone = shares(groups, records, P), processors(device) >= P
    eights = each(E, numbers[0], records, alone and R == 1)
    # where several take, a share has a place for each of two groups
    partial = parts(device, (P + groups if eights < E else P) * 128 * W * E)
    at = at_once(eights, registers, sharers(groups, records, P))
    return P, partial, numbers, {"EACH": eights, "AT": at, "LAST": not alone}


def exact_ring(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    config: Config,
) -> None:
    (M, N), K, W = out.shape, x.shape[1], _ring_warps(x.device, weight, swiglu, config)
    groups, resident, E = weight.shape[0] // (W // 4), config.resident, ring.eights_of(M)
    stages, stages_x = ring.stages(format, M, W, resident, swiglu)
    _has_room(stages, W, M, resident)
    # products of one record beside codes of the next: with few warps, if they have the registers
    over = W == 8 and resident == 1 and E > 3 and not swiglu
    registers = ring.registers(W, resident)
    early, options = _early(config, x.device)
    P, partial, numbers, handing = _shares(x.device, groups, K // COLUMNS, W, E, resident, registers)
    ring.ring_exact[(P,)](
        *ring.described(x, weight, format, swiglu, W), residual, _stride(residual), out, partial, M, N, K, *numbers,
        **_meta(format, swiglu), W=W, E=E, S=stages, SX=stages_x, **handing, OVER=over,
        CODES=ring.CODES.get(format, 4), ABOVE=ring.ABOVE.get(format, 0), EARLY=early != "no", num_warps=W,
        **{**options, "maxnreg": registers},
    )  # fmt: skip


EXACT = {"split": exact_split, "wide": exact_wide, "rows": exact_rows, "ring": exact_ring}


def int8_row(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    config: Config,
    norm: torch.Tensor | None,
    eps: float,
) -> None:
    (_, N), K, W, stages = out.shape, x.shape[1], config.warps, min(config.num_stages, 2)
    early, options = _early(config, x.device)
    row_int8[(N // (32 if config.pair and not swiglu else 16),)](
        x, norm, eps, weight.view(torch.int32), residual, out, N, K, **_meta(format, swiglu), SMALLEST=SMALLEST,
        PAIR=swiglu or config.pair, W=W, STAGES=stages, WHOLE=K // COLUMNS % (W * stages) == 0, EARLY=early,
        ASM=has_imma(x.device), num_warps=W, num_stages=1, enable_fp_fusion=False, **options,
    )  # fmt: skip


def int8_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    config: Config,
) -> None:
    (M, N), K, W = out.shape, x.shape[1], config.warps
    records, (programs, NT), WK = K // COLUMNS, _blocks_of_8(M), W // config.warp_rows
    early, options = _early(config, x.device)
    blocks, by_32 = programs * NT, group_of(format) == GROUP
    words = torch.empty(blocks * records * 512, dtype=torch.int32, device=x.device)
    d = torch.empty(blocks * records * (64 if by_32 else 8), dtype=torch.float32, device=x.device)
    sums = torch.empty(blocks * records * 64, dtype=torch.int32, device=x.device)
    quantise_rows[(records, blocks)](
        x, x.stride(0), words, d, sums, M, BY_32=by_32, SMALLEST=SMALLEST, EARLY=early, num_warps=4,
        enable_fp_fusion=False, **options,
    )  # fmt: skip
    rows_int8[(N // ((32 if config.pair and not swiglu else 16) * config.warp_rows), programs)](
        words, d, sums, weight.view(torch.int16), weight.view(torch.int32), residual, _stride(residual), out, M, N, K,
        **_meta(format, swiglu), RB=2 if config.pair or swiglu else 1, NT=NT, W=W, WK=WK,
        STAGES=min(config.num_stages, 2), WHOLE=records % WK == 0, EARLY=early,
        ASM=has_imma(x.device), num_warps=W, enable_fp_fusion=False, **options,
    )  # fmt: skip


def int8_ring(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    config: Config,
) -> None:
    (M, N), K, R = out.shape, x.shape[1], 2 if config.pair and weight.shape[0] % 2 == 0 else 1
    W = _ring_warps(x.device, weight, swiglu, config, R)
    groups, resident = weight.shape[0] // (W // 4 * R), config.resident
    E, piece = ring.eights_of(M), ring_8.PIECE[format]
    stages = _has_room(ring_8.stages(format, M, W, resident, swiglu, R), W, M, resident)
    records = K // COLUMNS
    pieces = torch.empty(records * E * piece // 4, dtype=torch.int32, device=x.device)
    registers = config.registers or ring.registers(W, resident)
    early, options = _early(config, x.device)
    quantise_pieces[(records, E)](
        x, x.stride(0), pieces, M, FORMAT=format, PIECE=piece, SMALLEST=SMALLEST, EARLY=early, ASM=has_imma(x.device),
        num_warps=8, enable_fp_fusion=False, **options,
    )  # fmt: skip
    P, partial, numbers, handing = _shares(x.device, groups, records, W, E * R, resident, registers, R)
    ring_8.ring_int8[(P,)](
        pieces, weight.view(torch.int32), residual, _stride(residual), out, partial, M, N, K, *numbers,
        **_meta(format, swiglu), PIECE=piece, W=W, E=E, R=R, S=stages, **handing, EARLY=early != "no", num_warps=W,
        **{**options, "maxnreg": registers},
    )  # fmt: skip
