"""CascadeTrainer and StoreDataset with students of another tokenizer: the losses of caskd train."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_tokenizers import TOKENIZERS
from helpers.other_tokenizer import captured, run, save
from helpers.training import read_metrics
from tokenizers.normalizers import Lowercase
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from caskd.store.errors import IdentityError, UsageError
from caskd.train import CascadeTrainer, StoreDataset
from caskd.train.run.schedule import lr_at

STEPS, PEAK = 4, 1e-2
RECORDS = [
    {"prompt": "What is it?", "response": f" It is{' so' * count}, and that is {count}."}
    for count in range(9)
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trainer")
    captured(root, RECORDS, save(root / "teacher", "byte-level"), top_k=24)
    save(root / "student", "prepend", positions=64)
    return root


class Losses(TrainerCallback):  # type: ignore[misc]
    """What the Trainer logs."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.lines.append(logs)


def dataset_for(root: Path, **changes: Any) -> StoreDataset:
    options: dict[str, Any] = {
        "objective": "alm", "tokenizer": TOKENIZERS["prepend"](), "batch_size": 2,
        "num_epochs": None, "max_length": 64,
    }  # fmt: skip
    return StoreDataset(str(root / "store"), **{**options, **changes})


def trainer_for(
    root: Path, out: Path, dataset: StoreDataset, *, objective: str = "alm", **changes: Any
) -> CascadeTrainer:
    model = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    held_out = changes.pop("eval_dataset", None)
    given = {name: changes.pop(name) for name in ("w", "processing_class") if name in changes}
    arguments = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=2, gradient_accumulation_steps=2,
        use_cpu=True, report_to="none", disable_tqdm=True,
        logging_nan_inf_filter=False,
        **{"max_steps": STEPS, "save_strategy": "no", "logging_steps": 1, **changes},
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_at(step, peak=1.0, steps=STEPS, warmup_steps=0)
    )
    return CascadeTrainer(
        model, arguments, train_dataset=dataset, eval_dataset=held_out, objective=objective,
        optimizers=(optimizer, schedule), callbacks=[Losses()], **given,
    )  # fmt: skip


def logged(trainer: CascadeTrainer) -> list[dict[str, float]]:
    (callback,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, Losses))
    return callback.lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "match"),
    [("cat-alm", "likelihood"), ("alm", "bytes-1to1")],
)
def test_the_losses_of_caskd_train(root: Path, tmp_path: Path, objective: str, match: Any) -> None:
    own = run(root, f"{objective} {match}", objective=objective, match=match)
    dataset = dataset_for(root, objective=objective, match=match)
    trainer = trainer_for(root, tmp_path, dataset, objective=objective)
    trainer.train()
    for found, wanted in zip(logged(trainer), read_metrics(own.parents[1]), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=2e-4, abs=1e-6)
        assert found["keep_fraction"] == pytest.approx(wanted["keep_fraction"])
        assert found["student_accuracy"] == pytest.approx(wanted["student_accuracy"])
        assert found["kl"] == pytest.approx(wanted["kl"], rel=2e-4, abs=1e-6)
        assert "tail_mass" not in found
    losses = [line["loss"] for line in logged(trainer)]
    assert losses[0] != losses[-1] or objective != "alm"


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(root: Path, tmp_path: Path) -> None:
    whole = trainer_for(root, tmp_path / "whole", dataset_for(root))
    whole.train()
    first = trainer_for(
        root, tmp_path / "part", dataset_for(root), save_strategy="steps", save_steps=2
    )
    first.train()
    again = trainer_for(root, tmp_path / "part", dataset_for(root))
    again.train(resume_from_checkpoint=str(tmp_path / "part/checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_an_evaluation_does_not_depend_on_the_batch_size(root: Path, tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        held_out = dataset_for(root, num_epochs=1, batch_size=size)
        trainer = trainer_for(
            root, tmp_path, dataset_for(root), eval_dataset=held_out,
            per_device_eval_batch_size=size,
        )  # fmt: skip
        found.append(trainer.evaluate())
    for name in ("eval_loss", "eval_kl", "eval_keep_fraction", "eval_student_accuracy"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5)


def test_workers_and_left_out_examples(root: Path) -> None:
    """An example that is left out is a token without rows; workers give the same batches."""
    dataset = dataset_for(root, max_length=15, num_epochs=1)
    batches = [
        list(DataLoader(dataset, batch_size=2, collate_fn=StoreDataset.collate, num_workers=n))
        for n in (0, 2)
    ]
    for one, two in zip(*batches, strict=True):
        assert {name: value.tolist() for name, value in one.items()} == {
            name: value.tolist() for name, value in two.items()
        }
    lengths = [n for batch in batches[0] for n in batch["attention_mask"].sum(1).tolist()]
    assert len(lengths) == len(RECORDS)
    assert 1 in lengths
    assert max(lengths) <= 15
    for batch in batches[0]:
        labels = batch["labels"].flatten()[batch["gather_index"] + 1]
        assert (labels >= 0).all()
        assert len(batch["span_of_row"]) == len(labels)
        assert (batch["span_of_row"] <= len(batch["span_correct"])).all()


def test_spans_may_be_read_from_a_dataset_alone(root: Path) -> None:
    for item in itertools.islice(dataset_for(root, objective="xent"), 3):
        rows = item["labels"][item["labels"] >= 0]
        assert len(rows) == len(item["logit_positions"])
        assert item["spans"].aligned.num_spans > 3


def test_what_would_give_other_numbers_is_refused(root: Path, tmp_path: Path) -> None:
    plain = StoreDataset(str(root / "store"), batch_size=2, num_epochs=None)
    with pytest.raises(UsageError, match=r"spans.*StoreDataset\(tokenizer"):
        trainer_for(root, tmp_path, plain)
    with pytest.raises(UsageError, match=r"none.*one objective"):
        trainer_for(root, tmp_path, dataset_for(root, objective="xent"))
    with pytest.raises(UsageError, match=r"max_length None.*64 positions.*max_length=64"):
        trainer_for(root, tmp_path, dataset_for(root, max_length=None))
    with pytest.raises(IdentityError, match=r"processing_class.*StoreDataset"):
        trainer_for(root, tmp_path, dataset_for(root), processing_class=TOKENIZERS["gpt4-like"]())
    with pytest.raises(IdentityError, match=r"StoreDataset\(tokenizer.*cat-alm"):
        dataset_for(root, objective="cat-dist")
    with pytest.raises(UsageError, match="no spans"):
        dataset_for(root, objective="xent", match="bytes-1to1")
    small = TOKENIZERS["gpt4-like"]()
    small.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(UsageError, match=r"9 of 9 .*whose bytes"):
        dataset_for(root, tokenizer=small)
