"""The picture of the page: each arm's AUDC minus that of cat-xent, by pool, seed and condition."""

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import reproduction  # noqa: F401
from better_plan import CAT, CONDITIONS, SCREENED_POOLS, screened_arms
from better_runs import SCREENING
from matplotlib.figure import Figure
from report_read import Row

COLOURS = ("#0072b2", "#d55e00")
LABELS = ("clean labels", "20 % of the labels wrong")


def picture(runs: Sequence[Row]) -> bytes:
    """SVG of the screening, the same for the same runs."""
    found = {
        (run["pool"], run["condition"], run["arm"], run["seed"]): run["audc"]
        for run in runs
        if run["stage"] == SCREENING
    }
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(1, len(SCREENED_POOLS))
    for axis, pool in zip(axes, SCREENED_POOLS, strict=True):
        arms = [arm for arm in screened_arms(pool) if arm != CAT][::-1]
        for place, (condition, colour, label) in enumerate(
            zip(CONDITIONS, COLOURS, LABELS, strict=True)
        ):
            points = [
                (value - found[pool, condition, CAT, seed], arms.index(arm))
                for (own, where, arm, seed), value in found.items()
                if (own, where) == (pool, condition)
                and arm in arms
                and (pool, condition, CAT, seed) in found
            ]
            x, y = np.array(points).reshape(-1, 2).T
            axis.scatter(x, y + 0.15 - 0.3 * place, s=16, color=colour, alpha=0.8, label=label)
        axis.axvline(0, color="0.4", linewidth=1)
        axis.set_yticks(range(len(arms)), arms)
        axis.set_title(pool)
        axis.set_xlabel("AUDC minus that of cat-xent, one dot a seed")
        axis.grid(axis="x", color="0.9")
    axes[0].legend(loc="lower left", fontsize=8)
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "better-than-cat"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
