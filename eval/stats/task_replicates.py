"""Bootstrap replicates of more figures: per task, and the deferral rate at a fixed quality.

The resampled examples are those of `bootstrap.area_replicates`, so that all figures share them.

Legend: E examples (e of one task), B replicates (b of a tile), S series, P blocks of equal scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import Units
from caskd.eval.curves import defer_order
from caskd.eval.stats.bootstrap import (
    EXACT_UP_TO,
    NUM_REPLICATES,
    SEED,
    Series,
    WeightedArea,
    area_influence,
    example_weights,
)
from caskd.store.spacing import thin

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_BLOCKS = 2000


@dataclass(frozen=True, eq=False)
class TaskReplicates:
    """Figures of one task in each replicate."""

    size: FloatArray
    """[B] examples of the task."""
    area: FloatArray
    """[S, B] area under the curve over these examples; 0 without any."""
    small: FloatArray
    """[S, B] mean quality of the small models on them."""
    large: FloatArray
    """[B] mean quality of the large model on them."""


def replicates_by_task(
    series: Sequence[Series],
    large_quality: FloatArray,
    tasks: Sequence[IntArray],
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = SEED,
    units: Units = None,
) -> list[TaskReplicates]:
    """Resample all examples together and measure every task separately in each replicate.

    Args:
        series: scores and qualities of each small model on the same examples.
        large_quality: [E] quality of the large model, which all cascades share.
        tasks: indices of the examples of each task.
        num_replicates: B.
        seed: random seed of the replicates.
        units: question of each example.
    """
    parts = [_Task(series, large_quality, indices) for indices in tasks]
    tiles = [
        [part(weights) for part in parts]
        for weights in example_weights(large_quality.size, num_replicates, seed, units)
    ]
    return [TaskReplicates(*_joined([tile[task] for tile in tiles])) for task in range(len(parts))]


@dataclass(frozen=True, eq=False)
class PooledReplicates:
    """Figures over all examples in each replicate, besides the area."""

    rate: FloatArray
    """[S, B] smallest deferral rate that reaches the quality; 1 if none does."""
    small: FloatArray
    """[S, B] mean quality of the small models."""
    large: FloatArray
    """[B] mean quality of the large model."""


def pooled_replicates(
    series: Sequence[Series],
    large_quality: FloatArray,
    quality: float,
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = SEED,
    units: Units = None,
) -> PooledReplicates:
    """Resample all examples and find the rate at which each cascade reaches a quality.

    Curves have all their points, or above `EXACT_UP_TO` examples those of `MAX_BLOCKS` blocks.
    """
    curves = [_WeightedRate(score, small, large_quality) for score, small in series]
    tiles = []
    for tile in example_weights(large_quality.size, num_replicates, seed, units):
        weights = tile.astype(np.float64, copy=False)
        total = weights.sum(axis=1)
        small = np.stack([weights @ quality / total for _, quality in series])
        rate = np.stack(
            [curve(weights, quality - mean) for curve, mean in zip(curves, small, strict=True)]
        )
        tiles.append(PooledReplicates(rate, small, weights @ large_quality / total))
    return PooledReplicates(*_joined(tiles))


class _Task:
    """The examples of one task, with weights."""

    def __init__(
        self, series: Sequence[Series], large_quality: FloatArray, indices: IntArray
    ) -> None:
        self.indices = indices
        large = large_quality[indices]
        own = [(score[indices], small[indices]) for score, small in series]
        self.large, self.smalls = large, [small for _, small in own]
        area = WeightedArea if indices.size <= EXACT_UP_TO else _linear_area
        self.areas: list[Callable[[FloatArray], FloatArray]] = [
            area(score, small, large) for score, small in own
        ]

    def __call__(self, weights: npt.NDArray[np.floating]) -> TaskReplicates:
        """Figures for weights [b, E] of all examples."""
        own = weights[:, self.indices].astype(np.float64)
        size = own.sum(axis=1)
        total = np.maximum(size, 1.0)
        return TaskReplicates(
            size=size,
            area=np.stack([area(own) for area in self.areas]),
            small=np.stack([own @ small / total for small in self.smalls]),
            large=own @ self.large / total,
        )


def _linear_area(
    score: FloatArray, small: FloatArray, large: FloatArray
) -> Callable[[FloatArray], FloatArray]:
    """Areas [b] for weights [b, e], to first order."""
    area, influence = area_influence(score, small, large)
    return lambda weights: area + weights @ influence / np.maximum(weights.sum(axis=1), 1.0)


def _joined(tiles: Sequence[Any]) -> Iterator[FloatArray]:
    """Each field of the tiles, concatenated along the replicates."""
    for field in fields(tiles[0]):
        yield np.concatenate([getattr(tile, field.name) for tile in tiles], axis=-1)


class _WeightedRate:
    """Where a deferral curve with weighted examples reaches a quality."""

    def __init__(self, score: FloatArray, small: FloatArray, large: FloatArray) -> None:
        self.order, ends = defer_order(score, small, large)
        self.gain = (large - small)[self.order]
        starts = ends[:-1]
        if score.size > EXACT_UP_TO:
            starts = starts[thin(starts.size, MAX_BLOCKS)]
        self.starts = starts

    def __call__(self, weights: FloatArray, wanted: FloatArray) -> FloatArray:
        """Rates [b] that gain `wanted` [b] over the small model, for weights [b, E]."""
        sizes = np.take(weights, self.order, axis=1)
        blocks = [np.add.reduceat(part, self.starts, axis=1) for part in (sizes, sizes * self.gain)]
        # [b, P + 1] deferred examples, and the gain they bring, at each point of the curve
        deferred, gained = (np.pad(np.cumsum(part, axis=1), ((0, 0), (1, 0))) for part in blocks)
        total = deferred[:, -1]
        reached = gained >= (wanted * total)[:, None]
        point = reached.argmax(axis=1)
        rows, before = np.arange(point.size), np.maximum(point - 1, 0)
        x0, x1 = deferred[rows, before], deferred[rows, point]
        y0, y1 = gained[rows, before], gained[rows, point]
        # On the line between the last point below and the first at or above.
        share = (wanted * total - y0) / np.where(y1 > y0, y1 - y0, 1.0)
        rate = np.where(point > 0, x0 + (x1 - x0) * np.minimum(share, 1.0), 0.0)
        return np.asarray(np.where(reached.any(axis=1), rate / total, 1.0))
