"""The line through times against context, and caches that repeat a drawn one."""

import pytest
import torch
from draftwood.perf import context
from draftwood.reference.ops import find


def test_a_line_is_found_again_and_its_worst_point_named():
    rows = [
        {"format": format, "T": 1, "context": 1024 * k, "us": {"p50": 5.0 + 0.25 * k + bump}}
        for format, bump in (("f16", 0.0), ("q4_0", 3.0))
        for k in (8, 16, 64)
    ]
    rows[-1]["us"]["p50"] *= 1.01
    exact, bent = context.fits(rows)
    assert (exact["fixed_us"], exact["us_per_1k"]) == pytest.approx((5.0, 0.25))
    assert exact["worst"] < 1e-12 and exact["r2"] == pytest.approx(1.0)
    assert bent["format"] == "q4_0" and 0.001 < bent["worst"] < 0.01


def test_a_long_cache_repeats_the_rows_of_a_short_one():
    op = find("tree_attention")
    case = op.spec.cases["smoke"][0].but(context=96, format_k="q8_0", format_v="q4_0")
    inputs = context.repeated(case, 32, torch.device("cpu"))
    cache = inputs["cache_k"]
    assert cache.shape[1] == 96 + case["T"] + case["spare"] and int(inputs["start"]) == 96
    assert torch.equal(cache[:, :32], cache[:, 64:96])
    with pytest.raises(ValueError, match="does not repeat"):
        context.repeated(case.but(context=97), 32, torch.device("cpu"))
