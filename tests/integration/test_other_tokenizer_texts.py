"""Odd texts and students with another tokenizer: what aligns, and what is left out and counted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.chat_tokenizers import TEMPLATES, TOKENIZERS
from helpers.other_tokenizer import captured, own_labels, run, save
from helpers.training import read_metrics
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from caskd.store import StoreBatch, TeacherStore
from caskd.store.corpus import Columns, token_bytes
from caskd.store.errors import UsageError
from caskd.train.data import AlignedExample, LeftOut, StudentTokens, align_tokens
from caskd.train.model import other_tokenizer

PROMPTS = ["What is it?", "é", "It"]


def aligned_with(
    store: TeacherStore, name: str, **options: Any
) -> tuple[list[Any], list[bytes], list[bytes]]:
    """The examples for a student, and the bytes of its prompts and responses."""
    tokenizer = TOKENIZERS[name]()
    own = token_bytes(tokenizer)
    special = set(tokenizer.all_special_ids)
    found = StudentTokens(tokenizer, store, **options).align(store.read(range(len(store))))
    texts: dict[int, list[bytes]] = {0: [], 1: []}
    for example in found:
        for side, kept in texts.items():
            if isinstance(example, AlignedExample):
                ids = example.token_ids[example.is_response == side].tolist()
                kept.append(b"".join(own[i] for i in ids if i not in special))
    return found, texts[0], texts[1]


@pytest.mark.parametrize("teacher", ["prepend", "metaspace-first", "metaspace-always", "unigram"])
def test_a_space_that_the_teacher_inserts_is_not_in_the_student_s_prompt(
    tmp_path: Path, teacher: str
) -> None:
    # Metaspace inserts none before a text that starts with a space.
    given = [*PROMPTS, "  two spaces"] if teacher == "prepend" else PROMPTS
    records = [{"prompt": prompt, "response": " It is so."} for prompt in given]
    store = captured(tmp_path, records, save(tmp_path / "teacher", teacher))
    _, prompts, responses = aligned_with(store, "byte-level")
    assert prompts == [prompt.encode() for prompt in given]
    assert responses == [b" It is so."] * len(given)


@pytest.mark.parametrize("teacher", ["prepend", "byte-level"])
def test_a_space_of_the_text_itself_stays(tmp_path: Path, teacher: str) -> None:
    records = [{"text": " It is so."}, {"text": "It is so."}]
    store = captured(tmp_path, records, save(tmp_path / "teacher", teacher))
    found, _, responses = aligned_with(store, "gpt4-like")
    assert responses == [b" It is so.", b"It is so."]
    assert all(example.num_spans > 1 for example in found)


@pytest.mark.parametrize("columns", ["prompt", "messages"])
def test_a_reply_that_was_cut_off_has_spans_up_to_there(tmp_path: Path, columns: str) -> None:
    reply = "It is 42, é 中文 and that is that, says the user to the assistant."
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": reply}]
    record = {"messages": chat} if columns == "messages" else {"prompt": "What?", "response": reply}
    store = captured(tmp_path, [record], save(tmp_path / "teacher", "byte-level", "chatml"))
    options: dict[str, Any] = {}
    if columns == "messages":
        options = {"records": [record].__getitem__, "columns": Columns(kind="messages")}
    tokenizer = TOKENIZERS["gpt4-like"]()
    tokenizer.chat_template = TEMPLATES["llama3"]
    own = token_bytes(tokenizer)
    for count in range(1, int(store.row_counts()[0]) - 1):
        batch = cut_off(store.read([0]), count)
        (example,) = StudentTokens(tokenizer, store, **options).align(batch)
        assert isinstance(example, AlignedExample)
        theirs = b"".join(store.vocab[i] for i in batch.labels)
        ours = b"".join(own[i] for i in own_labels(example))
        assert theirs.startswith(ours)  # and no end of the reply
        assert example.num_bytes == len(ours)
        assert len(theirs) - len(ours) < max(map(len, own))
        assert example.num_spans
        for span in range(example.num_spans):
            sides = (
                b"".join(store.vocab[i] for i in batch.labels[example.teacher_span == span]),
                b"".join(own[i] for i in own_labels(example)[example.student_span == span]),
            )
            assert sides[0] == sides[1]


def cut_off(batch: StoreBatch, count: int) -> StoreBatch:
    """A batch of one example without its last tokens."""
    tokens, rows = len(batch.token_ids) - count, batch.num_rows - count
    return replace(
        batch,
        token_ids=batch.token_ids[:tokens],
        is_response=batch.is_response[:tokens],
        token_offsets=np.array([0, tokens]),
        row_offsets=np.array([0, rows]),
        logit_positions=batch.logit_positions[:rows],
        labels=batch.labels[:rows],
        num_kept=batch.column("num_kept")[:rows],
    )


def test_a_turn_with_other_bytes_leaves_its_conversation_out(tmp_path: Path) -> None:
    chats = [
        [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "and that?"},
            {"role": "assistant", "content": "that is so"},
        ]
        for first in ("It is", "  It is  ")
    ]
    records = [{"messages": chat} for chat in chats]
    store = captured(tmp_path, records, save(tmp_path / "teacher", "byte-level", "chatml"))
    tokenizer = TOKENIZERS["gpt4-like"]()
    tokenizer.chat_template = TEMPLATES["llama3"]  # trims
    tokens = StudentTokens(tokenizer, store, records.__getitem__, Columns(kind="messages"))
    kept, left_out = tokens.align(store.read([0, 1]))
    assert isinstance(kept, AlignedExample)
    assert left_out is LeftOut.OTHER_BYTES


def test_special_tokens_inside_a_text(tmp_path: Path) -> None:
    record = {"prompt": "<|im_start|>user: ", "response": " It <|im_end|> is"}
    store = captured(tmp_path, [record], save(tmp_path / "teacher", "byte-level"))
    (example,), _, _ = aligned_with(store, "gpt4-like")
    assert isinstance(example, AlignedExample)
    tokenizer = TOKENIZERS["gpt4-like"]()
    assert tokenizer.decode(example.token_ids) == "<|im_start|>user:  It <|im_end|> is</s>"
    batch = store.read([0])
    inside = batch.labels == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (example.teacher_span[inside] == -1).all()
    assert example.num_spans > 2
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] == "</s>"]
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="</s>"
    )  # markup is text to this student
    assert StudentTokens(bare, store).align(batch) == [LeftOut.OTHER_BYTES]


def test_rows_without_teacher_values_are_in_no_span(tmp_path: Path) -> None:
    record = {"prompt": "What is it?", "response": " It is so, and that is 42."}
    store = captured(tmp_path, [record], save(tmp_path / "teacher", "byte-level"))
    batch = store.read([0])
    tokens = StudentTokens(TOKENIZERS["tekken-like"](), store)
    (whole,) = tokens.align(batch)
    num_kept = batch.column("num_kept").copy()
    num_kept[2] = 0
    (part,) = tokens.align(replace(batch, num_kept=num_kept))
    assert isinstance(whole, AlignedExample)
    assert isinstance(part, AlignedExample)
    lost = whole.teacher_span == whole.teacher_span[2]
    assert (part.teacher_span[lost] == -1).all()
    assert part.num_spans == whole.num_spans - 1
    assert np.count_nonzero(part.student_span == -1) > np.count_nonzero(whole.student_span == -1)


def test_an_empty_prompt_has_no_row_for_its_first_token(tmp_path: Path) -> None:
    store = captured(
        tmp_path, [{"prompt": "", "response": "It is so"}], save(tmp_path / "teacher", "byte-level")
    )
    (example,), _, _ = aligned_with(store, "gpt4-like")
    batch = store.read([0])
    assert batch.is_response[0] == 1
    assert example.is_response[0] == 1
    assert len(example.student_span) == len(example.token_ids) - 1
    assert len(example.teacher_span) == batch.num_rows


def test_examples_longer_than_the_student_are_counted(tmp_path: Path) -> None:
    records = [{"prompt": "It", "response": " is" * count} for count in (3, 4, 60, 5)]
    captured(tmp_path, records, save(tmp_path / "teacher", "byte-level"))
    save(tmp_path / "student", "gpt4-like", positions=32)
    last = run(tmp_path, "run")
    assert [line["too_long"] for line in read_metrics(last.parents[1])] == [1] * 4
    assert [line["other_bytes"] for line in read_metrics(last.parents[1])] == [0] * 4


def test_stores_of_different_teachers_and_tokenizers(tmp_path: Path) -> None:
    names = ("byte-level", "prepend")
    for name in names:
        (tmp_path / name).mkdir()
        records = [{"prompt": "What is it?", "response": f" It is {name} so."}] * 4
        captured(tmp_path / name, records, save(tmp_path / name / "teacher", name))
    save(tmp_path / "student", "gpt4-like")
    stores = tuple(str(tmp_path / name / "store") for name in names)
    options: dict[str, Any] = {"store": stores, "match": "bytes-1to1", "mask_from_step": 2}
    lines, packed = (
        read_metrics(run(tmp_path, out, **options, **more).parents[1])
        for out, more in (("run", {}), ("packed", {"token_budget": 200}))
    )
    for line, other in zip(lines, packed, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)
        assert 0 < line["mapped_spans"] < 1
        assert line["mapped_mass"] == pytest.approx(other["mapped_mass"])
    for line in lines:
        assert sum(line["examples_per_store"]) == 4
        assert line["other_bytes"] == 0
    both = [sum(n) for n in zip(*(line["examples_per_store"] for line in lines), strict=True)]
    assert min(both) > 0


def test_the_longest_example_of_all_must_fit_the_token_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long one is in the store that the sample has not reached."""
    monkeypatch.setattr(other_tokenizer, "SAMPLE", 2)
    monkeypatch.setattr(other_tokenizer, "_READ_TOGETHER", 5)
    records = [{"prompt": "What is it?", "response": " It is so."}] * 12
    long = {"prompt": "What is it?", "response": " It is" + " so" * 40}
    store = captured(tmp_path, [*records, long], save(tmp_path / "teacher", "byte-level"))
    save(tmp_path / "student", "gpt4-like")
    tokens = StudentTokens(TOKENIZERS["gpt4-like"](), store)
    (longest,) = tokens.lengths(store.read([12], ()))
    assert longest > 2 * max(tokens.lengths(store.read(range(12), ())))
    for seed in (0, 1, 2):
        with pytest.raises(UsageError, match=f"--token-budget {longest} or more"):
            run(tmp_path, "run", token_budget=longest - 1, seed=seed, dry_run=True)
    run(tmp_path, "run", token_budget=longest, dry_run=True)


