"""Why a config will not run on an architecture, from the op's spec and the config alone: nothing is compiled.

    threads      num_warps x the lanes of a warp                       1024 to a program
    kinds        what `tl.dot` is asked to multiply                    Arch.refused
    launchers    which ways they refuse; what takes a compiler minutes
    memory       tiles that wait in shared memory, by op (`_NEEDS`)    Arch.shared

Memory is estimated from above: what is needed on the way into a dot, plus what is loaded ahead. How often that is right
is measured: `draftwood ports --foresee N` draws points from the whole space and compiles them (PORTS.md).

An op of one's own says what it needs by `shared_bytes(config, case, arch)` in its autotune module, if it likes to.
"""

from collections.abc import Callable
from typing import Any

from ..kernels.gdn_prefill import CHUNKED_FROM
from ..kernels.lib.by_shape import ring_rows, ring_stages
from ..reference.cache import QUANTISED, row_size
from ..reference.dequant_matmul import gated
from ..reference.ops import Op
from ..reference.spec import Case
from ..reference.tiles import RECORD, ROWS
from .gpu import THREADS, Arch


def foresee(op: Op, case: Case, config: dict[str, Any], arch: Arch) -> str | None:
    """A sentence, or None where nothing speaks against it."""
    threads = config.get("num_warps", 1) * arch.warp
    if threads > THREADS:
        return f"{config['num_warps']} warps of {arch.warp} are {threads} threads, a program has at most {THREADS}"
    if why := _kind(op.name, case, config, arch):
        return why
    own = getattr(op.module("autotune"), "shared_bytes", None) if op.has("autotune") else None
    needs: Callable[[dict[str, Any], Case, Arch], int] | None = own or _NEEDS.get(op.name)
    if needs is not None and (bytes_needed := needs(config, case, arch)) > arch.shared:
        return f"needs up to {bytes_needed} bytes of shared memory, {arch.name} has {arch.shared}"
    return None


