"""The plan's choice, its tests, its command lines and its page."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from arms import BASES, CONTROL, FLAGS, LATE, RULES, control_of
from better_contrasts import difference, holm, pairs, verdict, wins_and_gains
from better_jobs import Comparison, distinct
from better_page import page
from better_picture import picture
from better_plan import (
    CONDITIONS,
    DEVELOPMENT,
    FRESH,
    PRETRAINED,
    Run,
    choose,
    confirmed_arms,
    promising,
    screened_arms,
    winner,
)
from better_report import progress_rows, screening_rows
from better_runs import Cascade

COMPARISON = Comparison(Path("/sources"), Path("/large"), Path("/small"))
POOL = "generation"


def runs(gains, controls=(), pool=POOL):
    """Runs with AUDC and AUDC above random as far above cat-xent's as given."""
    found = {"cat-xent": (0.0, 0.0), "xent": (0.0, 0.0), **gains, **dict(controls)}
    return [
        Run(pool, condition, arm, seed, 0.4 + seed / 100 + more, 0.01 + over)
        for (arm, (more, over)), condition, seed in product(found.items(), CONDITIONS, DEVELOPMENT)
    ]


def test_candidates_beat_cat_xent_and_their_control():
    gains = {"soft": (0.02, 0.0), "ratio": (0.01, 0.03), "rank2": (0.015, 0.01), "rank4": (-1, 9)}
    equal = {f"{CONTROL}{arm}": (0.0, 0.0) for arm in gains}
    assert choose(runs(gains, equal), POOL) == ["soft", "ratio"]
    assert set(promising(runs(gains), POOL)) == {"soft", "ratio", "rank2"}
    assert choose(runs(gains), POOL) == [], "an arm without its control is no candidate"
    better = {**equal, f"{CONTROL}soft": (0.03, 0.0)}
    assert choose(runs(gains, better), POOL) == ["rank2", "ratio"]
    assert choose(runs({"soft": (-0.01, 1)}, {f"{CONTROL}soft": (-1, 0)}), POOL) == []
    assert choose(runs(gains, equal, "other"), POOL) == []


def test_differences_pair_seeds_and_conditions():
    found = runs({"soft": (0.01, 0)}, {f"{CONTROL}soft": (0, 0)})
    # A seed of soft alone, with a low area, must not count.
    found.append(Run(POOL, CONDITIONS[0], "soft", 29, 0.0, 0.0))
    assert choose(found, POOL) == ["soft"]


def test_holm():
    # Holm (1979): 4 * .005, then max(.02, 3 * .01), max(.03, 2 * .03), max(.06, .04).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    first, second = holm([math.nan, 0.01])
    assert math.isnan(first)
    assert second == pytest.approx(0.02)


def line(**changes):
    row = {
        "stage": "confirmation", "pool": POOL, "condition": "clean", "first": "soft",
        "second": "cat-xent", "measure": "audc", "mean": 0.01, "low": 0.005, "high": 0.015,
        "t_low": 0.004, "t_high": 0.016, "p": 0.001, "p_holm": 0.01, "in_family": True,
        "num_seeds": 10, "planned_seeds": 10,
    }  # fmt: skip
    row |= changes
    return {**row, "verdict": verdict(row)}


def test_a_difference_needs_both_intervals_and_the_corrected_p():
    assert line()["verdict"] == "above"
    for change in ({"p_holm": 0.06}, {"low": -0.001}, {"t_low": -0.001}, {"t_low": None}):
        assert line(**change)["verdict"] == "no difference shown"
    below = {"low": -0.015, "high": -0.005, "t_low": -0.016, "t_high": -0.004}
    assert line(**below)["verdict"] == "below"


def test_a_win_is_over_cat_xent_and_over_the_control():
    control = line(second="random-soft")
    assert wins_and_gains([line(), control]) == ({"soft": 1}, {"soft": 0.01})
    assert wins_and_gains([line(), line(second="random-soft", low=-1)])[0] == {"soft": 0}
    assert wins_and_gains([line()])[0] == {"soft": 0}
    assert wins_and_gains([line(), line(second="random-soft", condition="x")])[0] == {"soft": 0}
    assert winner({"soft": 1}, {"soft": 0.1, "ratio": 0.2}) == "soft"
    assert winner({}, {"soft": 0.1, "ratio": 0.2}) == "ratio"
    assert winner({}, {}) is None


def cascades(shift, seed):
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(9).uniform(size=150)
    small = (rng.uniform(size=150) < 0.8 + shift - hard).astype(float)
    names = [f"q{n // 2}" for n in range(150)]
    return Cascade(hard, small, (hard < 0.9).astype(float), names)


def test_intervals_hold_the_difference():
    ours, theirs = (tuple(cascades(s, n) for n in range(4)) for s in (0.2, 0.0))
    for measure in ("audc", "audc_over_random"):
        row = difference(ours, theirs, measure)
        assert row["low"] < row["mean"] < row["high"]
        assert row["t_low"] < row["mean"] < row["t_high"]
    assert difference(ours, theirs, "audc")["low"] > 0
    assert difference(theirs, ours, "audc")["high"] < 0
    same = difference(ours, ours, "audc_over_random")
    assert same["mean"] == same["low"] == same["high"] == 0


def test_pairs_need_runs_of_both_arms():
    found = list(pairs(["xent", "cat-xent", "soft"]))
    assert ("soft", "cat-xent", "audc_over_random") in found
    assert all(not second.startswith(CONTROL) for _, second, _ in found)
    assert ("soft", "random-soft", "audc") in pairs(["soft", "random-soft"])


