"""Students whose tokenizer is not the teacher's: from a store to a checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.chat_tokenizers import TEMPLATES, TOKENIZERS
from helpers.other_tokenizer import captured, own_labels, run, save
from helpers.records import write_jsonl
from helpers.training import capture, config_for, read_metrics
from tokenizers.normalizers import Lowercase
from transformers import AutoTokenizer

from caskd.store import TeacherStore
from caskd.store.corpus import token_bytes
from caskd.store.errors import IdentityError, UsageError
from caskd.train import train
from caskd.train.data import AlignedExample, StudentTokens, span_examples
from caskd.train.data.span_batches import SpanExample
from caskd.train.run.exporter import export

TEXTS = [
    ("What is it?", " It is so, and that is 42."),
    ("é 中文 ", "ü 中文 It  is   spaced 🙂"),
    ("", "def f(x):\n    return x + 1\n"),
    ("Say nothing long: ", "x"),
    ("user: ", "  leading and trailing  "),
] * 3
CHATS = [
    [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "It is 42, é 中文."},
        {"role": "user", "content": "and that?"},
        {"role": "assistant", "content": "that is\n\nso"},
    ]
] * 6


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of prompts and responses, its teacher, and a student of another tokenizer."""
    root = tmp_path_factory.mktemp("plain")
    save(root / "student", "prepend")
    records = [{"prompt": prompt, "response": response} for prompt, response in TEXTS]
    captured(root, records, save(root / "teacher", "byte-level"))
    return root


def check_texts(store: TeacherStore, tokenizer: Any, tokens: StudentTokens) -> int:
    """Every span has equal bytes on both sides; the number of examples with spans."""
    batch = store.read(range(len(store)))
    own = token_bytes(tokenizer)
    aligned = tokens.align(batch)
    for number, example in enumerate(aligned):
        if not isinstance(example, AlignedExample):
            continue
        assert example.num_spans
        rows = slice(batch.row_offsets[number], batch.row_offsets[number + 1])
        labels = own_labels(example)
        for span in range(example.num_spans):
            theirs = batch.labels[rows][example.teacher_span == span].tolist()
            ours = labels[example.student_span == span].tolist()
            sides = b"".join(store.vocab[id_] for id_ in theirs), b"".join(own[id_] for id_ in ours)
            ends = theirs == [store.spec.special_tokens["eos_id"]] or len(theirs) == 1
            assert sides[0].lstrip(b" ") == sides[1].lstrip(b" ") or ends
    return sum(isinstance(example, AlignedExample) for example in aligned)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "byte-level"])
def test_spans_have_equal_bytes_on_both_sides(plain: Path, name: str) -> None:
    store = TeacherStore.open(str(plain / "store"))
    tokenizer = TOKENIZERS[name]()
    assert check_texts(store, tokenizer, StudentTokens(tokenizer, store)) == len(TEXTS)


@pytest.mark.parametrize("name", ["prepend", "gpt4-like"])
def test_spans_have_the_teacher_s_values(plain: Path, name: str) -> None:
    store = TeacherStore.open(str(plain / "store"))
    fields = ("argmax", "num_kept", "label_logit", "logsumexp", "label_rank")
    batch = store.read(range(len(store)), fields)
    found = span_examples(batch, StudentTokens(TOKENIZERS[name](), store))
    right = 0
    for number, example in enumerate(found):
        assert isinstance(example, SpanExample)
        rows = slice(batch.row_offsets[number], batch.row_offsets[number + 1])
        likelihood = batch.column("label_logit")[rows] - batch.column("logsumexp")[rows]
        is_first = batch.column("label_rank")[rows] == 0
        for span in range(example.aligned.num_spans):
            inside = example.aligned.teacher_span == span
            assert example.log_likelihood[span] == pytest.approx(likelihood[inside].sum(), rel=1e-5)
            assert example.correct[span] == is_first[inside].all()
        right += int(example.correct.sum())
    assert right


