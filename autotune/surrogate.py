"""A Gaussian process over the points of a space, for choosing the next one.

    y(x) = log2(us)      k(x, x') = Matérn 5/2 of the distance, each axis with a length of its own

The legal points are few enough to look at all of them: the next one is the untried point with the largest expected
improvement. Nothing is proposed that would have to be moved to a legal point, and a proposal takes milliseconds.
"""

import math

import numpy as np

Array = np.ndarray
LENGTHS = (0.15, 0.3, 0.6, 1.2, 2.4, 5.0)
NOISES = (1e-4, 1e-3, 1e-2, 1e-1)
SWEEPS = 2


def _matern(x: Array, z: Array, lengths: Array) -> Array:
    apart = np.sqrt(np.maximum(0.0, (((x[:, None] - z[None]) / lengths) ** 2).sum(-1)))
    scaled = math.sqrt(5.0) * apart
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)


class Surrogate:
    """Fitted to x [n, d] in 0..1 and y [n]."""

    def __init__(self, x: Array, y: Array) -> None:
        self.x, self.mean, self.scale = x, y.mean(), max(float(y.std()), 1e-6)
        self.y = (y - self.mean) / self.scale
        self.lengths, self.noise = np.full(x.shape[1], 0.6), 1e-3
        best = self._evidence(self.lengths, self.noise)
        for _ in range(SWEEPS):
            for axis in range(x.shape[1]):
                for length in LENGTHS:
                    lengths = self.lengths.copy()
                    lengths[axis] = length
                    if (found := self._evidence(lengths, self.noise)) > best:
                        best, self.lengths = found, lengths
            for noise in NOISES:
                if (found := self._evidence(self.lengths, noise)) > best:
                    best, self.noise = found, noise
        self.factor = self._factor(self.lengths, self.noise)
        self.weights = np.linalg.solve(self.factor.T, np.linalg.solve(self.factor, self.y))

    def _factor(self, lengths: Array, noise: float) -> Array:
        return np.linalg.cholesky(_matern(self.x, self.x, lengths) + (noise + 1e-8) * np.eye(len(self.x)))

    def _evidence(self, lengths: Array, noise: float) -> float:
        """Log of the marginal likelihood, with a mild preference for long lengths where little is known."""
        factor = self._factor(lengths, noise)
        half = np.linalg.solve(factor, self.y)
        prior = -0.5 * float((np.log(lengths / 0.6) ** 2).sum()) / 4.0
        return float(-0.5 * half @ half - np.log(np.diag(factor)).sum()) + prior

    def predict(self, z: Array) -> tuple[Array, Array]:
        """Mean and standard deviation at z [m, d], in units of y."""
        cross = _matern(z, self.x, self.lengths)
        mean = cross @ self.weights
        half = np.linalg.solve(self.factor, cross.T)
        deviation = np.sqrt(np.maximum(1e-12, 1.0 - (half**2).sum(0)))
        return mean * self.scale + self.mean, deviation * self.scale

    def improvement(self, z: Array, best: float) -> Array:
        """Expected improvement on `best` at z."""
        mean, deviation = self.predict(z)
        u = (best - mean) / deviation
        density = np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)
        mass = 0.5 * (1.0 + np.vectorize(math.erf)(u / math.sqrt(2.0)))
        return deviation * (u * mass + density)
