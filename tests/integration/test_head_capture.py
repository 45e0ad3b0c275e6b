"""`--sample N --head H` from the capture to the trained student."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import capture, read_metrics
from helpers.training import config_for as train_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.cli.main import main
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore, verify_store
from caskd.train import StoreDataset, train
from caskd.train.data import collate, fields_to_read
from caskd.train.objectives import OBJECTIVES

HEAD, NUM_SAMPLES = 3, 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/head beside ROOT/store, from the same teacher and data."""
    directory = tmp_path_factory.mktemp("head")
    capture(directory)
    precompute(captured(directory, "head"))
    return directory


def captured(root: Path, name: str, **changes: Any) -> PrecomputeConfig:
    return PrecomputeConfig(
        teacher=str(root / "teacher"), data=(str(root / "data.jsonl"),), store=str(root / name),
        sample=NUM_SAMPLES, head=HEAD, shard_rows=64, dtype="float32", device="cpu", **changes,
    )  # fmt: skip


def moved_targets(root: Path, shift: int) -> float:
    """Mean distance of the stored targets from the teacher's own distribution, at a shift."""
    store = TeacherStore.open(root / "head")
    batch = store.read(range(len(store)), fields_to_read(OBJECTIVES["dist"], "head_sampled"))
    model = AutoModelForCausalLM.from_pretrained(root / "teacher").eval()
    micro = collate(batch, pad_id=0)
    num_ids = len(AutoTokenizer.from_pretrained(root / "teacher"))
    with torch.no_grad():
        logits = model(input_ids=micro.input_ids, attention_mask=micro.attention_mask).logits
    places = (micro.gather_index + shift).clamp(min=0, max=logits[..., 0].numel() - 1)
    p = logits.flatten(0, 1)[places][:, :num_ids].double().softmax(1)
    assert micro.teacher is not None
    ids, log_p = micro.teacher.topk_ids, micro.teacher.topk_logits
    target = torch.zeros_like(p).scatter_add_(1, ids, log_p.double().exp())
    torch.testing.assert_close(target.sum(1), torch.ones(len(p), dtype=torch.float64))
    head = p.topk(HEAD).values
    if shift == 0:  # the head's probabilities are the teacher's, within the encoding's rounding
        torch.testing.assert_close(target.gather(1, ids[:, :HEAD]), head, atol=3e-3, rtol=0)
        assert float((target.mean(0) - p.mean(0)).abs().max()) < 0.01
    return float((target - p).abs().sum(1).mean())


def test_targets_are_those_of_the_position_before_each_token(root: Path) -> None:
    own = moved_targets(root, 0)
    assert own < 0.7 * min(moved_targets(root, 1), moved_targets(root, -1))
    assert not verify_store(root / "head", full=True).problems


def test_rows_do_not_depend_on_the_batch(root: Path) -> None:
    precompute(captured(root, "other", token_budget=1, encoding="exact"))
    one, other = (TeacherStore.open(root / name) for name in ("head", "other"))
    a, b = (store.read(range(len(store))) for store in (one, other))
    for name in ("sampled_ids", "sampled_counts", "num_kept", "num_head", "label_rank"):
        assert (a.column(name) != b.column(name)).mean() <= 1e-3, name


def test_training_learns_from_it(root: Path, tmp_path: Path) -> None:
    config = train_config(
        root, out=str(tmp_path / "run"), store=str(root / "head"), w=0.0, steps=12, lr=1e-2
    )
    train(config)
    lines = read_metrics(config.out)
    assert lines[-1]["kl"] < lines[0]["kl"] - 0.1
    assert '"tail": "none"' in (config.out / "config.json").read_text(encoding="utf-8")


def test_a_store_dataset_reads_it(root: Path) -> None:
    dataset = StoreDataset(str(root / "head"))
    assert dataset.kind == "head_sampled"
    assert len(next(iter(dataset))["input_ids"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--head", "3"], "--head 3: was given without --sample"),
        (["--sample", "5", "--head", "0"], "--head 0: expected 1 to"),
        (["--sample", "5", "--head", "5000"], "--head 5000: leaves none of the"),
        (["--sample", "5", "--head", "3", "--top-k", "8"], "--sample 5 and --top-k 8"),
        (["--sample", "5", "--head", "3", "--encoding", "compact"], "--encoding compact"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    words = ["precompute", "--teacher", str(root / "teacher"), "--data", str(root / "data.jsonl")]
    assert main([*words, "--store", str(tmp_path / "s"), *flags]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--student", "{root}/student", "--steps", "1", "--tail", "bucket", "--store",
          "{root}/head", "--out", "{tmp}/run"], "expected none"),
        (["train", "--student", "{root}/student", "--steps", "1", "--store", "{root}/head",
          "{root}/store", "--out", "{tmp}/run"], "one kind only"),
        (["train", "--student", "{root}/student", "--steps", "1", "--store", "{root}/head",
          "--delegate", "unacceptable", "--out", "{tmp}/run"], "holds head_sampled rows"),
        (["eval", "--next-token", "{root}/head", "--student", "a={root}/student", "--out",
          "{tmp}/report"], "kind 'head_sampled'"),
        (["store", "export", "{root}/head", "--format", "parquet", "--out", "{tmp}/x"],
         "kind 'head_sampled'"),
    ],
    ids=["tail", "mix", "delegate", "next-token", "export"],
)  # fmt: skip
def test_consumers_that_need_a_topk_refuse_it_by_name(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main([word.format(root=root, tmp=tmp_path) for word in words]) == 2
    assert said in capsys.readouterr().err


def test_the_probe_compares_the_targets_side_by_side(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--teacher", str(root / "teacher"), "--data", str(root / "data.jsonl")]
    words += ["--store", str(tmp_path / "s"), "--shard-rows", "64", "--probe", "--top-k", "8"]
    code, (out, error) = main([*words, "--json"]), capsys.readouterr()
    assert code == 0, error
    found = json.loads(out[out.index("{") :])["forecast"]["alternatives"]
    sizes = {each["flags"]: each for each in found}
    assert sizes["--top-k 16"]["bytes_per_row"] > sizes["--top-k 8"]["bytes_per_row"] > 4
    assert sizes["--top-k 8"]["mean_cells"] == 8
    assert 8 < sizes["--sample 16 --head 8"]["mean_cells"] <= 24
    assert 1 <= sizes["--sample 16"]["mean_cells"] <= 16
