"""Knobs of double_rows: which fault, and a knob that is sound."""

from typing import Any

from draftwood.reference.spec import Case

FAULTS = ("wrong", "racy", "non_deterministic", "out_of_bounds", "hanging", "crashing", "wrong_on_odd_rows")
SPACE: dict[str, tuple[Any, ...]] = {"fault": ("none", *FAULTS), "num_warps": (2, 4)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["fault"] != "none" and config["num_warps"] != 4:
        return "one of each fault is enough"
    return None
