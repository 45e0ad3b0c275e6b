"""Cascade routing (Dekoninck, Baader, Vechev, arXiv 2410.10347): the model to run next, or stop.

Legend: E examples, M models, F settings, R set of models that have answered, S set that holds R.

Every model has a quality estimate, known once it has answered. Estimates are jointly normal; those
of models that have not answered are conditioned on those that have. At each step the rule takes the
S that maximises

    tau(S) = E[max over m in S of estimate_m | estimates of R] - lambda (sum over m in S of cost_m),

stops if S = R and gives the answer of largest estimate, and otherwise runs the first model of S
that has not answered. Unlike a chain it may skip models and return an earlier answer. The paper
searches one lambda per step; here one lambda holds at every step, so that a sweep gives a curve.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, qmc

FloatArray = npt.NDArray[np.float64]

MAX_ROUTED = 5
_DRAWS = 256


@dataclass(frozen=True, eq=False)
class Beliefs:
    """What is known of the models before a question: of a calibration split."""

    mean: FloatArray
    """[M] of the estimates."""
    covariance: FloatArray
    """[M, M] of the estimates."""
    cost: FloatArray
    """[M] mean cost of an answer."""

    @classmethod
    def of(cls, estimates: FloatArray, costs: FloatArray) -> "Beliefs":
        """Of estimates and costs [E, M]."""
        covariance = np.atleast_2d(np.cov(estimates, rowvar=False))
        return cls(estimates.mean(axis=0), covariance, costs.mean(axis=0))

    @cached_property
    def lambdas(self) -> FloatArray:
        """Prices of cost in quality, from free to where only the cheapest model pays."""
        spread = float(np.ptp(self.mean) + np.sqrt(self.covariance.diagonal().max()))
        highest = 10 * max(spread, 1e-6) / max(float(self.cost[self.cost > 0].min()), 1e-30)
        lowest = 1e-3 * max(spread, 1e-6) / float(self.cost.max())
        return np.concatenate(([0.0], np.geomspace(lowest, highest, 60)))


def expected_best(beliefs: Beliefs, estimates: FloatArray, ran: int) -> FloatArray:
    """E[max over S of the estimates | those of R], for every S that holds R.

    Args:
        beliefs: of the calibration split.
        estimates: [E, M]; only columns of R are read.
        ran: R, as bits.

    Returns:
        [2^M, E]; -inf for the empty set and for sets without R.
    """
    num = len(beliefs.mean)
    known = [m for m in range(num) if ran >> m & 1]
    rest = [m for m in range(num) if m not in known]
    values = np.empty((num, len(estimates), _DRAWS))
    values[known] = estimates.T[known][:, :, None]
    if rest:
        cross = beliefs.covariance[np.ix_(rest, known)]
        gain = cross @ np.linalg.pinv(beliefs.covariance[np.ix_(known, known)])
        mean = beliefs.mean[rest] + (estimates[:, known] - beliefs.mean[known]) @ gain.T
        left = beliefs.covariance[np.ix_(rest, rest)] - gain @ cross.T
        sizes, axes = np.linalg.eigh(left)
        noise = (axes * np.sqrt(np.maximum(sizes, 0))) @ _normals(len(rest))
        values[rest] = mean.T[:, :, None] + noise[:, None, :]
    best = np.full((1 << num, len(estimates)), -np.inf)
    for models in range(1, 1 << num):
        if models & ran == ran:
            best[models] = values[[m for m in range(num) if models >> m & 1]].max(0).mean(-1)
    return best


def _normals(size: int) -> FloatArray:
    """Standard normal points [size, D], the same in every run."""
    points = qmc.Sobol(size, scramble=True, seed=0).random(_DRAWS)
    found: FloatArray = norm.ppf(points).T
    return found


@dataclass(frozen=True, eq=False)
class CascadeRouter:
    """The rule on some examples."""

    beliefs: Beliefs
    estimates: FloatArray
    """[E, M] of each answer; read only once its model has answered."""

    @cached_property
    def _best(self) -> dict[int, FloatArray]:
        return {}

    def route(self, price: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The models that run, as bits, and the model that answers, both [E].

        Args:
            price: lambda. Of equal tau the set of lowest cost is taken, and of equal estimates the
                later model.
        """
        count, num = self.estimates.shape
        bits = np.arange(1 << num)[:, None] >> np.arange(num) & 1
        costs = bits @ self.beliefs.cost
        cheapest = np.argsort(costs, kind="stable")
        ran = np.zeros(count, np.int64)
        running = np.ones(count, bool)
        while running.any():
            for done in np.unique(ran[running]):
                here = np.flatnonzero(running & (ran == done))
                if done not in self._best:
                    self._best[done] = expected_best(self.beliefs, self.estimates, int(done))
                tau = self._best[done][:, here] - price * costs[:, None]
                chosen = cheapest[tau[cheapest].argmax(axis=0)]
                missing = chosen & ~done
                running[here[missing == 0]] = False
                ran[here] |= missing & -missing
        shown = np.where(bits[ran] == 1, self.estimates, -np.inf)
        return ran, num - 1 - shown[:, ::-1].argmax(axis=1)

    def measure(
        self, price: float, quality: FloatArray, cost: FloatArray
    ) -> tuple[float, float, FloatArray]:
        """Mean cost and quality under a lambda, and the share of each model's answers [M].

        Args:
            price: lambda.
            quality: [E, M] of the answers.
            cost: [E, M] of the answers.
        """
        ran, answerer = self.route(price)
        every = np.arange(cost.shape[1])
        spent = (cost * (ran[:, None] >> every & 1)).sum(axis=1)
        gained = quality[np.arange(len(quality)), answerer]
        shares = (answerer[:, None] == every).mean(axis=0)
        return float(spent.mean()), float(gained.mean()), shares
