"""Chains of three or more models.

Every model except the last defers examples whose score reaches its threshold.

Every model that answers costs; one whose rule defers before it answers costs what was spent until
then. With one threshold per model there is no single curve but a cloud of
settings. The frontier is its upper left edge: the settings that no other beats in both quality and
cost.

Legend: E examples, M models that may defer, G thresholds per model, F points of the frontier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.eval.curves.deferral import finite_scores
from caskd.store.errors import UsageError
from caskd.store.spacing import thin

FloatArray = npt.NDArray[np.float64]

MAX_SETTINGS = 1 << 18
"""Settings to try: 512 thresholds for each of two models, 64 for each of three."""


@dataclass(frozen=True, eq=False)
class Link:
    """One model of a chain but the last."""

    score: FloatArray
    """[E] deferral score."""
    quality: FloatArray
    """[E] of its answers."""
    cost: FloatArray
    """[E] of its answers."""
    saved: FloatArray | None = None
    """[E] part of `cost` that examples which it defers do not incur, because its rule decides
    before; none by default."""

    def __post_init__(self) -> None:
        """Give infinite scores a finite threshold: one of infinity defers nothing."""
        object.__setattr__(self, "score", finite_scores(self.score))

    @property
    def avoided(self) -> FloatArray:
        """`saved` [E], 0 for none."""
        return np.zeros(self.cost.size) if self.saved is None else self.saved


@dataclass(frozen=True, eq=False)
class Frontier:
    """The settings of a chain that no other setting beats, by rising cost."""

    cost: FloatArray
    """[F] mean cost per example."""
    quality: FloatArray
    """[F] mean quality."""
    thresholds: FloatArray
    """[F, M] a model defers an example if score >= threshold; infinity never defers."""
    answered: FloatArray
    """[F, M + 1] share of the examples that each model answers."""
    num_settings: int
    """Number of settings tried."""

    def quality_at(self, cost: float) -> float | None:
        """Best quality at up to this cost; None if even the cheapest setting costs more."""
        reached = np.flatnonzero(self.cost <= cost)
        return float(self.quality[reached[-1]]) if reached.size else None


def chain_frontier(
    links: Sequence[Link], last_quality: FloatArray, last_cost: FloatArray
) -> Frontier:
    """Try every combination of thresholds and keep those that no other beats.

    Thresholds are quantiles of each model's own scores, so that equal scores stay together. The
    sums of all settings come from one histogram of the examples, in O(E + G^M).

    Args:
        links: the models but the last, in the order in which they answer.
        last_quality: [E] of the last model's answers.
        last_cost: [E] of the last model's answers.

    Raises:
        UsageError: fewer than two models may defer, or too many for a grid of thresholds.
    """
    if not 2 <= len(links) <= 6:
        raise UsageError(
            f"--chain: has {len(links) + 1} models; expected 3 to 7; for two models pass --small"
        )
    steps = round(MAX_SETTINGS ** (1.0 / len(links))) - 1
    grids = [_thresholds(link.score, steps) for link in links]
    cost, quality, answered = _settings(links, grids, last_quality, last_cost)
    best = unbeaten(cost.ravel(), quality.ravel())
    picks = np.unravel_index(best, cost.shape)
    return Frontier(
        cost=cost.ravel()[best],
        quality=quality.ravel()[best],
        thresholds=np.stack([grid[pick] for grid, pick in zip(grids, picks, strict=True)], axis=1),
        answered=np.stack([share.ravel()[best] for share in answered], axis=1),
        num_settings=cost.size,
    )


def apply_thresholds(
    links: Sequence[Link],
    last_quality: FloatArray,
    last_cost: FloatArray,
    thresholds: npt.ArrayLike,
) -> tuple[float, float, npt.NDArray[np.int64]]:
    """Cost, quality, and which model answers each example [E], under one setting."""
    here = np.ones(last_quality.size, dtype=bool)
    answerer = np.full(last_quality.size, len(links))
    cost, quality = np.zeros(last_quality.size), last_quality.astype(np.float64)
    for number, (link, threshold) in enumerate(
        zip(links, np.asarray(thresholds, dtype=np.float64), strict=True)
    ):
        cost += np.where(here, link.cost - link.avoided, 0.0)
        keeps = here & ~(link.score >= threshold)
        cost += np.where(keeps, link.avoided, 0.0)
        quality = np.where(keeps, link.quality, quality)
        answerer[keeps] = number
        here &= ~keeps
    cost += np.where(here, last_cost, 0.0)
    return float(cost.mean()), float(quality.mean()), answerer


def _thresholds(score: FloatArray, steps: int) -> FloatArray:
    """Rising thresholds, from one that defers everything to infinity, which defers nothing."""
    values = np.unique(score)
    if values.size > steps:
        ordered = np.sort(score)
        values = np.unique(ordered[thin(score.size, steps)])
    return np.concatenate((values, [np.inf]))


def _settings(
    links: Sequence[Link],
    grids: Sequence[FloatArray],
    last_quality: FloatArray,
    last_cost: FloatArray,
) -> tuple[FloatArray, FloatArray, list[FloatArray]]:
    """Cost and quality of every setting, and the share of each model: arrays [G, ...]."""
    # Cell c of an example: thresholds 0 ... c - 1 of the grid defer it.
    cells = [
        np.searchsorted(grid, link.score, side="right")
        for link, grid in zip(links, grids, strict=True)
    ]
    shape = tuple(grid.size for grid in grids)
    cost, quality, answered = np.zeros(shape), np.zeros(shape), []
    reached = np.ones((1,) * len(links))
    for number, link in enumerate(links):
        axes = number + 1  # the thresholds that matter so far
        passed = [
            _sums(cells[:axes], shape[:axes], values, len(links))
            for values in (link.quality, np.ones(last_quality.size), link.avoided)
        ]
        before = [
            _sums(cells[:number], shape[:number], values, len(links))
            for values in (link.quality, np.ones(last_quality.size), link.cost)
        ]
        quality = quality + before[0] - passed[0]
        answered.append(np.broadcast_to(before[1] - passed[1], shape))
        cost = cost + before[2] - passed[2]
        reached = passed[1]
    answered.append(np.broadcast_to(reached, shape))
    quality = quality + _sums(cells, shape, last_quality, len(links))
    cost = cost + _sums(cells, shape, last_cost, len(links))
    return cost, quality, answered


def _sums(
    cells: Sequence[npt.NDArray[np.int64]], shape: tuple[int, ...], values: FloatArray, rank: int
) -> FloatArray:
    """Mean over E of `values` where all these models defer, by combination of thresholds."""
    if not cells:
        return np.full((1,) * rank, values.mean())
    wide = tuple(size + 1 for size in shape)
    flat = np.ravel_multi_index(tuple(cells), wide)
    table = np.bincount(flat, weights=values, minlength=int(np.prod(wide))).reshape(wide)
    for axis in range(len(shape)):
        # Threshold t defers the cells t + 1 and up.
        table = np.flip(np.cumsum(np.flip(table, axis), axis), axis)
        table = np.take(table, range(1, wide[axis]), axis)
    return (table / values.size).reshape(shape + (1,) * (rank - len(shape)))


def unbeaten(cost: FloatArray, quality: FloatArray) -> npt.NDArray[np.int64]:
    """Indices of the settings that no other beats, by rising cost."""
    order = np.lexsort((-quality, cost))
    best = np.maximum.accumulate(quality[order])
    # Sums in another order differ in their last bits: a rise must be more than that.
    rises = np.concatenate(([True], best[1:] > best[:-1] + 1e-12))
    return order[rises]
