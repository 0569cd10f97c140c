"""Knobs of tree_attention: what stands on the left of the products, or that every warp walks rows of its own; rows of
the cache and of queries in a tile (48, 80 and 144 are those of one pass), and how many programs share the cache."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {
    "left": ("queries", "keys", "own"),
    "BLOCK_S": (32, 64),
    "BLOCK_M": (8, 16, 32, 48, 64, 80, 144),
    "programs": (132, 264),
    "least_tiles": (1, 2),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3),
    "rising": (False, True),
}
# KB of shared memory a program can have, by the start of the GPU's folder name
SHARED_KB = {"sm75": 64, "sm80": 163, "sm86": 99, "sm89": 99, "sm90": 227, "sm10": 227, "sm12": 99, "gfx": 64}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    rows = case["T"] * (case["H"] // case["Hkv"])
    if config["left"] == "own":
        return own(config, case, gpu)
    if config["BLOCK_M"] == 8:
        return "eight queries at a time are for warps that walk rows of their own"
    if config["BLOCK_M"] in (48, 80, 144):
        return whole(config, case, gpu)
    if config["BLOCK_M"] > 16 and config["BLOCK_M"] >= 2 * rows:
        return f"a tile of {config['BLOCK_M']} rows runs as one of {rows} does"
    if config["left"] == "keys":
        if not {case["format_k"], case["format_v"]} <= {"q4_0", "q8_0"} or case["dtype"] == "f32" or case["D"] != 256:
            return "keys on the left want caches of q4_0 and q8_0, 16-bit queries and a head of 256"
        if config["BLOCK_S"] != 64 or config["num_warps"] != 4 or not config["rising"]:
            return "keys on the left come 64 at a time, to four warps, and their maximum rises"
        return None if gpu.startswith("sm90") else f"{gpu} takes fewer than 64 rows at a time: queries go on the left"
    if not config["rising"] and (config["BLOCK_M"] < 64 or case["dtype"] == "f32"):
        return "a maximum that does not rise is for tiles of 64 queries and more, of 16 bits"
    return fits(config, case, gpu)


def own(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    """A sentence where warps cannot walk rows of their own, else None."""
    if not gpu.startswith("sm90"):
        return f"warps with rows of their own have been tried on sm90 alone, not on {gpu}"
    if (
        not {case["format_k"], case["format_v"]} <= {"q8_0", "q4_0", "tq3_0"}
        or case["dtype"] == "f32"
        or case["D"] != 256
    ):
        return "warps with rows of their own want caches of codes, 16-bit queries and a head of 256"
    if config["BLOCK_M"] > 16:
        return "a warp's registers hold the sums of 16 queries"
    if (config["BLOCK_S"], config["num_stages"], config["rising"], config["least_tiles"]) != (64, 1, True, 1):
        return "of rows of its own, a warp takes 16 at a time, in shares of any length"
    return None


def whole(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    """A sentence where so many queries cannot go in one pass, or fewer would do, else None."""
    many, rows = config["BLOCK_M"], case["T"] * (case["H"] // case["Hkv"])
    formats = {case["format_k"], case["format_v"]}
    if not gpu.startswith("sm90"):
        return f"{many} queries at once are Gluon's for sm90; {gpu} takes fewer"
    fits = formats <= {"q8_0", "q4_0", "tq3_0"} or formats == {"f16"}
    if not fits or case["dtype"] == "f32" or case["D"] != 256 or case["T"] > 64:
        return (
            f"{many} queries at once want caches of codes or f16, 16-bit queries of 64 nodes at most and a head of 256"
        )
    if config["left"] != "keys" or config["BLOCK_S"] != 64 or not config["rising"] or config["least_tiles"] != 1:
        return f"of {many} queries at once, keys stand on the left, 64 of them, in shares of any length"
    if (config["programs"], config["num_warps"], config["num_stages"]) != (132, 4, 2):
        return f"{many} queries at once take a whole multiprocessor, and tiles of K and V as they are"
    if rows <= {48: 16, 80: 48, 144: 80}[many]:
        return f"{rows} queries go in a pass of fewer than {many}"
    return None


def fits(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    """A sentence where q, K and V do not fit the shared memory or the sums do not fit the registers, else None."""
    size = 4 if case["dtype"] == "f32" else 2
    stages = max(1, config["num_stages"] - 1)
    need = case["D"] * size * (config["BLOCK_M"] + 2 * config["BLOCK_S"] * stages) // 1024
    most = next((kb for start, kb in SHARED_KB.items() if gpu.startswith(start)), 64)
    if need > most:
        return f"needs {need} KB of shared memory, {gpu} has {most} KB"
    sums = config["BLOCK_M"] * (case["D"] + config["BLOCK_S"]) // (32 * config["num_warps"])
    if sums > 256:
        return f"{sums} sums a thread do not fit 255 registers"
    return None
