"""The `caskd eval` commands over whatever is finished, seeds always paired."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs import Job, Recipe
from scales import CONDITIONS, PRIMARY, RULE_ARMS, SECONDARY

RULES = ("average", "sum", "min", "max", "quantile-0.2", "quantile-0.4", "quantile-0.6",
         "quantile-0.8", "first-token", "entropy", "margin")  # fmt: skip
LEARNED_RULES = ("edge-inference", "post-hoc-mlp")


def reports(recipe: Recipe) -> Iterator[Job]:
    """Measure anew: the primary arms of every condition, all objectives, and the deferral rules."""
    for pool in recipe.scale.pools:
        for condition, (_, teacher) in CONDITIONS.items():
            folder = recipe.work / pool / condition
            large = str(folder.parent / f"teacher-{teacher}-test.parquet")
            common = ("--large", large, "--rule", "average")
            seeds = finished(folder, PRIMARY, "test")
            yield from _measured(folder, "report", seeds, common)
            if condition != "clean":
                continue
            seeds = finished(folder, (*PRIMARY, *SECONDARY), "test")
            yield from _measured(folder, "report-objectives", seeds, common)
            own = str(folder.parent / f"teacher-{teacher}-calibration.parquet")
            rules = tuple(w for rule in (*RULES, *LEARNED_RULES) for w in ("--rule", rule))
            seeds = finished(folder, RULE_ARMS, "calibration")
            fitted = ("--large", large, *rules, "--calibration-large", own)
            yield from _measured(folder, "report-rules", seeds, fitted, calibrated=True)


def finished(folder: Path, arms: Sequence[str], part: str) -> dict[str, list[int]]:
    """Arm -> its seeds, of which all arms that were begun have the same."""
    found = {
        arm: {
            int(file.parent.name.rpartition("-")[2])
            for file in folder.glob(f"{arm}-[0-9]*/{part}.parquet")
        }
        for arm in arms
    }
    begun = {arm: seeds for arm, seeds in found.items() if seeds}
    shared = sorted(set.intersection(*begun.values())) if begun else []
    return dict.fromkeys(begun, shared) if shared else {}


def _measured(
    folder: Path, name: str, seeds: Mapping[str, Sequence[int]], options: Sequence[str], *,
    calibrated: bool = False,
) -> Iterator[Job]:  # fmt: skip
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)  # made anew from what is finished by now
    if not seeds:
        return
    runs = [(arm, folder / f"{arm}-{seed}") for arm, own in seeds.items() for seed in own]
    words = ["eval", "--out", str(out), *options]
    for arm, run in runs:
        words += ["--small", f"{arm}={run / 'test.parquet'}"]
        if calibrated:
            words += ["--calibration-small", str(run / "calibration.parquet")]
    (folder / f"{name}.json").write_text(json.dumps({"arms": dict(seeds)}))
    yield Job(out / "summary.json", tuple(words))