def _kind(op: str, case: Case, config: dict[str, Any], arch: Arch) -> str | None:
    """Why Triton does not compile a product, by the kinds of its operands."""
    precision = config.get("precision", "ieee")
    if _blocks(op, case) and precision == "tf32x3" and arch.backend == "hip":
        return f"Triton has no tf32x3 for {arch.name}"
    if op == "dequant_matmul" and case["layout"] == "tiles" and config["algorithm"] == "ring":
        if arch.name != "sm90":
            return f"the ring is written for sm90, not {arch.name}"
        precision, resident, swiglu = case["precision"], config["resident"], gated(case)
        if case["M"] > ring_rows(precision):
            return f"the ring takes {ring_rows(precision)} rows of x, not {case['M']}"
        pair = precision == "int8" and config["pair"]
        warps = max(8 if swiglu and not pair else 4, config["warps"])
        if ring_stages(precision, case["format"], case["M"], warps, resident, swiglu, pair) < 2:
            return f"no room for {resident} programs of the ring, with two records each"
    if op == "dequant_matmul" and case["layout"] == "tiles" and (why := _integer_cores(case, config, arch)):
        return why
    if op == "tree_attention" and (why := _left(case, config, arch)):
        return why
    tokens = min(config["BLOCK_T"], _up(case["T"])) if op == "tree_conv" else 0
    if tokens and (each := config["BLOCK_C"] * tokens // (config["num_warps"] * arch.warp)) > 256:
        return f"{each} numbers a lane take the compiler a minute"
    gguf = op == "dequant_matmul" and case["layout"] == "gguf" and case["precision"] == "int8" and case["M"] > 1
    if gguf and config["int8_dot"] and "i8" in arch.refused:
        return f"Triton has no integer dot for {arch.name}"
    if gguf and config["int8_dot"] and case["format"] == "q6_k" and arch.backend == "cuda":
        return "an integer dot is at least 32 deep, q6_k has groups of 16"
    return None


def _imma(arch: Arch) -> bool:
    """Whether it has m16n8k32 and m16n8k16."""
    return arch.backend == "cuda" and bool(arch.dot)


def _integer_cores(case: Case, config: dict[str, Any], arch: Arch) -> str | None:
    """Why weights in tiles do not run by the instructions that they lie in order for."""
    one_way = config["warps"] if case["precision"] == "int8" else config["algorithm"] == "rows"
    if one_way and not _imma(arch):
        return f"{arch.name} has no m16n8k32: int8 runs as split there, exact as split or wide"
    paired = case["precision"] == "int8" and config["warps"] and config["pair"] and not gated(case)
    if paired and case["M"] > 32:
        return f"32 rows of W and {case['M']} of x take the compiler a minute and spill"
    return None


def _left(case: Case, config: dict[str, Any], arch: Arch) -> str | None:
    """Why what stands on the left of tree_attention's products does not suit the cache; 48, 80 and 144 are one pass."""
    left, rows, codes = (
        config["left"],
        config["BLOCK_M"],
        [case[name] in QUANTISED for name in ("format_k", "format_v")],
    )
    if left == "queries":
        rows_in_all = case["T"] * case["H"] // case["Hkv"]
        return f"{rows} queries are no power of two" if rows & (rows - 1) and _up(rows_in_all, 16) > rows else None
    # the launcher asks besides how rows of f16 lie, which is as they are wanted wherever a cache is its own tensor
    whole = rows in (48, 80, 144)
    plain = whole and (case["format_k"], case["format_v"]) == ("f16", "f16")
    if case["dtype"] == "f32" or case["D"] != 256 or not (any(codes) or plain):
        return "without queries on the left, they are of 16 bits, a head is 256 and the cache quantised"
    if left != "keys" or whole:
        if arch.name != "sm90" or not (all(codes) or plain):
            return f"rows of a warp's own and one pass are for K and V quantised, on sm90, not {arch.name}"
        if left == "own":
            suits = rows in (8, 16) and config["num_warps"] in (4, 8)
        else:
            suits = whole and case["T"] <= 64
        return None if suits else f"{case['T']} nodes and tiles of {rows} do not suit '{left}'"
    if config["BLOCK_S"] % 64 or config["num_warps"] != 4:
        return "keys on the left come 64 at a time, to four warps"
    return None


def _up(size: int, least: int = 1) -> int:
    """The power of two from `size` up."""
    return max(least, 1 << (size - 1).bit_length())


# -- the gated delta rule ----------------------------------------------------------------------------------------------


def _blocks(op: str, case: Case) -> bool:
    """Whether the case runs in blocks of tokens, with dots; what goes token by token has none."""
    if op in ("tree_gdn", "gdn_commit"):
        return case["strategy"] in (("wy", "replay") if op == "tree_gdn" else ("wy",))
    return op == "gdn_prefill" and case["T"] >= CHUNKED_FROM


def _narrow(arch: Arch) -> bool:
    """Where kernels take half a head, products in parts and a state in slices (kernels/lib/device.py: is_narrow)."""
    return not arch.dot or arch.name.startswith("gfx1")


def _delta_rule(config: dict[str, Any], case: Case, arch: Arch) -> int:
    """Tiles of q and k [BT, BK] and of the state [BV, BK], f32: whole, or in three bf16; and [BT, BT]."""
    op = "gdn_prefill" if "strategy" not in dict(case.values) else "tree_gdn"
    if not _blocks(op, case):
        return 0
    BT = min(config["BLOCK_T"], _up(case["T"], 16))
    BK, BV = min(config.get("BLOCK_K", case["K"]), case["K"]), min(config["BLOCK_V"], case["V"])
    size, auto = 4 if case["dtype"] == "f32" else 2, config["precision"] == "auto"
    if auto and _narrow(arch):
        # slices of 32 columns, of tree_gdn as it is told, and blocks of 16 tokens
        return 4 * (min(config.get("BLOCK_K", 32), case["K"]) * (BV + 32) + 16 * max(BV, 16))
    if auto and op == "gdn_prefill" and size == 2 and case["K"] > 16 and arch.backend == "cuda":
        return _pairs(config["num_stages"], BT, BV, case["K"], arch)
    tokens, state, square = BT * BK, BK * BV, BT * BT
    waiting = max(0, config.get("num_stages", 1) - 1) if arch.dot else 0
    if arch.backend == "hip":
        # q, k, v and the factors' planes
        return max(4 * max(tokens, state, square), waiting * (2 * size * tokens + size * BT * BV + 6 * square))
    if auto or config["precision"] == "bf16":
        # without tensor cores the three parts are f32 again
        parts = 6 if arch.dot else 12
        return max(parts * state, parts * square) + (0 if arch.dot else 4 * tokens) + waiting * 2 * size * tokens
    return 12 * tokens + 4 * state + waiting * (2 * size * tokens + 4 * state)


def _pairs(stages: int, BT: int, BV: int, K: int, arch: Arch) -> int:
    """Sums of two f16: half of the state at a time. Tiles come by descriptor: from sm90 on those that are ahead lie in
    shared memory, before that they are loaded through pointers and none is."""
    held = max(2 * BV * K, 2 * BT * K, 4 * BT * BT)
    if stages == 1 or int(arch.number) < 90:
        return held
    # q and k, v, three planes of factors; one stage less where multiplying does not go on beside them
    stage = 4 * BT * K + 2 * BT * BV + 6 * BT * BT
    return held + (stages if arch.name in ("sm90", "sm100") else stages - 1) * stage + 2 * BT * BV + 2048


# -- attention ---------------------------------------------------------------------------------------------------------

# sign matrix of the rotation
_MATRIX = 128 * 128


def _tree_attention(config: dict[str, Any], case: Case, arch: Arch) -> int:
    return _attention(config, case, arch, case["T"] * (case["H"] // case["Hkv"]))


def _prefill_attention(config: dict[str, Any], case: Case, arch: Arch) -> int:
    return _attention(config, case, arch, case["T"])


def _attention(config: dict[str, Any], case: Case, arch: Arch, rows: int) -> int:
    """A tile of queries, one or two of the cache, and what is loaded ahead: of a plain cache whole tiles."""
    D, size = case["D"], 4 if case["dtype"] == "f32" else 2
    BM = min(config["BLOCK_M"], _up(rows, 16))
    if config.get("left") == "own":
        # the warps' sums, and their maxima and weights
        return 4 * (D + 2) * BM * config["num_warps"]
    BS = max(16, config["BLOCK_S"] // 2) if case["dtype"] == "f32" else config["BLOCK_S"]
    formats = (case["format_k"], case["format_v"])
    query, tile, weights, matrix = size * D * BM, size * D * BS, size * BM * BS, size * _MATRIX * ("tq3_0" in formats)
    ahead = max(0, config["num_stages"] - 1)
    plain = not any(name in QUANTISED for name in formats)
    # turned by butterflies there, in f32, and by a product elsewhere
    narrow = _narrow(arch) and config.get("left", "queries") == "queries"
    turned = 4 * D * BM * ("tq3_0" in formats)
    if not arch.dot:
        # f32, whatever it was
        return 4 * D * (BM + BS) + (0 if narrow else 2 * matrix)
    if arch.backend == "hip":
        return max(turned if narrow else query + matrix, query, tile, 2 * tile * ahead + weights if plain else 0)
    raw = sum(BS * row_size(name, D) for name in formats if name in QUANTISED)
    # of tree_attention, where warps multiply their own registers, queries lie there twice if a maximum rises, or they
    # are turned and nothing is loaded ahead
    twice = "rising" in config and (not ahead if matrix else config["rising"] or BM < 64)
    if twice and arch.name not in ("sm90", "sm100"):
        query *= 2
    if plain:
        # sm100 keeps the weights of another tile
        more = 2 * weights + 1024 if arch.name == "sm100" else 0
        return max(query * (size // 2), query + max(tile, 2 * tile * ahead) + 2 * weights + more)
    # sm100 keeps the rotation, and barriers, beside what is loaded ahead
    beside = matrix + 4096 if matrix and ahead and arch.name == "sm100" else 0
    # what is turned back, and all that is f32, leaves through shared memory
    return max(turned, query * (size // 2), query + matrix, query + 2 * tile + raw * ahead + beside)


def _exact_tiles(case: Case) -> bool:
    return case["layout"] == "tiles" and case["precision"] == "exact"


# -- weights -----------------------------------------------------------------------------------------------------------

# bytes a row of 256 weights is read in: codes once for each group that shares their bytes, scales, minimums
_READ = {"q4_k": 280, "q5_k": 312, "q6_k": 530, "q8_0": 272, "q4_0": 272, "bf16": 512, "f16": 512, "f32": 1024}


def _dequant_matmul(config: dict[str, Any], case: Case, arch: Arch) -> int:
    """256 columns of x and of dequantised weights, f16; on NVIDIA also the bytes of weights that are loaded ahead."""
    M, size = case["M"], 4 if case["dtype"] == "f32" else 2
    ahead, pair = max(0, config["num_stages"] - 1), 2 if gated(case) else 1
    if case["layout"] == "tiles" and config["algorithm"] in ("", "split") and arch.name.startswith("gfx1"):
        ahead = 0
    column = 256 * (size if arch.dot else 4)
    ring = case["layout"] == "tiles" and config["algorithm"] == "ring"
    if ring or (_exact_tiles(case) and config["algorithm"] == "rows"):
        # the ring asks for what there is
        return 0
    if _exact_tiles(case) and config["algorithm"] == "wide":
        rows = min(config["tile_m"], _up(M, 16))
        exchange = 832 * rows * (config["warps"] // 4) if pair > 1 else 0
        stages = config["num_stages"]
        if arch.backend == "cuda":
            return 512 * rows * max(1, stages) + exchange
        # from two stages on x lies there, and the sums of a program's warps meet there
        return max(512 * rows * stages * (stages > 1), 2048 * max(4, config["warps"])) + exchange
    if case["layout"] == "gguf":
        if M == 1:
            return 512 * config["block_n"]
        x, weights = column * min(config["block_m"], _up(M, 16)), column * config["block_n"]
        read = _READ[case["format"]] * config["block_n"] * pair
    elif case["precision"] == "int8" and (not _imma(arch) or config["algorithm"] == "split"):
        # codes of a record; without products of tiles as f32
        return 32768 + ahead * 4096 if arch.dot else 65536
    elif case["precision"] == "int8":
        # in registers
        return 0
    else:
        x, weights = column * min(config["tile_m"], _up(M, 8)), column * ROWS
        read = RECORD[case["format"]] * pair
    if arch.backend == "hip":
        return max(x, weights) if not ahead else ahead * x + weights
    if not arch.dot:
        return max(x, weights) if case["layout"] != "gguf" else x + weights
    if case["layout"] == "tiles":
        # without PTX the weights would pass through memory; the sums do, where programs share them
        return max(x, ahead * (x + read) + weights // 2)
    return ahead * (x + read) + weights


_NEEDS: dict[str, Callable[[dict[str, Any], Case, Arch], int]] = {
    "tree_gdn": _delta_rule,
    "gdn_prefill": _delta_rule,
    "tree_attention": _tree_attention,
    "prefill_attention": _prefill_attention,
    "dequant_matmul": _dequant_matmul,
}