def test_one_tokenizer_has_the_mask_of_the_ordinary_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(tmp_path)
    lines = {}
    for objective in ("cat-xent", "cat-alm"):
        config = config_for(tmp_path, objective, objective=objective, steps=1)
        train(config)
        (lines[objective],) = read_metrics(tmp_path / objective)
        noted = "the student has the teacher's vocabulary" in capsys.readouterr().out
        assert noted == (objective == "cat-alm")
    for name in ("keep_fraction", "student_accuracy", "teacher_accuracy"):
        assert lines["cat-xent"][name] == lines["cat-alm"][name] > 0


def test_resume_is_bitwise(plain: Path) -> None:
    whole = run(plain, "whole")
    run(plain, "part")
    shutil.rmtree(plain / "part/checkpoints/step-00000004")
    again = run(plain, "part", resume=True)
    assert tensors(again) == tensors(whole)
    keys = ("loss", "keep_fraction", "student_accuracy", "other_bytes")
    assert [[line[k] for k in keys] for line in read_metrics(plain / "part")] == [
        [line[k] for k in keys] for line in read_metrics(plain / "whole")
    ]


def tensors(checkpoint: Path) -> dict[str, bytes]:
    """The files of weights and optimizer state."""
    files = {p.name: p.read_bytes() for p in checkpoint.rglob("*.safetensors")}
    assert files
    return files


def test_micro_batches_and_packing_do_not_change_the_loss(plain: Path) -> None:
    first = read_metrics(run(plain, "two").parents[1])
    for name, changes in (("four", {"micro_batch_size": 4}), ("budget", {"token_budget": 200})):
        other = read_metrics(run(plain, name, **changes).parents[1])
        for a, b in zip(first, other, strict=True):
            assert a["keep_fraction"] == pytest.approx(b["keep_fraction"])
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-6)


def test_conversations_need_their_corpus(tmp_path: Path) -> None:
    save(tmp_path / "student", "metaspace-first", "llama3")
    records = [{"messages": chat} for chat in CHATS]
    store = captured(tmp_path, records, save(tmp_path / "teacher", "byte-level", "chatml"))
    with pytest.raises(UsageError, match="--data"):
        run(tmp_path, "none")
    other = write_jsonl(tmp_path / "other.jsonl", records[:-1])
    with pytest.raises(IdentityError, match=r"5 records.*6 records"):
        run(tmp_path, "other", data=(str(other),))
    last = run(tmp_path, "run", data=(str(tmp_path / "data.jsonl"),))
    lines = read_metrics(last.parents[1])
    assert all(line["other_bytes"] == 0 for line in lines)
    assert store.spec.num_rows > 0


def test_a_distribution_objective_is_refused(plain: Path) -> None:
    with pytest.raises(IdentityError, match=r"(?s)383.*--objective cat-alm|cat-alm"):
        run(plain, "dist", objective="cat-dist")


def test_too_many_other_bytes_stop_the_run(plain: Path) -> None:
    save(plain / "small letters", "gpt4-like", normalizer=Lowercase())
    options = {"student": str(plain / "small letters")}
    with pytest.raises(UsageError, match=r"6 of 15 .*--allow-other-bytes"):
        run(plain, "refused", **options)
    assert not (plain / "refused").exists()
    last = run(plain, "allowed", allow_other_bytes=1.0, **options)
    assert sum(line["other_bytes"] for line in read_metrics(last.parents[1])) > 0


def test_an_evaluation_is_in_nats_per_byte(plain: Path) -> None:
    store = TeacherStore.open(str(plain / "store"))
    last = run(plain, "evaluated", eval_store=str(plain / "store"), lr=1e-3)
    lines = [json.loads(x) for x in (last.parents[1] / "eval.jsonl").read_text().splitlines()]
    num_bytes = sum(len(response.encode()) for _, response in TEXTS)
    tokenizer = TOKENIZERS["prepend"]()
    aligned = StudentTokens(tokenizer, store).align(store.read(range(len(store))))
    rows = sum(len(e.student_span) for e in aligned if isinstance(e, AlignedExample))
    for line in lines:
        assert line["num_rows"] == rows
        assert line["kl"] is None
        assert line["keep_fraction"] is None
        assert line["nats_per_byte"] == pytest.approx(line["nll"] * rows / num_bytes)


