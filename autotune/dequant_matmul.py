"""Knobs of dequant_matmul."""

from typing import Any

from ..kernels.lib.by_shape import MOST_ROWS, ring_rows, ring_stages
from ..kernels.lib.ring_exact import registers as ring_registers
from ..reference.dequant_matmul import gated
from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {
    "block_n": (32, 8, 16, 64),
    "block_m": (32, 64),
    "int8_dot": (False, True),
    "num_warps": (4, 2, 8),
    "algorithm": ("", "split", "wide", "rows", "ring"),
    "tile_m": (64, 128),
    "split": (2, 1, 4, 8),
    "resident": (1, 2, 3, 4),
    "warps": (0, 4, 8, 16),
    "pair": (False, True),
    "registers": (0, 56, 96, 128),
    "num_stages": (2, 1, 3),
}
# what each way reads; the first value of every other knob stands for it
BLOCKS = {"block_n", "block_m", "int8_dot", "num_warps", "num_stages"}
EXACT = {
    "": {"algorithm"},
    "split": {"algorithm", "split", "num_stages"},
    "wide": {"algorithm", "tile_m", "resident", "warps", "num_stages"},
    "rows": {"algorithm", "warps", "registers"},
    "ring": {"algorithm", "warps", "resident"},
}
ONE_ROW = {"warps", "pair", "registers", "num_stages"}
SEVERAL_ROWS = {"warps", "pair", "registers"}
RING_INT8 = EXACT["ring"] | {"registers", "pair"}
# of int8 where there is no m16n8k32
PLAIN = {"": {"algorithm"}, "split": EXACT["split"]}


def unread_by(case: Case) -> set[str]:
    """Knobs that are read in no config of the case: a thousand times fewer points to ask `legal` of."""
    if case["layout"] == "gguf":
        return set(SPACE) - BLOCKS
    if case["precision"] == "exact":
        return set(SPACE) - set().union(*EXACT.values())
    return set(SPACE) - (ONE_ROW if case["M"] == 1 else SEVERAL_ROWS | RING_INT8) - EXACT["split"]


def _imma(gpu: str) -> bool:
    return gpu.startswith("sm") and not gpu.startswith("sm75")


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if case["layout"] == "gguf":
        used = BLOCKS
    elif case["precision"] == "exact":
        used = EXACT[config["algorithm"]]
        if config["algorithm"] == "rows" and not _imma(gpu):
            return "rows takes m16n8k16, which is missing here"
    elif not _imma(gpu) or config["algorithm"] == "split":
        # with m16n8k32 it is slower, and what spills nothing
        if config["algorithm"] not in PLAIN:
            return "int8 without m16n8k32 runs as split"
        used = PLAIN[config["algorithm"]]
    elif config["algorithm"] == "ring":
        used = RING_INT8
    else:
        used = ONE_ROW if case["M"] == 1 else SEVERAL_ROWS
    # a default brings along what is no knob
    for knob in SPACE.keys() & config.keys() - used:
        if config[knob] != SPACE[knob][0]:
            return f"{knob} has no effect here"
    if case["layout"] == "gguf":
        return _legal_blocks(config, case, gpu)
    if config["algorithm"] == "ring":
        return _legal_ring(config, case, gpu)
    if case["precision"] == "exact":
        return _legal_exact(config, case)
    if config["algorithm"] == "split":
        records = case["K"] // 256
        return f"there are {records} records to split" if config["split"] > records else None
    return _legal_int8(config, case)


def _legal_exact(config: dict[str, Any], case: Case) -> str | None:
    records, few = case["K"] // 256, case["M"] <= MOST_ROWS
    match config["algorithm"]:
        case "split" if not few or config["split"] > records:
            return f"split takes {MOST_ROWS} rows of x and as many programs as there are records, {records}"
        case "wide" if config["warps"] not in (4, 8, 16) or config["num_stages"] not in (2, 3):
            return "wide takes 4, 8 or 16 warps and 2 or 3 stages"
        case "wide" if config["resident"] > 2:
            return "two programs of wide fill a multiprocessor"
        case "wide" if few and config["tile_m"] != 64:
            return f"{case['M']} rows fill one tile of 64"
        case "rows" if not few or config["warps"] not in (2, 4, 8):
            return f"rows takes {MOST_ROWS} rows of x, and warps"
    return None


def _legal_ring(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    warps, resident, precision, swiglu = config["warps"], config["resident"], case["precision"], gated(case)
    side = warps * (2 if config["pair"] else 1)
    if not gpu.startswith("sm90"):
        return "the ring is written for sm90"
    if precision == "int8" and case["M"] == 1:
        return "one row of int8 has a kernel of its own"
    if case["M"] > ring_rows(precision) or warps not in (4, 8, 16):
        return f"the ring takes {ring_rows(precision)} rows of x, and 4, 8 or 16 warps"
    if case["N"] % (16 * side) or (swiglu and side < 8):
        return f"{case['N']} rows of W do not make groups of {16 * side}"
    if config["registers"] >= ring_registers(warps, resident):
        return f"{config['registers']} registers are no fewer than {resident} programs of {warps} warps have"
    if ring_stages(precision, case["format"], case["M"], warps, resident, swiglu, config["pair"]) < 2:
        return f"no room for {resident} programs of {warps} warps with two records each"
    return None


def _legal_int8(config: dict[str, Any], case: Case) -> str | None:
    records = case["K"] // 256
    if not config["warps"]:
        other = [knob for knob in ONE_ROW | SEVERAL_ROWS if config[knob] != SPACE[knob][0]]
        return f"{', '.join(sorted(other))} chosen by the shape" if other else None
    if config["warps"] >= 2 * records or (config["warps"] == 16 and case["M"] > 1):
        return f"{records} records leave warps without work"
    if config["pair"] and (gated(case) or case["M"] > 32):
        return "swiglu is a pair of its own, and more than 32 rows leave no registers for one"
    if 0 < config["registers"] < 96:
        return f"{config['registers']} registers hold no record beside its sums"
    if case["M"] == 1 and config["num_stages"] > 2:
        return "a warp has one or two records in flight"
    return None


def _legal_blocks(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    one_row = case["M"] == 1
    if not one_row and config["block_n"] < 16:
        return f"tl.dot takes at least 16 columns, not {config['block_n']}"
    if one_row and config["block_m"] != SPACE["block_m"][0]:
        return "one row of x is no tile"
    if 1 < case["M"] <= 16 and config["block_m"] > 32:
        return f"{case['M']} rows fill one tile of 16 rows, not of {config['block_m']}"
    if config["int8_dot"]:
        if one_row or case["precision"] != "int8":
            return "int8_dot is for several rows of int8 activations"
        if case["format"] == "q6_k":
            return "integer tensor cores take 32 codes a group, q6_k has 16"
        if gpu.startswith("sm75"):
            return "Triton has no integer dot on sm75"
    return None
