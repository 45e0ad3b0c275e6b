"""Whole runs with a random mask that keeps as many rows as another run."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import write_jsonl
from helpers.training import capture, config_for, read_metrics

from caskd.cli.main import main
from caskd.store.errors import IdentityError, UsageError
from caskd.train import train
from caskd.train.checkpoint import checkpoint_path
from caskd.train.config import TrainConfig
from caskd.train.run import loop as loop_module
from caskd.train.run.plan import plan_run

STEPS = 6
FRACTIONS = [0.5, 0.25, 1.0, 0.75, 0.5, 0.1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("random")
    capture(directory)
    recorded(directory / "other", FRACTIONS)
    train(config_for(directory, out="xent", objective="xent", save_every=3))
    return directory


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    train(options(root, root / "whole", save_every=3))
    return root / "whole"


def recorded(run: Path, fractions: list[float]) -> Path:
    """A run of which only metrics.jsonl is left."""
    run.mkdir(exist_ok=True)
    lines = [{"step": n, "keep_fraction": x} for n, x in enumerate(fractions, start=1)]
    write_jsonl(run / "metrics.jsonl", lines)
    return run


def options(root: Path, out: Path, **changes: Any) -> TrainConfig:
    usual = {"steps": STEPS, "objective": "random-xent", "keep_fraction_from": root / "other"}
    return config_for(root, out=str(out), **{**usual, **changes})


def test_fractions_of_one_give_the_plain_objective_bit_for_bit(root: Path, tmp_path: Path) -> None:
    """The plain run is its own source: it keeps every row."""
    train(options(root, tmp_path / "run", keep_fraction_from=root / "xent"))
    assert read_metrics(tmp_path / "run") == read_metrics(root / "xent")


@pytest.mark.parametrize("changes", [{"micro_batch_size": 2}, {"token_budget": 60}])
def test_another_cut_keeps_the_same_rows(
    root: Path, tmp_path: Path, whole: Path, changes: dict[str, Any]
) -> None:
    train(options(root, tmp_path / "run", **changes))
    for ours, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(whole), strict=True):
        assert ours["keep_fraction"] == theirs["keep_fraction"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_metrics_report_what_was_kept(root: Path, whole: Path) -> None:
    plan = plan_run(options(root, root / "nowhere"))
    for step, (line, fraction) in enumerate(zip(read_metrics(whole), FRACTIONS, strict=True)):
        examples = plan.order.examples_for_step(step, 8)
        num_rows = int(plan.store.row_counts()[examples].sum())
        deviation = (fraction * (1 - fraction) / num_rows) ** 0.5
        assert abs(line["keep_fraction"] - fraction) <= 4 * deviation
        assert plan.mask is not None
        kept = plan.mask.keep(step, plan.store.read(examples, ())).sum()
        assert line["keep_fraction"] == kept / num_rows


def test_the_run_says_what_it_used_wherever_that_was(root: Path, whole: Path) -> None:
    mask = plan_run(options(root, root / "nowhere")).mask
    assert mask is not None
    for file in (whole / "config.json", checkpoint_path(whole, STEPS) / "state.json"):
        content = json.loads(file.read_text())
        assert content["config"]["keep_fraction_from"] == f"sha256:{mask.digest}"
        assert str(root / "other") not in file.read_text()


def test_resume_is_bitwise_and_wants_the_same_fractions(
    root: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real, run = loop_module.train_step, tmp_path / "run"

    def dying(plan: Any, engine: Any, batch: Any, terminated: bool) -> Any:
        if batch.step == 4:
            raise Killed
        return real(plan, engine, batch, terminated)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "train_step", dying)
        with pytest.raises(Killed):
            train(options(root, run, save_every=3))
    changed = recorded(tmp_path / "changed", [*FRACTIONS[:-1], 0.2])
    with pytest.raises(
        IdentityError, match=r"--keep-fraction-from sha256:\w+: expected sha256:.*was started"
    ):
        train(options(root, run, save_every=3, resume=True, keep_fraction_from=changed))
    moved = recorded(tmp_path / "moved", [*FRACTIONS, 0.9])  # and it went on
    train(options(root, run, save_every=3, resume=True, keep_fraction_from=moved))
    assert read_metrics(run) == read_metrics(whole)


def test_a_measurement_has_no_mask_to_report(root: Path, tmp_path: Path) -> None:
    store = str(root / "store")
    train(options(root, tmp_path / "run", steps=1, objective="random-dist", eval_store=store))
    for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines():
        figures = json.loads(line)
        assert figures["keep_fraction"] is None
        assert figures["nll"] > 0


def words(root: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--store", str(root / "store"), "--student", str(root / "student"),
        "--out", str(out), "--steps", str(STEPS), "--global-batch-size", "8", *more,
    ]  # fmt: skip


def test_a_dry_run_shows_the_fractions(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("--keep-fraction-from", str(root / "other" / "metrics.jsonl"))
    command = words(root, tmp_path / "run", "--objective", "random-xent", *source, "--dry-run")
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "mask random, label weight 1" in printed
    assert "51.7% of the rows at random, 10.0% to 100.0% per step (fractions " in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--objective", "random-dist", "--keep-fraction-from", "nothing"],
            "--keep-fraction-from nothing: could not read metrics.jsonl",
        ),
        (
            ["--objective", "random-xent", "--keep-fraction-from", "other", "--steps", "7"],
            "metrics.jsonl: 6 steps are recorded; expected the 7 of --steps",
        ),
    ],
)
def test_mistakes_are_one_line(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(root)
    assert main(words(root, tmp_path / "run", *more)) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("caskd:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_fraction_from": None}, "--objective random-xent.*--keep-fraction-from RUN"),
        ({"objective": "cat-xent"}, "--objective cat-xent .*random-xent or random-dist"),
    ],
)
def test_the_objective_and_its_source_go_together(
    root: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        options(root, tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)
