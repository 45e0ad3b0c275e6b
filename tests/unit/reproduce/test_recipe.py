"""The recipe of the reproduction: data of each model, and differences between arms."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "reproduce_cat"))

import lanes
import prepare_data
from jobs import Job, Recipe
from pools import PARTS, POOLS
from prepare_data import corrupt, cut, prepare, write
from scales import CONDITIONS, PRIMARY, SCALES, SECONDARY

RECIPE = Recipe(Path("/sources"), SCALES["cpu"])


def record(number: int, task: str = "parity") -> dict[str, Any]:
    return {"task": task, "prompt": f"{task}: {number}\n", "response": ("even", "odd")[number % 2]}


def test_parts_depend_on_each_example_alone() -> None:
    records = [record(n, task) for n in range(500) for task in ("parity", "other")]
    shares = (0.1, 0.1, 0.4, 0.1, 0.2)
    parts = cut(records, shares)
    shuffled = cut(records[::-1], shares)
    for part, share in zip(PARTS, shares, strict=True):
        assert sorted(map(str, parts[part])) == sorted(map(str, shuffled[part]))
        assert len(parts[part]) == pytest.approx(1000 * share, abs=2)
    prompts = [kept["prompt"] for own in parts.values() for kept in own]
    assert len(prompts) == len(set(prompts))


def test_noise_is_another_response_of_the_same_task() -> None:
    records = [record(n) for n in range(2000)] + [record(n, "same") for n in range(0, 100, 2)]
    noisy = corrupt(records, 0.2)
    assert noisy == corrupt(records, 0.2)
    changed = [(old, new) for old, new in zip(records, noisy, strict=True) if old != new]
    assert len(changed) / 2000 == pytest.approx(0.2, abs=0.03)
    for old, new in changed:
        assert new["response"] != old["response"]
        assert new["response"] in ("even", "odd")
        assert {**old, "response": 0, "answers": 0} == {**new, "response": 0, "answers": 0}
    assert all(new["response"] == "even" for new in noisy if new["task"] == "same")


def test_a_duplicate_example_is_in_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("scan/simple_train.jsonl", "scan/simple_test.jsonl",
                 "instruction_induction/train.jsonl"):  # fmt: skip
        lines = [
            json.dumps({"task": "t", "prompt": f"walk  {n}", "target": "WALK"}) for n in range(60)
        ]
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("\n".join(lines * 2))
    written: list[str] = []
    monkeypatch.setattr(
        prepare_data, "write", lambda path, own: (written.append(path.name), write(path, own))
    )
    prepare(tmp_path, tmp_path / "out", POOLS["generation"], [0.2, 0.4])
    [prepared] = (job for job in RECIPE.jobs() if job.makes.parts[:2] == ("generation", "data"))
    assert prepared.makes.name == written[-1], "a kill would leave parts that look whole"
    seen = []
    for part in PARTS:
        seen += (tmp_path / "out" / f"{part}.jsonl").read_text().splitlines()
    # The two sources hold the same prompts here; each alone gives 60.
    assert 0.8 * 120 < len(seen) <= 120


def test_every_command_has_its_own_output_and_existing_inputs() -> None:
    made: set[Path] = set()
    for job in RECIPE.jobs():
        assert job.makes not in made
        assert all(need in made or need.parent in _folders(made) for need in job.needs), job.needs
        if job.words[0] == "train":
            assert Path(options(job)["--student"]) in job.needs
        made.add(job.makes)


def _folders(made: set[Path]) -> set[Path]:
    return {path.parent for path in made}


def options(job: Job) -> dict[str, str]:
    return dict(zip(job.words[1::2], job.words[2::2], strict=True))


@pytest.mark.parametrize("pool", SCALES["cpu"].pools)
def test_the_arms_of_a_seed_differ_in_their_objective_only(pool: str) -> None:
    trained: dict[tuple[str, str], list[dict[str, str]]] = {}
    for job in RECIPE.jobs():
        if (
            job.words[0] == "train"
            and job.makes.parts[0] == pool
            and job.makes.parts[1] in CONDITIONS
        ):
            words = options(job)
            seed = words.pop("--seed")
            assert job.makes.parts[2] == f"{words.pop('--objective')}-{seed}"
            words.pop("--out")
            source = words.pop("--keep-fraction-from", None)
            if job.makes.parts[2].startswith("random"):
                assert source == str(Path(*job.makes.parts[:2], f"cat-xent-{seed}", "run"))
            assert words["--student"] == f"{pool}/pretrained-{seed}"
            assert Path(words["--student"]) in job.needs
            trained.setdefault((job.makes.parts[1], seed), []).append(words)
    assert trained
    for arms in trained.values():
        assert all(words == arms[0] for words in arms)


def test_the_plan_names_what_the_jobs_train() -> None:
    planned = {
        Path(pool, condition, f"{arm}-{seed}")
        for pool, own in RECIPE.plan().items()
        for condition, arms in own["conditions"].items()
        for arm, seeds in arms.items()
        for seed in seeds
    }
    trained = {Path(*job.makes.parts[:3]) for job in RECIPE.jobs()
               if job.makes.name == "student"}  # fmt: skip
    assert planned == trained
    assert len(RECIPE.plan()["generation"]["conditions"]["clean"]) == len(PRIMARY) + len(SECONDARY)


def test_an_interrupted_training_resumes_or_restarts(tmp_path: Path) -> None:
    job = Job(tmp_path / "x", ("train",), resumes=tmp_path / "run")
    assert lanes.command_of(job) == ("train",)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert lanes.command_of(job) == ("train",)
    assert not (tmp_path / "run").exists(), "a run without a checkpoint must not block its restart"
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-00000002" / "COMPLETE").touch()
    assert lanes.command_of(job) == ("train", "--resume")


def test_jobs_that_need_a_failed_job_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lanes, "PRELOADED", [])
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    bad = Job(Path("bad"), ("store", "info", "nowhere"))
    after = Job(Path("after"), ("store", "info", "nowhere"), needs=(Path("bad"),))
    assert lanes.Lanes(2, 1).run([bad, after]) == [bad]
    assert "nowhere" in (tmp_path / "logs" / "bad.log").read_text()
    assert not (tmp_path / "logs" / "after.log").exists()
    assert not (tmp_path / "seconds.jsonl").exists()


def test_preloaded_modules_exist() -> None:
    assert all(importlib.util.find_spec(name) is not None for name in lanes.PRELOADED)


def test_plain_text_has_no_predictions() -> None:
    jobs = [job for job in RECIPE.jobs() if job.makes.parts[0] == "text"]
    assert {job.words[0] for job in jobs} >= {"precompute", "train", "export"}
    assert all(job.words[0] != "predict" for job in jobs)
