"""A student whose tokenizer has another EOS and no template stops and is asked as its teacher."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_models import ANSWERS, TEMPLATE, chat, save_teacher
from helpers.tiny import save_tiny, tiny_tokenizer, write_jsonl
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainingArguments

from caskd.eval import PredictConfig, predict
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore
from caskd.store.corpus import Columns, prompt_ids
from caskd.store.errors import IdentityError, UsageError
from caskd.train import CascadeTrainer, StoreDataset, TrainConfig, train
from caskd.train.model import teacher_text
from caskd.train.run.exporter import export

PAD, BOS, EOS, UNK = range(4)


def save_base(folder: Path, eos: str = "<pad>") -> Path:
    """A student with the same vocabulary, another EOS, and no template."""
    save_tiny(folder, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = eos
    tokenizer.save_pretrained(folder)
    config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, temperature=0.7, do_sample=True)
    config.save_pretrained(folder)
    return folder


def capture(root: Path, end: str = "{{ eos_token }}") -> Path:
    save_teacher(root / "teacher", end)
    write_jsonl(root / "chat.jsonl", [chat(*pair) for pair in ANSWERS.items()] * 4)
    precompute(
        PrecomputeConfig(
            teacher=str(root / "teacher"),
            data=(str(root / "chat.jsonl"),),
            store=str(root / "store"),
            top_k=4,
            shard_rows=64,
            device="cpu",
        )
    )
    return root / "store"


def run(root: Path, **options: Any) -> Path:
    """The export of a student that has learnt the answers of the store."""
    config = TrainConfig(
        store=(str(root / "store"),),
        student=str(root / "base"),
        out=root / "run",
        steps=80,
        global_batch_size=8,
        objective="xent",
        lr=2e-2,
        dtype="float32",
        **options,
    )
    return export(train(config), root / "exported")


def answers_of(root: Path, model: Path) -> list[tuple[str, list[int]]]:
    write_jsonl(root / "ask.jsonl", [chat(*pair) for pair in ANSWERS.items()])
    out = root / f"{model.name}.parquet"
    options = {"max_new_tokens": 12, "device": "cpu", "batch_size": 1}
    found = predict(
        PredictConfig(model=str(model), data=(str(root / "ask.jsonl"),), out=str(out), **options)
    )
    assert found is not None
    return list(
        zip(found.strings("text"), found.columns.column("token_ids").to_pylist(), strict=True)
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    capture(root)
    save_base(root / "base")
    return root


@pytest.fixture(scope="module")
def exported(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(root, teacher_tokenizer=str(root / "teacher"))


def test_a_capture_records_the_special_ids(root: Path) -> None:
    store = TeacherStore.open(root / "store")
    assert store.spec.special_tokens == {
        "eos_id": EOS, "bos_id": BOS, "special_ids": [PAD, BOS, EOS, UNK]
    }  # fmt: skip


def test_an_exported_student_stops_where_its_store_does(root: Path, exported: Path) -> None:
    found = answers_of(root, exported)
    assert [text for text, _ in found] == list(ANSWERS.values())
    assert all(ids[-1] == EOS for _, ids in found)


def test_any_tool_finds_the_end_and_the_template_in_the_export(exported: Path) -> None:
    config = json.loads((exported / "generation_config.json").read_text())
    assert config["eos_token_id"] == [PAD, EOS]
    assert config["temperature"] == 0.7  # the student's own settings stay
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.eos_token_id == EOS
    model = AutoModelForCausalLM.from_pretrained(exported)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "two?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    new = model.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(new) == "due</s>"


def test_the_card_and_the_arguments_are_beside_the_export(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "responses end with" in card
    assert "no chat template; caskd export writes" in card
    assert json.loads((exported / "caskd_text.json").read_text()) == {
        "rule": 2, "template_arguments": {}, "chat_turns": "all", "template_tokens": False
    }  # fmt: skip


def test_predict_names_the_cure_for_a_missing_template(root: Path) -> None:
    with pytest.raises(UsageError, match=r"--model .*base: .*no chat template.*caskd export"):
        answers_of(root, root / "base")


def notes_of(root: Path, store: TeacherStore, student: str = "base", **options: Any) -> str:
    folder = str(root / student)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return "\n".join(teacher_text([store], folder, tokenizer, **options).notes)


def opened(root: Path, part: str, **changes: Any) -> TeacherStore:
    """The store with other fields in a part of its identity; None removes a field."""
    store = TeacherStore.open(root / "store")
    fields = {**store.spec.identity[part], **changes}
    kept = {name: value for name, value in fields.items() if value is not None}
    store.spec = replace(store.spec, identity={**store.spec.identity, part: kept})
    return store


OLDER = {"eos_id": None, "bos_id": None, "special_ids": None}


def test_an_older_store_needs_the_teachers_tokenizer(root: Path) -> None:
    store = opened(root, "vocabulary", **OLDER)
    assert store.spec.special_tokens is None
    assert "pass --teacher-tokenizer FOLDER" in notes_of(root, store)
    teacher = str(root / "teacher")
    said = notes_of(root, store, teacher_tokenizer=teacher)
    assert "pass" not in said
    assert "the teacher's EOS is '</s>' (id 2), the student's '<pad>' (id 0)" in said


def test_an_older_store_of_the_same_tokenizer_needs_nothing(root: Path) -> None:
    assert notes_of(root, opened(root, "vocabulary", **OLDER), "teacher") == ""


def test_another_teachers_tokenizer_is_refused(root: Path) -> None:
    store = TeacherStore.open(root / "store")
    with pytest.raises(IdentityError, match=r"--teacher-tokenizer .*base: .*digest"):
        notes_of(root, store, teacher_tokenizer=str(root / "base"))


def test_the_stores_own_template_text_goes_first(root: Path) -> None:
    arguments = {"enable_thinking": False}
    store = opened(
        root, "text", rule=2, template="T", template_arguments=arguments, chat_turns="last"
    )
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    text = teacher_text([store], str(root / "base"), tokenizer)
    assert (text.template, text.rule, text.chat_turns) == ("T", 2, "last")
    assert text.template_arguments == arguments


def test_a_turn_that_ends_with_another_token_than_eos(tmp_path: Path) -> None:
    capture(tmp_path, end="<s>")
    save_base(tmp_path / "base", eos="</s>")
    exported = run(tmp_path, teacher_tokenizer=str(tmp_path / "teacher"))
    config = json.loads((exported / "generation_config.json").read_text())
    assert config["eos_token_id"] == [EOS, BOS]
    assert [ids[-1] for _, ids in answers_of(tmp_path, exported)] == [BOS, BOS]


@pytest.mark.slow
def test_named_templates_of_a_teacher_reach_the_export(tmp_path: Path) -> None:
    named = {
        "default": TEMPLATE.replace("END", "{{ eos_token }}"),
        "tool_use": "{{ tools | length }}" + TEMPLATE.replace("END", "{{ eos_token }}"),
    }
    teacher = save_teacher(tmp_path / "teacher", "{{ eos_token }}")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.chat_template = named
    tokenizer.save_pretrained(teacher)
    (teacher / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(teacher)
    save_base(tmp_path / "base")
    records = [chat(*pair) for pair in ANSWERS.items()] * 4
    write_jsonl(tmp_path / "chat.jsonl", [{**r, "tools": [{"name": "f"}]} for r in records])
    store = str(tmp_path / "store")
    precompute(
        PrecomputeConfig(
            teacher=str(teacher), data=(str(tmp_path / "chat.jsonl"),), store=store, device="cpu",
            top_k=4, shard_rows=64,
        )
    )  # fmt: skip
    opened_store = TeacherStore.open(store)
    assert opened_store.spec.identity["text"]["template"] == named
    assert notes_of(tmp_path, opened_store, "teacher") == ""
    assert "the student has no chat template" in notes_of(tmp_path, opened_store)
    exported = run(tmp_path)
    assert AutoTokenizer.from_pretrained(exported).chat_template == named
    assert notes_of(tmp_path, opened_store, "exported") == ""
    [prompt, _] = answers_of(tmp_path, exported)
    assert prompt


@pytest.mark.parametrize("tools", [None, [{"name": "f"}]])
def test_templates_without_a_default_are_refused_by_name(tools: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": TEMPLATE, "odd": TEMPLATE}
    record = {**chat("a", "b"), "tools": tools}
    with pytest.raises(UsageError, match=r"'odd'.*--chat-template FILE"):
        prompt_ids(tokenizer, record, Columns())


def test_another_automatic_bos_is_said(tmp_path: Path) -> None:
    for name in ("teacher", "base"):
        save_tiny(tmp_path / name)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    tokenizer.save_pretrained(tmp_path / "teacher")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a", "response": "b"}] * 3)
    for teacher, student, fact in (
        ("teacher", "base", "start with '<s>' (id 1), but the student's tokenizer puts nothing"),
        ("base", "teacher", "no special token, but the student's tokenizer puts '<s>' (id 1)"),
    ):
        store = str(tmp_path / f"of_{teacher}")
        precompute(
            PrecomputeConfig(
                teacher=str(tmp_path / teacher), data=(str(tmp_path / "prompts.jsonl"),),
                store=store, device="cpu", top_k=4, shard_rows=64,
            )
        )  # fmt: skip
        assert fact in notes_of(tmp_path, TeacherStore.open(store), student)
        assert notes_of(tmp_path, TeacherStore.open(store), teacher) == ""


def test_other_training_loops_are_warned(root: Path, tmp_path: Path) -> None:
    store = str(root / "store")
    base = AutoTokenizer.from_pretrained(root / "base")
    with pytest.warns(UserWarning, match="StoreDataset") as caught:
        StoreDataset(store, tokenizer=base)
    said = " ".join(str(warning.message) for warning in caught)
    assert "StoreDataset: responses end with '</s>' (id 2)" in said
    assert "no chat template" in said
    assert "caskd export" not in said
    StoreDataset(store, tokenizer=AutoTokenizer.from_pretrained(root / "teacher"))
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    dataset = StoreDataset(store, num_epochs=None)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=1, max_steps=1, use_cpu=True,
        report_to="none",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="CascadeTrainer: responses end with id 2, but .* id 0"):
        CascadeTrainer(model, arguments, train_dataset=dataset)
    model.generation_config.eos_token_id = [PAD, EOS]
    CascadeTrainer(model, arguments, train_dataset=dataset)
