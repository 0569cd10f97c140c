"""What each format costs and what it loses: bits, error of a value, error of attention, and the time beside it.

error        relative rms of normal values that went through the format and back
theory       the same of the best 3-bit quantiser of a normal value (Lloyd, Max), decoded to the length that went in
attention    relative rms of the output over a cache of heavy-tailed keys and values, in both K and V
us           tree_attention at 131072 rows by 1 and 23 queries, as last measured on this GPU
"""

import json
import math
from pathlib import Path
from typing import Any

import torch

from ..reference import cache, formats, hadamard
from ..reference.attention import attend
from .bench import RESULTS

ROWS, QUERIES, HEADS, DIM = 2048, 16, 6, 256
# mean squared error of the 8-level Lloyd-Max quantiser of a standard normal value
LLOYD_MAX_8 = 0.03454


def theory() -> float:
    """Relative rms error of that quantiser when the decoded group is stretched to the length of the group.

    x̂ is the conditional mean, so E[x x̂] = E[x̂²] = 1 - D, the cosine is sqrt(1 - D), and two vectors of equal length lie
    sqrt(2 - 2 cos) lengths apart.
    """
    return math.sqrt(2 - 2 * math.sqrt(1 - LLOYD_MAX_8))


def value_error(format: str) -> float:
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    back = formats.dequantise(formats.quantise(x, format), format)
    back = hadamard.unrotate(back) if format == "tq3_0" else back
    return float((back - x).norm() / x.norm())


def heavy_tailed(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys with channels that stand out and values of t-distributed size, [1, rows, DIM]: what caches hold."""
    keys = cache.draw_keys(1, rows, DIM, generator)
    chi = torch.randn(1, rows, DIM, 3, generator=generator).square().mean(-1).sqrt()
    return keys, cache.draw_values(1, rows, DIM, generator) / chi


def attention_error(format: str) -> float:
    """Error of attention over heavy-tailed rows in this format, against the same rows in f32."""
    generator = torch.Generator().manual_seed(1)
    k, v = heavy_tailed(ROWS, generator)
    q = 2 * torch.randn(QUERIES, HEADS, DIM, generator=generator)
    seen = torch.ones(QUERIES, ROWS, dtype=torch.bool)
    keys, values = (cache.to_rows(x, format) for x in (k, v))
    got = attend(q, keys, values, format, format, seen, None)
    want = attend(q, k, v, "f32", "f32", seen, None)
    return float((got - want).norm() / want.norm())


def times(format: str, gpu: str, home: Path = RESULTS) -> dict[str, float]:
    """Microseconds by number of queries, from the committed results; empty where there are none."""
    file = home / gpu / "tree_attention.json"
    entries = json.loads(file.read_text())["entries"] if file.exists() else []
    cases = ((entry["case"], entry) for entry in entries if entry["impl"] == "kernels")
    return {
        str(case["T"]): entry["us"]["p50"]
        for case, entry in cases
        if case["format_k"] == case["format_v"] == format and case["context"] == 131072
    }


def rows(gpu: str) -> list[dict[str, Any]]:
    """One a format, those of weights too; what is said of attention only of those of caches."""
    found = []
    for name, known in sorted(formats.FORMATS.items(), key=lambda item: -item[1].bits_per_weight):
        row: dict[str, Any] = {
            "format": name,
            "id": known.type_id,
            "bits": known.bits_per_weight,
            "values": known.elements,
            "bytes": known.bytes,
            "error": value_error(name),
            "layout": known.layout,
        }
        if name == "tq3_0":
            row["theory"] = theory()
        if name in cache.FORMATS:
            row["attention"] = attention_error(name)
            row["us"] = times(name, gpu)
        found.append(row)
    return found
