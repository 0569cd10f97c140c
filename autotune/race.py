"""Which of two is faster, when both are noisy.

    A B B A   A B B A   A B B A  …      a block is one replay of each graph, twice; a drift of the clock cancels in it
    look      look               …      after 3, 6, 12, 24 and 48 blocks: stop as soon as the answer is clear

A block gives one ratio b / a. At every look the ratio's mean has a confidence interval (Student's t on its logarithm,
one error in a hundred shared out over all looks and both sides). b is faster when the whole interval lies beyond the
margin, slower when it lies beyond it on the other side, and a tie in every other case: a gain smaller than the margin,
or smaller than the noise, is none.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

Sample = Callable[[], float]
# blocks at a look -> how many are left out at either end, and the quantile of Student's t, at the degrees of freedom
# left, for one error in a thousand on a side
LOOKS = {3: (0, 22.33), 6: (0, 5.89), 12: (1, 4.30), 24: (2, 3.58), 48: (4, 3.31)}
MARGIN = 0.01


@dataclass(frozen=True)
class Race:
    """How b stands against a. `low` and `high` bound b / a."""

    verdict: str
    ratio: float
    low: float
    high: float
    a: tuple[float, ...]
    b: tuple[float, ...]


def block(a: Sample, b: Sample) -> tuple[float, float]:
    """One ABBA block: microseconds of a and of b."""
    a1, b1, b2, a2 = a(), b(), b(), a()
    return (a1 + a2) / 2, (b1 + b2) / 2


def race(a: Sample, b: Sample, most: int = 24, margin: float = MARGIN) -> Race:
    """Run blocks until the answer is clear or `most` of them have been run."""
    blocks: list[tuple[float, float]] = []
    low, high, middle = 0.0, math.inf, 1.0
    for look, (cut, quantile) in LOOKS.items():
        if look > most:
            break
        while len(blocks) < look:
            blocks.append(block(a, b))
        mean, error = _trimmed([math.log(us_b / us_a) for us_a, us_b in blocks], cut)
        half = quantile * error
        middle, low, high = math.exp(mean), math.exp(mean - half), math.exp(mean + half)
        if low > 1 + margin or high < 1 - margin or (low > 1 - margin and high < 1 + margin):
            break
    verdict = "slower" if low > 1 + margin else "faster" if high < 1 - margin else "tie"
    return Race(verdict, middle, low, high, tuple(a for a, _ in blocks), tuple(b for _, b in blocks))


def _trimmed(values: list[float], cut: int) -> tuple[float, float]:
    """The mean without `cut` values at either end, and its standard error (Yuen 1974)."""
    ranked = sorted(values)
    count = len(ranked)
    kept = ranked[cut : count - cut]
    pulled = [kept[0]] * cut + kept + [kept[-1]] * cut
    return statistics.fmean(kept), statistics.stdev(pulled) * math.sqrt(count) / len(kept)


def quantiles(samples: tuple[float, ...]) -> tuple[float, float, float]:
    """p20, p50 and p80."""
    cuts = statistics.quantiles(samples, n=10, method="inclusive") if len(samples) > 1 else [samples[0]] * 9
    return cuts[1], cuts[4], cuts[7]
