"""CascadeTrainer computes the same numbers as `caskd train`, and resumes exactly."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import architectures
from helpers.tiny import tiny_tokenizer
from helpers.training import capture, config_for, read_metrics
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from caskd.store.errors import IdentityError, UsageError
from caskd.train import CascadeTrainer, StoreDataset, cascade_aware_loss, train
from caskd.train.loss import TeacherRows
from caskd.train.run.exporter import export
from caskd.train.run.schedule import lr_at

# peft asks a model by a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

STEPS, GLOBAL_BATCH, PEAK = 5, 8, 1e-3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hf")
    capture(directory)
    return directory


class Losses(TrainerCallback):  # type: ignore[misc]
    """What the Trainer logs."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.lines.append(logs)


def trainer_for(root: Path, out: Path, *, micro: int = 4, **changes: Any) -> CascadeTrainer:
    model = changes.pop("model", None) or AutoModelForCausalLM.from_pretrained(
        root / "student", dtype=torch.float32
    )
    held_out = changes.pop("eval_dataset", None)
    processing = {name: changes.pop(name) for name in ["processing_class"] if name in changes}
    dataset = StoreDataset(
        str(root / "store"), objective="cat-dist", batch_size=micro, num_epochs=None
    )
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=GLOBAL_BATCH // micro,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        **{"max_steps": STEPS, "save_strategy": "no", "logging_steps": 1, **changes},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_at(step, peak=1.0, steps=STEPS, warmup_steps=0)
    )
    return CascadeTrainer(
        model, arguments, train_dataset=dataset, eval_dataset=held_out, objective="cat-dist",
        optimizers=(optimizer, schedule), callbacks=[Losses()], **processing,
    )  # fmt: skip


def logged(trainer: Trainer) -> list[dict[str, float]]:
    (callback,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, Losses))
    return callback.lines


@pytest.mark.parametrize("micro", [8, 2])
def test_the_same_numbers_as_our_own_loop(root: Path, tmp_path: Path, micro: int) -> None:
    """Unequal lengths, a mask, accumulation 1 and 4: a mean of means would be off by percents."""
    config = config_for(
        root, out=str(tmp_path / "ours"), steps=STEPS, objective="cat-dist", lr=PEAK
    )
    train(config)
    ours = read_metrics(config.out)
    trainer = trainer_for(root, tmp_path / "hf", micro=micro)
    trainer.train()
    theirs = logged(trainer)
    assert len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("loss", "keep_fraction", "student_accuracy", "kl", "grad_norm"):
            assert float(other[name]) == pytest.approx(mine[name], rel=2e-6), name
    exported = AutoModelForCausalLM.from_pretrained(
        export(config.out, tmp_path / "exported"), dtype=torch.float32
    ).state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, exported[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_dataset_serves_a_plain_trainer(root: Path, tmp_path: Path) -> None:
    """transformers' own loss over the labels is the objective without a teacher."""
    cascade = trainer_for(root, tmp_path / "cascade")
    cascade.objective, cascade.w = "xent", None
    cascade.train()
    model = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    optimizers = (torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0), None)
    plain = Trainer(
        model, cascade.args, train_dataset=cascade.train_dataset, optimizers=optimizers,
        data_collator=StoreDataset.collate, callbacks=[Losses()],
    )  # fmt: skip
    plain.train()
    first, second = (logged(trainer)[0] for trainer in (cascade, plain))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert float(second["grad_norm"]) == pytest.approx(float(first["grad_norm"]), rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(root: Path, tmp_path: Path) -> None:
    save = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer_for(root, tmp_path / "run", **save)
    whole.train()
    resumed = trainer_for(root, tmp_path / "run", **save)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    last = [line["loss"] for line in logged(resumed)]
    assert last == [line["loss"] for line in logged(whole)][-len(last) :]
    assert len(last) == STEPS - 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_lora_trains_the_adapter_only_and_evaluates(root: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = trainer_for(root, tmp_path / "lora", model=model)
    held_out = StoreDataset(str(root / "store"), objective="cat-dist", batch_size=8)
    first = trainer.evaluate(held_out)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(held_out)["eval_loss"] < first
    changed = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    assert changed
    assert all("lora_" in name for name in changed)


def test_what_would_give_other_numbers_is_refused(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(root, tmp_path / "a")
    trainer.train_dataset = StoreDataset(str(root / "store"), num_epochs=None)
    with pytest.raises(UsageError, match=r"batch_size=4\)"):
        trainer.train()
    trainer.train_dataset = StoreDataset(str(root / "store"), batch_size=4)
    with pytest.raises(UsageError, match="num_epochs=None"):
        trainer.train()
    with pytest.raises(UsageError, match=r"CascadeTrainer: objective 'random-dist' .*keep="):
        CascadeTrainer(trainer.model, trainer.args, objective="random-dist")
    base = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    with pytest.warns(UserWarning, match="tie_word_embeddings|tied"):
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["lm_head"]))
    with pytest.raises(UsageError, match="the head has an adapter"):
        trainer_for(root, tmp_path / "b", model=model).train()
    base = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    with pytest.warns(UserWarning, match="tie_word_embeddings|tied"):
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["embed_tokens"]))
    with pytest.raises(UsageError, match=r"model.embed_tokens has an adapter.* lm_head"):
        trainer_for(root, tmp_path / "b", model=model).train()


