"""Knobs of topk_logprobs: a chunk is GROUPS x GROUP logits."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {
    "GROUPS": (32, 64, 128, 256),
    "GROUP": (16, 32, 64, 128),
    "num_warps": (1, 2, 4, 8),
    "merge_warps": (1, 4, 8),
}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    chunk = config["GROUPS"] * config["GROUP"]
    if chunk > 128 * 32 * config["num_warps"]:
        return f"a chunk of {chunk} on {config['num_warps']} warps is more than 128 logits a lane"
    keys = -(-case["V"] // chunk) * case["k"]
    if keys > 128 * 32 * config["merge_warps"]:
        return f"{keys} keys on {config['merge_warps']} warps are more than 128 a lane"
    return None
