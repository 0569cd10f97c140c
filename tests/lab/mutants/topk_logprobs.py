"""Seeded bugs of topk_logprobs."""

from ..mutation import Mutant

KERNEL = "kernels/topk_logprobs.py"

MUTANTS = (
    Mutant(
        name="topk_logprobs-ties-to-the-higher-id",
        op="topk_logprobs",
        bug="the id stands in the key as it is, so equal logits go to the higher one",
        changes=(
            (KERNEL, "(0x7FFFFFFF - o_near)", "o_near"),
            (KERNEL, "0x7FFFFFFF - (best & 0x7FFFFFFF)", "(best & 0x7FFFFFFF)"),
        ),
    ),
    Mutant(
        name="topk_logprobs-tail-of-zeros",
        op="topk_logprobs",
        bug="the last chunk counts the lanes past the vocabulary as logits of 0",
        changes=((KERNEL, 'mask=o_v < V, other=float("-inf")', "mask=o_v < V, other=0.0"),),
    ),
    Mutant(
        name="topk_logprobs-chunks-not-rescaled",
        op="topk_logprobs",
        bug="sums of exp taken around different maxima are added as they are",
        changes=((KERNEL, "b_mass * tl.exp((b_top - x_max) * inverse_t)", "b_mass"),),
    ),
    Mutant(
        name="topk_logprobs-one-a-group",
        op="topk_logprobs",
        bug="a group is closed once its best is taken",
        changes=(
            (
                KERNEL,
                "tl.where(o_g == i_g, (rest >> 32).to(tl.int32), b_best)",
                "tl.where(o_g == i_g, -(1 << 31), b_best)",
            ),
        ),
    ),
    Mutant(
        name="topk_logprobs-temperature-above-alone",
        op="topk_logprobs",
        bug="the temperature divides the logit but not the sum it is held against",
        changes=((KERNEL, "tl.exp((b_x - _finite(x_max)) * inverse_t)", "tl.exp(b_x - _finite(x_max))"),),
    ),
    Mutant(
        name="topk_logprobs-masked-chunk-is-nan",
        op="topk_logprobs",
        bug="a chunk of nothing but -inf makes -inf - -inf",
        changes=((KERNEL, 'tl.where(x == float("-inf"), 0.0, x)', "x"),),
    ),
    Mutant(
        name="topk_logprobs-two-zeros",
        op="topk_logprobs",
        bug="-0.0 ranks below 0.0",
        changes=(("kernels/lib/order.py", "tl.where(b_x == 0.0, 0.0, b_x)", "b_x"),),
    ),
    Mutant(
        name="topk_logprobs-nan-left-out",
        op="topk_logprobs",
        bug="a NaN adds nothing to the sum: only the nonfinite oracle sees it",
        changes=(
            (
                KERNEL,
                "    b_best = tl.max(order(b_x), 1)",
                '    b_x = tl.where(b_x == b_x, b_x, float("-inf"))\n    b_best = tl.max(order(b_x), 1)',
            ),
        ),
    ),
    Mutant(
        name="topk_logprobs-in-order-of-arrival",
        op="topk_logprobs",
        bug="small chunks lie in the order they end in, and their sums are added so: only the order oracle sees it",
        changes=(
            (KERNEL, "GROUPS: int = 128", "GROUPS: int = 16"),
            (KERNEL, "    mass,\n    V, NC,", "    mass,\n    ended,\n    V, NC,"),
            (
                KERNEL,
                "    tl.store(top + i_r * NC + i_c, x_max)\n    tl.store(mass + i_r * NC + i_c,",
                "    place = tl.atomic_add(ended + i_r, 1)\n"
                "    tl.store(top + i_r * NC + place, x_max)\n    tl.store(mass + i_r * NC + place,",
            ),
            (KERNEL, "keys, top, mass, V,", "keys, top, mass, torch.zeros_like(ids[:, 0]), V,"),
        ),
    ),
    Mutant(
        name="topk_logprobs-peak-without-atomic",
        op="topk_logprobs",
        bug="chunks raise a row's maximum by a load and a store, and lose one another's: only the race oracle sees it",
        changes=(
            (KERNEL, "    mass,\n    V, NC,", "    mass,\n    peak,\n    V, NC,"),
            (
                KERNEL,
                "    tl.store(top + i_r * NC + i_c, x_max)\n",
                "    tl.store(top + i_r * NC + i_c, x_max)\n"
                "    tl.store(peak + i_r, tl.maximum(tl.load(peak + i_r), x_max))\n",
            ),
            (KERNEL, "    mass,\n    ids,", "    mass,\n    peak,\n    ids,"),
            (KERNEL, "_finite(tl.max(b_top))", "_finite(tl.load(peak + i_r))"),
            (
                KERNEL,
                "    _chunks[(chunks, R)](\n",
                '    peak = torch.full((R,), float("-inf"), device=logits.device)\n    _chunks[(chunks, R)](\n',
            ),
            (KERNEL, "keys, top, mass, V,", "keys, top, mass, peak, V,"),
            (KERNEL, "keys, top, mass, ids,", "keys, top, mass, peak, ids,"),
        ),
    ),
    Mutant(
        name="topk_logprobs-tuned-between-calls",
        op="topk_logprobs",
        bug="a shape's second call takes other chunks than its first, so sums round otherwise: only repeat sees it",
        changes=(
            (KERNEL, "\n\ndef topk_logprobs(", "\n\n_seen: set = set()\n\n\ndef topk_logprobs("),
            (
                KERNEL,
                "    config = config or pick(",
                "    tuned = Config(GROUPS=16) if (R, V, k) in _seen else None\n    _seen.add((R, V, k))\n"
                "    config = config or tuned or pick(",
            ),
        ),
    ),
)
