"""Training on a tiny store: results, files read and files written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training import capture, config_for, read_metrics
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.store.errors import UsageError
from caskd.train import train
from caskd.train.checkpoint import CHECKPOINTS, NonFiniteError
from caskd.train.run.exporter import export


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("train")
    capture(directory)
    return directory


def test_a_student_learns_and_is_exported(root: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    config = config_for(root, out=out, steps=30, save_every=10, lr=3e-3, w=0.0)
    last = train(config)
    metrics = read_metrics(config.out)
    assert [line["step"] for line in metrics] == list(range(1, 31))
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["kl"] < 0.7 * metrics[0]["kl"]
    assert 0 < metrics[0]["tail_mass"] < 1
    assert all(line["keep_fraction"] == 1 for line in metrics)
    saved = sorted(path.name for path in (config.out / CHECKPOINTS).iterdir())
    assert saved == ["step-00000010", "step-00000020", "step-00000030"]
    assert last.name == saved[-1]

    out = export(config.out, tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(out)
    start = AutoModelForCausalLM.from_pretrained(root / "student").state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(out)
    generated = model.generate(**tokenizer("abc", return_tensors="pt"), max_new_tokens=3)
    assert generated.shape[1] > 3
    assert "objective: dist" in (out / "README.md").read_text()
    with pytest.raises(UsageError, match="expected a new or empty directory"):
        export(config.out, out)


def test_equal_seeds_give_equal_runs(root: Path, tmp_path: Path) -> None:
    runs = [
        config_for(root, out=str(tmp_path / f"run{i}"), seed=seed, steps=3, objective="cat-dist")
        for i, seed in enumerate([1, 1, 2])
    ]
    lines = []
    for config in runs:
        train(config)
        lines.append(read_metrics(config.out))
    assert lines[0] == lines[1]
    assert lines[0] != lines[2]


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (0, "bfloat16"), (3, "float32")])
def test_export_holds_what_was_trained(root: Path, tmp_path: Path, stage: int, dtype: str) -> None:
    """Stages keep their weights in different places; the losses that they reach are compared."""
    out = str(tmp_path / "run")
    config = config_for(root, out=out, zero_stage=stage, dtype=dtype, steps=4, lr=1e-2)
    train(config)
    exported = export(config.out, tmp_path / "exported")
    again = config_for(
        root, out=str(tmp_path / "again"), student=str(exported), dtype=dtype, steps=1, lr=1e-30
    )
    train(again)
    before = config_for(root, out=str(tmp_path / "before"), dtype=dtype, steps=1, lr=1e-30)
    train(before)
    trained, fresh = (read_metrics(c.out)[0]["loss"] for c in (again, before))
    assert trained < fresh - 0.05


def test_cat_xent_reads_no_top_k(root: Path, tmp_path: Path) -> None:
    """Remove the top-k's bytes: an objective without a teacher term does not notice."""
    store = tmp_path / "store"
    shutil.copytree(root / "store", store)
    config = config_for(
        root, out=str(tmp_path / "run"), store=str(store), objective="cat-xent", steps=2
    )
    opened = []
    real = open_spy(store, opened)
    real(config)
    line = read_metrics(config.out)[0]
    assert line["tail_mass"] is None
    assert line["kl"] is None
    assert 0 <= line["teacher_accuracy"] <= 1
    chunks = [name for name in opened if "/c/" in name]
    assert any("argmax" in name for name in chunks)
    assert not [name for name in chunks if "topk" in name]


def open_spy(store: Path, opened: list[str]):  # type: ignore[no-untyped-def]
    """`train`, noting which files of the store are opened."""

    def spying(config):  # type: ignore[no-untyped-def]
        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if active and event == "open" and str(store) in str(arguments[0]):
                opened.append(str(arguments[0]))

        active = True
        sys.addaudithook(hook)
        try:
            return train(config)
        finally:
            active = False

    return spying