def test_a_model_whose_batches_must_be_divided_needs_a_batch_size_of_one(
    root: Path, tmp_path: Path
) -> None:
    model = architectures.build("phi3-longrope")
    with pytest.raises(UsageError, match=r"Phi3ForCausalLM .* batch size is 4; expected 1"):
        trainer_for(root, tmp_path / "out", model=model)
    trainer_for(root, tmp_path / "out", model=model, micro=1)


def test_a_student_with_another_tokenizer_is_refused(root: Path, tmp_path: Path) -> None:
    other = tiny_tokenizer("abc")
    with pytest.raises(IdentityError, match=r"7 tokens.*50 tokens.*StoreDataset\(tokenizer"):
        trainer_for(root, tmp_path, processing_class=other)
    with pytest.raises(UsageError, match=r"StoreDataset.*'cat-alm'.*tokenizer is None"):
        StoreDataset(str(root / "store"), objective="cat-alm")


def test_a_model_that_sees_later_tokens_is_refused(root: Path, tmp_path: Path) -> None:
    model = architectures.build("gemma3-bidirectional")
    with pytest.raises(UsageError, match="CascadeTrainer: Gemma3ForCausalLM is not causal"):
        trainer_for(root, tmp_path / "out", model=model)


@pytest.mark.parametrize("objective", ["cat-dist", "xent"])
def test_an_evaluation_is_the_same_for_every_batch_size(
    root: Path, tmp_path: Path, objective: str
) -> None:
    """Sum / rows of the whole set; a mean of batch means would differ by percents."""
    model = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    found = []
    for size in (1, 3, 7, 16, 64):
        held_out = StoreDataset(str(root / "store"), objective=objective, batch_size=size)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_eval_batch_size=size, use_cpu=True,
            report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = CascadeTrainer(model, arguments, eval_dataset=held_out, objective=objective)
        found.append(trainer.evaluate())
    batch = StoreDataset.collate(list(StoreDataset(str(root / "store"), objective=objective)))
    with torch.no_grad():
        hidden = model.base_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    rows = {n: batch.get(f"teacher_{n}") for n in [f.name for f in fields(TeacherRows)]}
    sums = cascade_aware_loss(
        hidden.flatten(0, 1)[batch["gather_index"]],
        model.get_output_embeddings().weight,
        batch["labels"].flatten()[batch["gather_index"] + 1],
        TeacherRows(**rows),
        objective=objective,
    )
    expected = float(sums.loss.detach() / sums.num_rows)
    for metrics in found:
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics["eval_keep_fraction"] == pytest.approx(
            float(sums.num_kept) / float(sums.num_rows), rel=1e-6
        )


@pytest.mark.parametrize(
    "argument",
    [
        {"label_smoothing_factor": 0.1},
        {"data_seed": 3},
        {"dataloader_drop_last": True},
        {"average_tokens_across_devices": False},
        {"label_names": ["labels"]},
        {"eval_accumulation_steps": 2},
        {"accelerator_config": {"even_batches": False}},
    ],
)
def test_an_argument_that_would_be_ignored_is_refused_by_name(
    root: Path, tmp_path: Path, argument: dict[str, Any]
) -> None:
    (name,) = argument
    with pytest.raises(UsageError, match=f"CascadeTrainer: {name}") as caught:
        trainer_for(root, tmp_path, **argument)
    assert "\n" not in str(caught.value)


def test_more_than_a_hundred_epochs_are_warned_of(root: Path, tmp_path: Path) -> None:
    trainer_for(root, tmp_path, max_steps=500)  # 100 epochs of 40 examples
    with pytest.warns(UserWarning, match=r"max_steps 505 .* 8 = 101 epochs of the 40 examples"):
        trainer_for(root, tmp_path, max_steps=505)


def test_the_best_checkpoint_is_the_one_of_the_best_evaluation(root: Path, tmp_path: Path) -> None:
    held_out = StoreDataset(str(root / "store"), batch_size=8)
    trainer = trainer_for(
        root, tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
        eval_dataset=held_out,
    )  # fmt: skip
    trainer.train()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(losses) == STEPS
    assert trainer.state.best_metric == min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_hooks_on_logits_and_endless_evaluations_are_refused(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(root, tmp_path)
    with pytest.raises(UsageError, match=r"compute_loss_func, compute_metrics would be ignored"):
        CascadeTrainer(
            trainer.model, trainer.args, train_dataset=trainer.train_dataset,
            compute_metrics=lambda _: {}, compute_loss_func=lambda *_: None,
        )  # fmt: skip
    with pytest.raises(UsageError, match=r"endless .*num_epochs=1"):
        trainer.evaluate(StoreDataset(str(root / "store"), batch_size=8, num_epochs=None))
    with pytest.raises(UsageError, match="caskd predict"):
        trainer.predict(StoreDataset(str(root / "store"), batch_size=8))
