"""Bytes per row of other targets than the plan's, on rows of the same probe.

Legend: N rows, k cells per row, n random numbers per row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from caskd.precompute.rows import Columns, Fields, Numbers, Targets, targets_from
from caskd.store.format import StoreSpec
from caskd.store.write import ShardExample

_TOPK = {"kind": "topk", "min_mass": 1.0}
_DRAWS = {"kind": "sampled", "sample_seed": 0}
ALTERNATIVES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "--top-k 8": {**_TOPK, "top_k": 8},
        "--top-k 16": {**_TOPK, "top_k": 16},
        "--top-k 64": {**_TOPK, "top_k": 64},
        "--top-k 64 --min-mass 0.99": {**_TOPK, "top_k": 64, "min_mass": 0.99},
        "--sample 16": {**_DRAWS, "num_samples": 16},
        "--sample 50": {**_DRAWS, "num_samples": 50},
        "--sample 100": {**_DRAWS, "num_samples": 100},
        "--sample 16 --head 8": {
            "kind": "head_sampled", "sample_seed": 0, "num_samples": 16, "head": 8,
        },
        "--sample 32 --head 16": {
            "kind": "head_sampled", "sample_seed": 0, "num_samples": 32, "head": 16,
        },
    }
)  # fmt: skip
"""Flags -> the fields of `identity.capture` that they mean."""


def fitting_alternatives(num_columns: int) -> dict[str, Mapping[str, Any]]:
    """Those of `ALTERNATIVES` that a teacher with this many logits can fill."""
    return {
        flags: capture
        for flags, capture in ALTERNATIVES.items()
        if capture.get("top_k", 0) <= num_columns and capture.get("head", 0) < num_columns
    }


@dataclass(frozen=True)
class ManyTargets:
    """Several targets of the same logits; a column is named `FLAGS/COLUMN`."""

    captures: Mapping[str, Mapping[str, Any]]

    def _each(self) -> dict[str, Targets]:
        return {flags: targets_from(capture) for flags, capture in self.captures.items()}

    def numbers(self, examples: Sequence[ShardExample]) -> Numbers:
        """Random numbers [N, n] for the targets that draw most."""
        each = [targets.numbers(examples) for targets in self._each().values()]
        return max(each, key=lambda numbers: numbers.shape[1])

    def columns(self, logits: Tensor, labels: Tensor, numbers: Tensor) -> Columns:
        """Reduce a tile for each of the targets."""
        return {
            f"{flags}/{name}": values
            for flags, targets in self._each().items()
            for name, values in targets.columns(
                logits, labels, numbers[:, : self.captures[flags].get("num_samples", 0)]
            ).items()
        }

    def stored(self, columns: Fields) -> Fields:
        """The row fields of each of the targets."""
        return {
            f"{flags}/{name}": values
            for flags, targets in self._each().items()
            for name, values in targets.stored(of_flags(columns, flags)).items()
        }


def of_flags(columns: Fields, flags: str) -> Fields:
    """The columns of one of several targets."""
    own = f"{flags}/"
    return {
        name.removeprefix(own): values for name, values in columns.items() if name.startswith(own)
    }


def alternative_spec(spec: StoreSpec, capture: Mapping[str, Any]) -> StoreSpec:
    """The spec of the same store with other targets, in the plan's encoding."""
    return replace(spec, identity={**spec.identity, "capture": capture})


def alternative_lines(found: Sequence[Mapping[str, Any]], num_rows: int) -> list[str]:
    """The alternatives side by side, for a terminal."""
    if not found:
        return []
    width = max(len(each["flags"]) for each in found)
    lines = [f"  instead     bytes of a row with other targets, on {num_rows:,} rows of the probe"]
    return lines + [
        f"    {each['flags'].ljust(width)} {each['bytes_per_row']:>7.1f}  "
        f"({each['mean_cells']:.1f} cells, {each['encoding']})"
        for each in found
    ]


def mean_cells(rows: Fields) -> float:
    """Mean number of cells of the rows with a teacher."""
    kept = rows["num_kept"]
    return float(kept[kept > 0].mean()) if np.any(kept) else 0.0