AUDITED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from pathlib import Path
from caskd.train import TrainConfig, train
root = Path(sys.argv[1])
train(TrainConfig(store=str(root / "store"), student=str(root / "student"), out=root / "run",
                  steps=2, global_batch_size=4, micro_batch_size=4, objective="cat-dist"))
Path(sys.argv[2]).write_text("\\n".join(opened))
"""


@pytest.mark.slow
def test_no_file_of_the_teacher_is_opened(tmp_path: Path) -> None:
    """The teacher and the corpus are gone; nothing even looks for them."""
    capture(tmp_path)
    shutil.rmtree(tmp_path / "teacher")
    (tmp_path / "data.jsonl").unlink()
    log = tmp_path / "opened.txt"
    command = [sys.executable, "-c", AUDITED, str(tmp_path), str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    opened = log.read_text().splitlines()
    assert any("store/store.json" in name for name in opened)
    assert any("student/config.json" in name for name in opened)
    gone = (str(tmp_path / "teacher"), str(tmp_path / "data.jsonl"), "caskd/precompute")
    assert not [name for name in opened if any(part in name for part in gone)]


def test_losses_that_stay_non_finite_end_the_run_unsaved(root: Path, tmp_path: Path) -> None:
    config = config_for(root, out=str(tmp_path / "run"), lr=1e25, steps=20, clip_grad_norm=0.0)
    with pytest.raises(NonFiniteError, match="not finite in 3 steps in a row"):
        train(config)
    lines = read_metrics(config.out)
    assert [line["skipped_steps"] for line in lines[-3:]] == [1, 2, 3]
    assert len(lines) < 20
    assert not (config.out / CHECKPOINTS).exists()


def test_a_dry_run_prints_and_writes_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_for(root, out=str(tmp_path / "run"), dry_run=True))
    printed = capsys.readouterr().out
    assert "8 examples = 4 x 1 ranks x 2 accumulation" in printed
    assert "6 = 1.20 epochs" in printed
    assert not (tmp_path / "run").exists()


def test_normalising_by_examples_scales_the_gradient_only(root: Path, tmp_path: Path) -> None:
    lines = {}
    for normalise in ("rows", "examples"):
        config = config_for(root, out=str(tmp_path / normalise), normalise=normalise, steps=1)
        train(config)
        lines[normalise] = read_metrics(config.out)[0]
    store_rows = lines["examples"]["grad_norm"] / lines["rows"]["grad_norm"]
    assert store_rows == pytest.approx(num_rows_of_first_step(root) / 8, rel=1e-4)
    assert lines["rows"]["loss"] == lines["examples"]["loss"]


def num_rows_of_first_step(root: Path) -> int:
    from caskd.train.run.plan import plan_run

    plan = plan_run(config_for(root, out="nowhere"))
    examples = plan.order.examples_for_step(0, 8)
    return int(plan.store.row_counts()[examples].sum())


def test_gradient_checkpointing_changes_nothing(root: Path, tmp_path: Path) -> None:
    lines = []
    for name, flag in (("plain", False), ("checkpointed", True)):
        config = config_for(root, out=str(tmp_path / name), gradient_checkpointing=flag, steps=2)
        train(config)
        lines.append(read_metrics(config.out))
    assert [x["loss"] for x in lines[0]] == pytest.approx([x["loss"] for x in lines[1]], rel=1e-6)


def test_the_run_explains_itself(root: Path, tmp_path: Path) -> None:
    extra = tmp_path / "ds.json"
    extra.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 4096}}))
    config = config_for(root, out=str(tmp_path / "run"), steps=1, deepspeed_config=extra)
    train(config)
    content = json.loads((config.out / "config.json").read_text())
    assert content["config"]["objective"] == "dist"
    assert content["deepspeed"]["zero_optimization"]["reduce_bucket_size"] == 4096
    assert "torch" in content["versions"]
