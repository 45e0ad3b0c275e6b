"""Options of a run: evaluation, adapters, optimizers, schedules, trackers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import capture, config_for, read_metrics
from transformers import AutoModelForCausalLM

from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train import train
from caskd.train.checkpoint import CHECKPOINTS, checkpoint_path
from caskd.train.data import collate, fields_to_read
from caskd.train.loss import cascade_aware_loss
from caskd.train.objectives import OBJECTIVES
from caskd.train.run import loop as loop_module
from caskd.train.run.exporter import best_checkpoint, export
from caskd.train.run.failures import OutOfMemoryError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("options")
    capture(directory)
    return directory


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(root: Path) -> Path:
    config = config_for(
        root,
        out="measured",
        steps=6,
        eval_store=str(root / "store"),
        eval_every=2,
        best_metric="kl",
        keep_checkpoints=1,
        lr=3e-3,
        objective="cat-dist",
        tensorboard=True,
    )
    train(config)
    return config.out


def test_the_student_is_evaluated_on_a_store(root: Path, measured: Path) -> None:
    """The metrics of the first line equal those of the dense loss on the untrained student."""
    lines = read_evaluations(measured)
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert lines[-1]["kl"] < lines[0]["kl"]
    assert sorted(lines[0]["tasks"]) == ["t0", "t1", "t2"]
    store = TeacherStore.open(root / "store")
    assert sum(task["num_rows"] for task in lines[0]["tasks"].values()) == store.spec.num_rows

    model = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    batch = collate(store.read(range(len(store)), fields_to_read(OBJECTIVES["dist"])), pad_id=0)
    with torch.no_grad():
        hidden = model.model(batch.input_ids, attention_mask=batch.attention_mask)[0]
        hidden = hidden.flatten(0, 1)[batch.gather_index]
        sums = cascade_aware_loss(
            hidden,
            model.lm_head.weight,
            batch.labels,
            batch.teacher,
            objective="cat-dist",
            impl="dense",
        )
        confidence = model.lm_head(hidden).softmax(1).amax(1).double()
    num_rows = int(sums.num_rows)
    expected = {
        "num_rows": num_rows,
        "nll": float(sums.label_nll) / num_rows,
        "accuracy": int(sums.student_correct) / num_rows,
        "kl": float(sums.teacher_kl) / num_rows,
        "keep_fraction": int(sums.num_kept) / num_rows,
    }
    assert {name: lines[0][name] for name in expected} == pytest.approx(expected, rel=1e-5)
    # One bin's error is at most the average of all, and at least the difference of the averages.
    assert abs(float(confidence.mean()) - expected["accuracy"]) <= lines[0]["ece"] + 1e-6 <= 1


def test_the_best_checkpoint_is_kept_and_exported(measured: Path, tmp_path: Path) -> None:
    lines = read_evaluations(measured)
    best = min(lines[1:], key=lambda line: line["kl"])
    kept = {path.name for path in (measured / CHECKPOINTS).iterdir()}
    assert kept == {checkpoint_path(measured, step).name for step in (best["step"], 6)}
    assert best_checkpoint(measured) == checkpoint_path(measured, best["step"])
    card = (export(best_checkpoint(measured), tmp_path / "best") / "README.md").read_text()
    assert f"nll {best['nll']:.4g}" in card
    assert str(tmp_path.parent) not in card


def test_evaluation_does_not_change_the_training(root: Path, measured: Path) -> None:
    plain = config_for(root, out="unmeasured", steps=6, lr=3e-3, objective="cat-dist")
    train(plain)
    assert read_metrics(plain.out) == read_metrics(measured)


def test_tensorboard_has_the_curves(measured: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(measured / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("eval/tasks/t0/nll")] == [0, 2, 4, 6]


def test_a_resumed_run_measures_what_is_left(root: Path, tmp_path: Path) -> None:
    options = {"steps": 4, "save_every": 2, "eval_store": str(root / "store"), "eval_every": 1}
    config = config_for(root, out=str(tmp_path / "run"), **options)
    last = train(config)
    before = read_evaluations(config.out)
    (last / "COMPLETE").unlink()
    train(dataclasses.replace(config, resume=True))
    assert read_evaluations(config.out) == before
    assert [line["step"] for line in before] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("stage", [1, 3])
def test_adapters_are_trained_alone_and_exported(root: Path, tmp_path: Path, stage: int) -> None:
    config = config_for(
        root, out=str(tmp_path / "run"), steps=4, save_every=2, lora_rank=4, lr=1e-2, w=0.0,
        zero_stage=stage, eval_store=str(root / "store"),
    )  # fmt: skip
    last = train(config)
    figures = read_evaluations(config.out)
    assert figures[-1]["kl"] < figures[0]["kl"]
    expected = losses(config.out)
    (last / "COMPLETE").unlink()
    train(dataclasses.replace(config, resume=True))
    assert losses(config.out) == expected

    merged = AutoModelForCausalLM.from_pretrained(export(config.out, tmp_path / "merged"))
    start = AutoModelForCausalLM.from_pretrained(root / "student")
    changed = [
        n for n, p in merged.named_parameters() if not torch.equal(p, start.get_parameter(n))
    ]
    assert changed
    assert all("proj" in name for name in changed)
    alone = export(config.out, tmp_path / "adapter", adapter=True)
    assert not list(alone.glob("model*.safetensors"))
    start.load_adapter(str(alone))
    tokens = torch.arange(4, 12)[None]
    torch.testing.assert_close(merged(tokens).logits, start(tokens).logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_the_head_is_refused(root: Path, tmp_path: Path) -> None:
    config = config_for(root, out=str(tmp_path / "run"), lora_rank=4, lora_targets=("lm_head",))
    with pytest.raises(UsageError, match=r"--lora-targets lm_head: .*head"):
        train(config)


def test_adafactor_learns_and_resumes(root: Path, tmp_path: Path) -> None:
    config = config_for(
        root, out=str(tmp_path / "run"), steps=6, save_every=3, optimizer="adafactor",
        zero_stage=0, lr=1e-2,
    )  # fmt: skip
    last = train(config)
    expected = losses(config.out)
    assert expected[-1] < expected[0]
    (last / "COMPLETE").unlink()
    train(dataclasses.replace(config, resume=True))
    assert losses(config.out) == expected


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_changes_nothing(root: Path, tmp_path: Path, stage: int) -> None:
    runs = []
    for offload in ("none", "optimizer"):
        config = config_for(
            root, out=str(tmp_path / offload), steps=4, save_every=2, zero_stage=stage,
            offload=offload,
        )  # fmt: skip
        last = train(config)
        runs.append(losses(config.out))
    (last / "COMPLETE").unlink()
    train(dataclasses.replace(config, resume=True))
    runs.append(losses(config.out))
    assert runs[1] == pytest.approx(runs[0], rel=1e-6)
    assert runs[2] == runs[1]


def test_the_mask_may_come_later(root: Path, tmp_path: Path) -> None:
    config = config_for(
        root,
        out=str(tmp_path / "run"),
        objective="cat-dist",
        steps=4,
        mask_from_step=2,
        final_w=1.0,
    )
    train(config)
    keep = [line["keep_fraction"] for line in read_metrics(config.out)]
    assert keep[:2] == [1, 1]
    assert max(keep[2:]) < 1
    plain = config_for(root, out=str(tmp_path / "plain"), objective="dist", steps=4)
    train(plain)
    assert losses(config.out)[0] == losses(plain.out)[0]


def test_a_dry_run_forecasts_memory_per_stage(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_for(root, out=str(tmp_path / "run"), zero_stage=2, dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    stages = [line for line in lines if line.startswith("  ZeRO")]
    assert [line.split()[1] for line in stages] == ["0", "1", "2", "3"]
    assert [line.endswith("<- --zero-stage") for line in stages] == [False, False, True, False]


def test_running_out_of_memory_ends_with_advice(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(loop_module, "train_step", exhausted)
    with pytest.raises(OutOfMemoryError, match=r"out of memory; pass --\S+ .*or --") as caught:
        train(config_for(root, out=str(tmp_path / "run")))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adafactor"}, "pass --zero-stage 0"),
        (
            {"offload": "optimizer", "zero_stage": 0},
            "--offload optimizer.*--zero-stage 1, 2 or 3",
        ),
        ({"decay_steps": 2}, "--decay-steps 2.*--schedule wsd"),
        ({"eval_every": 2}, "--eval-every 2.*--eval-store"),
        ({"lora_alpha": 8.0}, "--lora-alpha .*--lora-rank"),
        ({"final_w": 1.5}, "--final-w 1.5: expected 0 .*to 1"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints 0: expected at least 1"),
    ],
)
def test_options_that_contradict(root: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_for(root, **changes)