def test_the_plan_has_the_alignment_and_the_student_s_lengths(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(plain, "planned", dry_run=True)
    assert not (plain / "planned").exists()
    printed = capsys.readouterr().out
    store = TeacherStore.open(str(plain / "store"))
    tokens = StudentTokens(TOKENIZERS["prepend"](), store)
    found = [
        e for e in tokens.align(store.read(range(len(store)))) if isinstance(e, AlignedExample)
    ]
    longest = max(len(example.token_ids) for example in found)
    assert f"the longest {longest} tokens" in printed
    pairs = sum(
        np.count_nonzero(np.bincount(e.teacher_span) + np.bincount(e.student_span) == 2)
        for e in found
    )
    assert f"{pairs / store.spec.num_rows:.1%} of the teacher's tokens" in printed
    assert "left out: 0 with other bytes, 0 longer" in printed
    assert longest != store.token_counts().max()
    with pytest.raises(UsageError, match=f"--token-budget {longest} or more"):
        run(plain, "planned", dry_run=True, token_budget=longest - 1)


def test_an_export_keeps_the_student_s_own_text(tmp_path: Path) -> None:
    records = [{"prompt": "What is it?", "response": " It is so."}] * 4
    captured(tmp_path, records, save(tmp_path / "teacher", "byte-level", "chatml"))
    folder = save(tmp_path / "student", "gpt4-like", "llama3")
    settings = {"eos_token_id": [1, 6], "temperature": 0.5, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    run(tmp_path, "run")
    out = export(tmp_path / "run", tmp_path / "model")
    assert not (out / "caskd_text.json").exists()
    kept = json.loads((out / "generation_config.json").read_text())
    assert {name: kept[name] for name in settings} == settings
    own, exported = (AutoTokenizer.from_pretrained(path) for path in (folder, out))
    assert exported.chat_template == own.chat_template == TEMPLATES["llama3"]
    assert exported.eos_token_id == own.eos_token_id
    assert exported("What is it?").input_ids == own("What is it?").input_ids
    card = (out / "README.md").read_text()
    assert "tail" not in card
    for fact in ("teacher", "cat-alm", "of 16 examples, 0.00% were left out", "0.00% because"):
        assert fact in card


def test_adapters(plain: Path) -> None:
    first = read_metrics(run(plain, "adapters", lora_rank=2).parents[1])
    whole = read_metrics(run(plain, "no adapters").parents[1])
    assert first[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-6)
    assert first[-1]["loss"] != first[0]["loss"]
    export(plain / "adapters", plain / "adapter", adapter=True)
    assert (plain / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize("objective", ["xent", "random-xent", "cat-xent", "alm"])
def test_every_objective_trains_in_stage_2(plain: Path, objective: str) -> None:
    options: dict[str, Any] = {"objective": objective}
    if objective == "random-xent":
        options["keep_fraction_from"] = run(plain, "source").parents[1]
    runs = [
        read_metrics(run(plain, f"{objective}-{stage}", zero_stage=stage, **options).parents[1])
        for stage in (1, 2)
    ]
    for one, two in zip(*runs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5, abs=1e-7)
        assert one["keep_fraction"] == two["keep_fraction"]
    assert runs[0][-1]["loss"] != runs[0][0]["loss"]


def test_a_run_that_would_learn_nothing_is_refused(plain: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(plain / "student", short)
    config = json.loads((short / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 3
    (short / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UsageError, match=r"longer than the student's positions.*learn nothing"):
        run(plain, "nothing", student=str(short))


def test_options_that_would_do_nothing_are_refused(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"--best-metric kl.*nll"):
        run(plain, "kl", best_metric="kl", eval_store=str(plain / "store"))
    with pytest.raises(UsageError, match=r"--data x\.jsonl.*omit it"):
        run(plain, "data", student=str(plain / "teacher"), objective="xent", data=("x.jsonl",))
