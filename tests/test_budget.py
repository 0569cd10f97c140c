"""How large a tree pays: the arithmetic, the published figures, cliffs, and saying 'use the chain'."""

import itertools
import json
import math

import pytest
from draftwood.autotune import budget
from hypothesis import given
from hypothesis import strategies as st

FLAT = {1: 4700.0, 16: 5000.0, 17: 5000.0, 23: 5000.0, 31: 5000.0, 41: 5000.0}


def test_a_chain_yields_the_root_and_what_is_accepted_after_it():
    accept = budget.acceptance({"name": "half", "table": [[0.5, 0.2]] * 3})
    assert accept.chains() == pytest.approx({1: 1.5, 2: 1.75, 3: 1.875})


tables = st.lists(
    st.lists(st.floats(0.01, 0.45), min_size=2, max_size=2).map(lambda row: sorted(row, reverse=True)),
    min_size=2,
    max_size=3,
)


@given(tables)
def test_a_budget_yields_what_the_best_tree_of_that_size_does(rows):
    """Against every subset of prefixes that is a tree."""
    accept = budget.acceptance({"name": "drawn", "table": rows})
    worth = {}
    for depth in range(1, len(rows) + 1):
        for ranks in itertools.product(range(2), repeat=depth):
            worth[ranks] = math.prod(rows[d][r] for d, r in enumerate(ranks))
    best = 1 + sum(sorted(worth.values(), reverse=True)[:3])
    trees = budget.Acceptance("", accept.table).trees(3, chain_seed=False)
    assert trees[3] == pytest.approx(best, rel=1e-4)
    assert accept.trees(len(worth), chain_seed=True)[len(worth)] == pytest.approx(1 + sum(worth.values()), rel=1e-4)


def test_where_verification_is_free_the_largest_gain_wins_and_where_it_is_dear_the_chain_does():
    accept = budget.published()["qwen3.5-27b q4_k_m, HumanEval, RTX 3090"]
    free = budget.advise(accept, FLAT)
    assert free.best.kind == "tree" and free.best.size == 24
    dear = budget.advise(accept, {rows: 1000.0 * rows for rows in FLAT})
    assert dear.best.kind == "autoregressive" and dear.text.startswith("use no speculation")
    steep = budget.advise(accept, {1: 4700, 16: 5000, 17: 6500, 23: 7000, 31: 8000, 41: 9000})
    assert steep.best.kind == "chain" and steep.text.startswith("use the chain of 15")


def test_a_tree_that_wins_by_less_than_the_margin_leaves_the_chain():
    accept = budget.acceptance({"name": "thin", "tree": {"22": 7.70}, "chain": {"15": 7.64}})
    found = budget.advise(accept, {16: 5000.0, 23: 5000.0})
    assert found.best.kind == "chain" and "1.01x of it" in found.text


def test_a_cliff_is_charged_and_named_not_averaged_away():
    curve = {16: 5000.0, 17: 5050.0, 25: 9000.0, 33: 9100.0}
    assert budget.charge(curve, 25) == (9000.0, True)
    assert budget.charge(curve, 20) == (9000.0, False)
    assert budget.charge(curve, 34) is None and budget.charge(curve, 2) is None
    accept = budget.acceptance({"name": "flat", "tree": {"16": 8.0, "20": 8.1, "24": 8.2}, "chain": {"15": 7.6}})
    found = budget.advise(accept, {16: 5000.0, 17: 5050.0, 18: 9000.0, 25: 9100.0})
    assert found.best.size == 16 and found.cliffs == ("17 -> 18 rows: 1.78x",)


def test_what_a_run_recorded_becomes_a_table():
    accept = budget.acceptance({"name": "run", "hits": [[80, 10], [30, 5]], "offers": [[100, 100], [60, 0]]})
    assert accept.table == ((0.8, 0.1), (0.5, 0.0))
    with pytest.raises(ValueError, match="at most 1 in all"):
        budget.acceptance({"name": "too much", "table": [[0.8, 0.4]]})


def test_a_recorded_curve_is_asked_before_a_table():
    accept = budget.acceptance(
        {"name": "run", "table": [[0.5], [0.5]], "tree": {"2": 2.5}, "chain": {"1": 1.5, "2": 2.4}}
    )
    assert accept.trees(2, True) == {2: 2.5} and accept.chains() == {1: 1.5, 2: 2.4}


def test_outside_the_measured_widths_nothing_is_claimed():
    accept = budget.published()["qwen3.6-27b q4_k_m, HumanEval without thinking, RTX 5090"]
    with pytest.raises(ValueError, match="no width is both in the step costs"):
        budget.advise(accept, {8: 5000.0, 16: 5200.0})
    with pytest.raises(ValueError, match="rows verified"):
        budget.costs({"gpu": "sm90-h200"})


def test_the_choice_is_stored_with_the_gpus_configs(tmp_path):
    accept = budget.published()["qwen3.5-27b q4_k_m, HumanEval, RTX 3090"]
    found = budget.advise(accept, FLAT)
    held = json.loads(budget.save("sm90-h200", found, accept, {"source": "measured"}, tmp_path).read_text())
    assert held["choice"]["size"] == 24 and held["source"] == "measured" and len(held["rows"]) == len(found.rows)