def options(job):
    words = job.words[1:]
    return dict(zip(words[::2], words[1::2], strict=True))


def trained(jobs):
    """(pool, condition, arm, seed) -> options of each training of an arm."""
    found = {}
    for job in jobs:
        given = job.words
        if "--objective" in given and job.makes.parts[1] in CONDITIONS:
            arm, _, seed = job.makes.parts[2].rpartition("-")
            found[(*job.makes.parts[:2], arm, int(seed))] = options(job)
    return found


def test_arms_of_a_seed_start_and_train_alike():
    everything = {POOL: screened_arms(POOL)}
    jobs = distinct([*COMPARISON.screening(), *COMPARISON.controls(everything)])
    found = trained(jobs)
    arms = {arm for pool, _, arm, _ in found if pool == POOL}
    assert arms == {*RULES, *FLAGS, *(f"{CONTROL}{a}" for a in (*RULES, *FLAGS) if a != "xent")}
    for (pool, condition, arm, seed), own in found.items():
        base = found[pool, condition, "xent", seed]
        assert own["--seed"] == str(seed)
        assert seed in DEVELOPMENT
        for name in ("--student", "--steps", "--lr", "--global-batch-size", "--token-budget"):
            assert own[name] == base[name]
        if arm != "xent" and "draws" not in arm:
            assert own["--store"] == base["--store"]
        name = arm.removeprefix(CONTROL)
        if arm != name:
            source = own.get("--shuffled") or own["--keep-fraction-from"]
            assert Path(source).parent == Path(pool, condition, f"{name}-{seed}")
        if name in RULES:
            assert own["--rule"] == name
            assert own["--objective"] == "xent"
    late = found[POOL, "clean", LATE, DEVELOPMENT[0]]
    assert int(late["--mask-from-step"]) * 2 == int(late["--steps"])


def test_every_job_has_its_own_output_and_inputs_made_before():
    chosen = {POOL: ["soft"], "classification": []}
    stages = (
        COMPARISON.screening(), COMPARISON.controls({POOL: ["soft", "late", "cat-dist-draws"]}),
        COMPARISON.confirmation(chosen), COMPARISON.pretrained("soft"),
    )  # fmt: skip
    made = set()
    for job in distinct(job for stage in stages for job in stage):
        assert all(need in made for need in job.needs if not need.is_absolute()), job
        made |= {job.makes, *job.makes.parents}


def test_stages_share_no_seed_and_measure_other_questions():
    stages = [set(DEVELOPMENT), set(FRESH), set(PRETRAINED)]
    assert sum(map(len, stages)) == len(set.union(*stages))
    assert (len(FRESH), len(PRETRAINED)) == (10, 5)
    screened = [job for job in COMPARISON.screening() if job.words[0] == "predict"]
    arms = [job for job in screened if job.makes.parts[1] in CONDITIONS]
    assert {Path(options(job)["--data"]).name for job in arms} == {"calibration.jsonl"}
    fresh = [job for job in COMPARISON.confirmation({POOL: ["soft"]}) if job.words[0] == "predict"
             and job.makes.parts[1] in CONDITIONS]  # fmt: skip
    assert {Path(options(job)["--data"]).name for job in fresh} == {"test.jsonl"}
    assert {job.makes.parts[2].rpartition("-")[0] for job in fresh} == set(confirmed_arms(["soft"]))
    assert confirmed_arms(["soft"]) == (*BASES, "random-cat-xent", "soft", "random-soft")


def rows_of(found):
    return [
        {"stage": "screening", "pool": run.pool, "condition": run.condition, "arm": run.arm,
         "seed": run.seed, "audc": run.audc, "mean_weight": 0.5}
        for run in found
    ]  # fmt: skip


def tables(chosen, contrasts=(), arms=("soft",)):
    seen = runs(dict.fromkeys(arms, (0.02, 0.0)), {f"{control_of(arm)}": (0, 0) for arm in arms})
    return {
        "runs": rows_of(seen), "contrasts": list(contrasts),
        "screening": list(screening_rows(seen, chosen)),
        "progress": list(progress_rows(rows_of(seen), chosen, None)),
    }  # fmt: skip


def test_the_page_says_what_is_not_finished():
    text = page(tables({}))
    assert "This comparison is not finished" in text
    assert "confirmation: not begun" in text
    assert "Verdict**: none yet" in text
    assert "| screening | generation | clean labels | ratio | 0 of 3 |" in text
    assert "| soft | 6 | +0.0200 | +0.0200 | +0.0200 |" in text
    none = page(tables({POOL: [], "classification": []}))
    assert "no arm became a candidate" in none


def test_the_page_gives_the_verdict_when_the_confirmation_is_finished():
    contrasts = [line(), line(second="random-soft")]
    found = tables({POOL: ["soft"]}, contrasts)
    assert "Verdict**: none yet" in page(found)
    for row in found["progress"]:
        row["finished_seeds"] = row["planned_seeds"]
    assert "`soft` (in 1)" in page(found)
    found["contrasts"] = [line(low=-1), line(second="random-soft")]
    assert "none of these arms was shown" in page(found)


@pytest.mark.slow
def test_the_picture_is_the_same_for_the_same_runs():
    found = rows_of(runs({"soft": (0.01, 0)}))
    first = picture(found)
    assert first == picture(found)
    assert first != picture(rows_of(runs({"soft": (0.02, 0)})))
