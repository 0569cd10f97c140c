"""Gaussian processes over the points of a space, for choosing the next one.

    y(x) = b · m(x) + f(x)      m: what is foreseen (effort.py), or nothing; b: how far that is believed, 0 to 1
    k(x, x') = u · sum of w_i · M(x_i - x'_i)  +  (1 - u) · M(|x - x'|)         M: Matérn 5/2

What a few trials say fits many models: MEMBERS of them are drawn once (b, lengths, w, u, noise), each is weighed by how
well it explains the trials, and what is expected of a point is their weighted mean. No single one is fitted, so that
ten trials do not decide how rough a space is. The scale of f is integrated out.

The legal points are few enough to look at all of them: the next one is the untried point with the largest expected
improvement. Nothing is proposed that would have to be moved to a legal point, and a proposal takes milliseconds.
"""

import math

import numpy as np

Array = np.ndarray
MEMBERS = 96
# of a length: its median, in widths of the space, and the deviation of its logarithm
LENGTH, SPREAD = 0.5, 0.8
# what f is taken for before there is a trial: deviation in log2(us), worth so many trials; and the variance of its mean
SCALE, WORTH, LEVEL = 0.35, 3.0, 4.0
# beside the heaviest model those of less weight than this do not count
LIGHTEST = 1e-3


def _matern(apart: Array) -> Array:
    scaled = math.sqrt(5.0) * apart
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)


# of a polynomial in t = 1 / (1 + z / 2): log(erfc(z) / t) + z^2, to 1.2e-7 for z >= 0 (Numerical Recipes, erfcc)
_ERFC = (
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277,
)


def _mass(u: Array) -> Array:
    """The standard normal distribution's mass below u."""
    z = np.abs(u) / math.sqrt(2.0)
    t = 1.0 / (1.0 + 0.5 * z)
    tail = 0.5 * t * np.exp(np.polynomial.polynomial.polyval(t, _ERFC) - z * z)
    return np.where(u < 0, tail, 1.0 - tail)


class Surrogate:
    """Of the points x [n, d], each axis in 0..1, of which `foreseen` [n] is expected."""

    def __init__(self, x: Array, foreseen: Array, seed: int = 0) -> None:
        random, axes = np.random.default_rng(seed), x.shape[1]
        self.x, self.foreseen = x, foreseen
        self.alone = LENGTH * np.exp(SPREAD * random.standard_normal((MEMBERS, axes)))
        self.joint = 2 * LENGTH * np.exp(SPREAD * random.standard_normal((MEMBERS, axes)))
        self.weights = random.dirichlet(np.full(axes, 0.7), MEMBERS) if axes else np.zeros((MEMBERS, 0))
        self.share, self.belief = random.random(MEMBERS), random.random(MEMBERS)
        self.noise = 10 ** random.uniform(-4.0, -1.5, MEMBERS)
        self.rows: dict[int, Array] = {}

    def _row(self, i: int) -> Array:
        """Covariances [MEMBERS, n] of point i with every point."""
        if i not in self.rows:
            apart = np.abs(self.x - self.x[i])
            single = np.einsum("md,mnd->mn", self.weights, _matern(apart[None] / self.alone[:, None]))
            whole = _matern(np.sqrt(np.einsum("nd,md->mn", apart**2, self.joint**-2.0)))
            self.rows[i] = self.share[:, None] * single + (1.0 - self.share[:, None]) * whole + LEVEL
        return self.rows[i]

    def fit(self, known: list[int], y: Array) -> None:
        """Weigh the models by y at the points `known`."""
        rows, size = np.stack([self._row(i) for i in known], 1), len(known)
        factor = np.linalg.cholesky(rows[:, :, known] + self.noise[:, None, None] * np.eye(size))
        apart = y - self.belief[:, None] * self.foreseen[known]
        mean = apart.mean(1)
        half = np.linalg.solve(factor, (apart - mean[:, None])[:, :, None])[:, :, 0]
        misfit = (half**2).sum(1) + WORTH * SCALE**2
        evidence = -0.5 * (size + WORTH) * np.log(misfit) - np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
        weight = np.exp(evidence - evidence.max())
        heavy = np.flatnonzero(weight > LIGHTEST)
        self.weight = weight[heavy] / weight[heavy].sum()
        self.scale = np.sqrt(misfit[heavy] / (size + WORTH))
        self.mean = mean[heavy, None] + self.belief[heavy, None] * self.foreseen
        self.factor, self.half, self.cross = factor[heavy], half[heavy], rows[heavy]

    def predict(self, at: Array) -> tuple[Array, Array]:
        """Means and standard deviations [models, points] at the points `at`."""
        half = np.linalg.solve(self.factor, self.cross[:, :, at])
        means = self.mean[:, at] + np.einsum("mk,mkp->mp", self.half, half)
        variance = np.maximum(1e-10, 1.0 + LEVEL - (half**2).sum(1))
        return means, np.sqrt(variance) * self.scale[:, None]

    def expected(self, at: Array) -> Array:
        """The models' weighted mean at the points `at`."""
        return self.weight @ self.predict(at)[0]

    def improvement(self, at: Array, best: float) -> Array:
        """Expected improvement on `best` at the points `at`."""
        means, deviation = self.predict(at)
        u = (best - means) / deviation
        density = np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)
        return self.weight @ (deviation * (u * _mass(u) + density))