def test_a_sampled_store_serves(tmp_path: Path) -> None:
    records = [{"prompt": "What is it?", "response": " It is so."}] * 4
    teacher = save(tmp_path / "teacher", "byte-level")
    captured(tmp_path, records, teacher, top_k=None, sample=8)
    (tmp_path / "topk").mkdir()
    captured(tmp_path / "topk", records, teacher)
    save(tmp_path / "student", "gpt4-like")
    student = str(tmp_path / "student")
    lines = [
        read_metrics(run(root, "run", student=student).parents[1])
        for root in (tmp_path, tmp_path / "topk")
    ]
    for sampled, whole in zip(*lines, strict=True):
        assert sampled["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert sampled["teacher_accuracy"] == whole["teacher_accuracy"]


@pytest.mark.parametrize(
    ("field", "value", "objective"),
    [("label", "within_topk", "alm"), ("argmax", "unknown", "cat-xent")],
)
def test_a_store_without_what_the_objective_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: str, objective: str
) -> None:
    records = [{"prompt": "What is it?", "response": " It is so."}] * 4
    store = captured(tmp_path, records, save(tmp_path / "teacher", "byte-level"))
    save(tmp_path / "student", "gpt4-like")
    fields = {**store.spec.capture_fields, field: value}
    monkeypatch.setattr(type(store.spec), "capture_fields", property(lambda _: fields))
    with pytest.raises(UsageError, match=rf"capture\.{field} is {value}.*expect.*xent"):
        run(tmp_path, "run", objective=objective)


def test_a_student_without_eos_is_refused(tmp_path: Path) -> None:
    records = [{"prompt": "What is it?", "response": " It is so."}] * 4
    captured(tmp_path, records, save(tmp_path / "teacher", "byte-level"))
    folder = save(tmp_path / "student", "gpt4-like")
    tokenizer = TOKENIZERS["gpt4-like"]()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UsageError, match=r"no EOS token.*eos_token"):
        run(tmp_path, "run")


def test_one_side_may_end_first() -> None:
    spans = align_tokens(np.array([2, 3, 1]), np.array([1, 1, 2]), cut_off=True)
    assert spans is not None
    assert spans.of_teacher.tolist() == [0, -1, -1]
    assert spans.of_student.tolist() == [0, 0, -1]
