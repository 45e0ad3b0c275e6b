"""The `caskd eval` commands over all finished runs, with paired seeds."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs import Job, Recipe
from pools import POOLS
from scales import CONDITIONS, PRIMARY, RULE_ARMS, TEXT_ARMS

RULES = ("average", "sum", "min", "max", "quantile-0.2", "quantile-0.4", "quantile-0.6",
         "quantile-0.8", "first-token", "entropy", "margin")  # fmt: skip
LEARNED_RULES = ("edge-inference", "post-hoc-mlp")


def reports(recipe: Recipe) -> Iterator[Job]:
    """Evaluate the primary arms of every condition, all objectives, and the deferral rules."""
    for pool, own in recipe.plan().items():
        if POOLS[pool].is_text:
            yield from _next_token(Path(pool))
            continue
        for condition, arms in own["conditions"].items():
            folder, (_, teacher) = Path(pool, condition), CONDITIONS[condition]
            large = folder.parent / f"teacher-{teacher}-test.parquet"
            common = ("--rule", "average")
            seeds = finished(folder, PRIMARY, "test.parquet")
            yield from _measured(folder, "report", seeds, large, common)
            if set(arms) == set(PRIMARY):
                continue
            seeds = finished(folder, tuple(arms), "test.parquet")
            yield from _measured(folder, "report-objectives", seeds, large, common)
            fitting = str(folder.parent / f"teacher-{teacher}-calibration.parquet")
            rules = tuple(w for rule in (*RULES, *LEARNED_RULES) for w in ("--rule", rule))
            seeds = finished(folder, RULE_ARMS, "calibration.parquet")
            fitted = (*rules, "--calibration-large", fitting)
            yield from _measured(folder, "report-rules", seeds, large, fitted, calibrated=True)


def _next_token(root: Path) -> Iterator[Job]:
    """Evaluate the next-token cascade on text that neither model was trained on."""
    folder = root / "clean"
    seeds = finished(folder, TEXT_ARMS, "student/config.json")
    words = ["--next-token", str(root / "test-store")]
    for arm, own in seeds.items():
        for seed in own:
            words += ["--student", f"{arm}={folder / f'{arm}-{seed}' / 'student'}"]
    yield from _evaluated(folder, "report", seeds, words, root / "test-store" / "seal.json")


def finished(folder: Path, arms: Sequence[str], proof: str) -> dict[str, list[int]]:
    """Arm -> the finished seeds that all started arms share."""
    found = {arm: set[int]() for arm in arms}
    for arm in arms:
        for run in folder.glob(f"{arm}-[0-9]*"):
            if (run / proof).exists():
                found[arm].add(int(run.name.rpartition("-")[2]))
    begun = {arm: seeds for arm, seeds in found.items() if seeds}
    shared = sorted(set.intersection(*begun.values())) if begun else []
    return dict.fromkeys(begun, shared) if shared else {}


def _measured(
    folder: Path, name: str, seeds: Mapping[str, Sequence[int]], large: Path,
    options: Sequence[str], *, calibrated: bool = False,
) -> Iterator[Job]:  # fmt: skip
    words = ["--large", str(large), *options]
    for arm, own in seeds.items():
        for seed in own:
            run = folder / f"{arm}-{seed}"
            words += ["--small", f"{arm}={run / 'test.parquet'}"]
            if calibrated:
                words += ["--calibration-small", str(run / "calibration.parquet")]
    yield from _evaluated(folder, name, seeds, words, large)


def _evaluated(
    folder: Path, name: str, seeds: Mapping[str, Sequence[int]], options: Sequence[str], large: Path
) -> Iterator[Job]:
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)  # regenerated from the runs finished by now
    if seeds:
        (folder / f"{name}.json").write_text(json.dumps({"arms": dict(seeds)}) + "\n")
        yield Job(out / "summary.json", ("eval", "--out", str(out), *options), needs=(large,))
