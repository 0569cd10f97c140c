"""Knobs of dequant_matmul."""

from typing import Any

from ..kernels.dequant_matmul import MOST_ROWS
from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {
    "block_n": (4, 8, 16, 32, 64, 128),
    "block_m": (16, 32, 64),
    "int8_dot": (False, True),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4),
    "split": (1, 2, 3, 4, 8),
    "tile_m": (8, 16, 32, 64, 128, 256),
    "warps": (0, 4, 8),
    "pair": (False, True),
    "row_blocks": (1, 2),
    "together": (1, 2),
    "resident": (3, 1, 2),
}
# knobs that the other layout does not read
INT8_TILES = {"warps", "pair", "num_stages"}
TILES = {"split", "tile_m", *INT8_TILES}
# and layout "lanes"
FEW_ROWS = {"warps", "row_blocks", "num_stages"}
MANY_ROWS = {"warps", "tile_m", "together", "resident", "num_stages"}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    idle = (TILES | FEW_ROWS | MANY_ROWS) - {"num_stages"}
    if case["layout"] == "tiles":
        used = INT8_TILES if case["precision"] == "int8" else TILES - INT8_TILES | {"num_stages"}
        idle = set(SPACE) - used
    if case["layout"] == "lanes":
        idle = set(SPACE) - (FEW_ROWS if case["M"] <= MOST_ROWS else MANY_ROWS)
    for knob in idle & set(config):
        if config[knob] != SPACE[knob][0]:
            return f"{knob} has no effect on weights as {case['layout']}"
    if case["layout"] == "lanes":
        return _legal_lanes(config, case)
    return _legal_tiles(config, case) if case["layout"] == "tiles" else _legal_blocks(config, case, gpu)


def _legal_tiles(config: dict[str, Any], case: Case) -> str | None:
    records = case["K"] // 256
    if case["precision"] == "int8":
        return _legal_int8_tiles(config, case, records)
    if config["split"] > records:
        return f"{records} records of 256 columns cannot be split over {config['split']} programs"
    rows = max(8, 1 << (case["M"] - 1).bit_length())
    if config["tile_m"] > rows or config["tile_m"] < min(rows, 64):
        return f"{case['M']} rows take a tile of {min(rows, 64)} rows or more, up to {rows}, not of {config['tile_m']}"
    if config["tile_m"] >= 128 and config["num_stages"] > 3:
        return "a tile of 128 rows and more leaves shared memory for three stages"
    return None


def _legal_lanes(config: dict[str, Any], case: Case) -> str | None:
    if not config["warps"]:
        return "four warps are the default, and timed as such"
    if case["M"] > MOST_ROWS:
        if config["num_stages"] not in (2, 3) or config["warps"] not in (4, 8) or config["tile_m"] not in (64, 128):
            return "many rows take 64 or 128 of them, 4 or 8 warps and 2 or 3 stages a program"
        if config["tile_m"] == 128 and config["together"] == 2:
            return "128 rows leave registers for one tile a program"
        return None
    if config["num_stages"] > 2 or config["warps"] > 8:
        return "a warp has one or two records in flight, and a program up to 8 warps"
    if config["warps"] * config["num_stages"] >= 2 * (case["K"] // 256):
        return f"{case['K'] // 256} records leave warps without work"
    if config["row_blocks"] == 2 and (case["epilogue"] == "swiglu" or case["M"] > 32):
        return "swiglu has two blocks of its own, and more than 32 rows leave no registers for them"
    return None


def _legal_int8_tiles(config: dict[str, Any], case: Case, records: int) -> str | None:
    if not config["warps"]:
        return "what is chosen by the shape is the default, and timed as such"
    # two records in flight a warp, of one block of rows or of two; eight warps of 16 rows make do with one
    in_flight = config["num_stages"] * (2 if config["pair"] else 1)
    if in_flight != (1 if config["warps"] == 8 else 2):
        return f"{config['warps']} warps have too few or too many records in flight with {in_flight}"
    if config["pair"] and case["epilogue"] == "swiglu":
        return "swiglu is a pair of its own"
    if config["warps"] * config["num_stages"] >= 2 * records:
        return f"{records} records leave warps without work"
    return None


def _legal_blocks(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    one_row = case["M"] == 1
    if not one_row and config["block_n"] < 16:
        return f"tl.dot takes at least 16 columns, not {config['block_n']}"
    if (one_row or case["M"] <= 16) and config["block_m"] > 16:
        return f"{case['M']} rows fill one tile of 16 rows, not of {config['block_m']}"
    if config["int8_dot"]:
        if one_row or case["precision"] != "int8":
            return "int8_dot is for several rows of int8 activations"
        if case["format"] == "q6_k":
            return "integer tensor cores take 32 codes a group, q6_k has 16"
        if gpu.startswith("sm75"):
            return "Triton has no integer dot on sm75"
    return None
