"""`--match bytes-1to1`: the teacher's top-k in the student's tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.chat_tokenizers import TOKENIZERS
from helpers.other_tokenizer import captured, run, save
from helpers.training import read_metrics
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from caskd.store import TeacherStore
from caskd.store.errors import IdentityError, UsageError
from caskd.train.data import SpanExample, StudentTokens, span_examples, span_fields
from caskd.train.objectives import resolve_objective

RECORDS = [
    {"prompt": "What is it?", "response": " It is so, and that is 42."},
    {"prompt": "é 中文 ", "response": "ü 中文 It  is   spaced 🙂"},
    {"prompt": "", "response": "def f(x):\n    return x + 1\n"},
    {"prompt": "Say it: ", "response": "It"},
] * 3
MAPPED = resolve_objective("cat-alm", match="bytes-1to1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, its teacher's architecture as a student, and students of other tokenizers."""
    root = tmp_path_factory.mktemp("topk")
    captured(root, RECORDS, save(root / "teacher", "byte-level"), top_k=24)
    save(root / "student", "gpt4-like")
    save(root / "pieces", "metaspace-always")
    permuted(root / "permuted", root / "teacher")
    return root


def permuted(folder: Path, source: Path) -> Path:
    """The same model and tokens in another order of ids."""
    backend: dict[str, Any] = json.loads((source / "tokenizer.json").read_text())
    vocab: dict[str, int] = dict(backend["model"]["vocab"])
    vocab |= {token["content"]: token["id"] for token in backend["added_tokens"]}
    order = np.random.default_rng(0).permutation(len(vocab))
    own = {token: int(order[id_]) for token, id_ in vocab.items()}
    backend["model"]["vocab"] = own
    for token in backend["added_tokens"]:
        token["id"] = own[token["content"]]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    assert tokenizer.get_vocab() == own
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[torch.from_numpy(order)] = weight.clone()
    model.config.bos_token_id, model.config.eos_token_id = own["<s>"], own["</s>"]
    model.generation_config.bos_token_id = own["<s>"]
    model.generation_config.eos_token_id = own["</s>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("w", "rule"), [(0.0, "cat-"), (0.3, "")])
def test_permuted_ids_are_the_ordinary_objective(root: Path, w: float, rule: str) -> None:
    with pytest.raises(IdentityError):
        run(root, "other ids", student=str(root / "permuted"), objective=f"{rule}dist")
    ordinary = run(root, f"{rule}dist", student=str(root / "teacher"), objective=f"{rule}dist", w=w)
    own = run(
        root, f"{rule}own", student=str(root / "permuted"), objective=f"{rule}alm", w=w,
        match="bytes-1to1",
    )  # fmt: skip
    pairs = [read_metrics(last.parents[1]) for last in (own, ordinary)]
    for found, wanted in zip(*pairs, strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=2e-4)
        assert found["kl"] == pytest.approx(wanted["kl"], rel=1e-3, abs=1e-4)
        assert found["keep_fraction"] == wanted["keep_fraction"]
        assert found["mapped_spans"] == 1
        assert found["mapped_mass"] == pytest.approx(1 - wanted["tail_mass"], rel=1e-5)
    if not rule:
        assert pairs[0][-1]["loss"] != pytest.approx(pairs[0][0]["loss"], rel=1e-3)


@pytest.mark.parametrize("name", ["gpt4-like", "metaspace-always", "unigram", "prepend"])
def test_cells_have_the_bytes_of_the_teacher_s(root: Path, name: str) -> None:
    store, tokenizer = TeacherStore.open(str(root / "store")), TOKENIZERS[name]()
    tokens = StudentTokens(tokenizer, store)
    batch = store.read(range(len(store)), span_fields(MAPPED))
    own = tokens.shared_ids
    num_rows = 0
    for number, example in enumerate(span_examples(batch, tokens)):
        assert isinstance(example, SpanExample)
        rows = batch.row_offsets[number]
        span_of = example.aligned.student_span
        for index, row in enumerate(example.mapped_rows.tolist()):
            (theirs,) = np.flatnonzero(example.aligned.teacher_span == span_of[row])
            at = rows + theirs
            masses = np.exp(batch.topk_logits[at] - batch.logsumexp[at])
            masses *= (1 - batch.tail_mass[at]) / masses.sum()  # the reader's rule
            cells = zip(batch.topk_ids[at].tolist(), masses.tolist(), strict=True)
            kept = example.mapped.num_kept[index]
            found = dict(
                zip(
                    example.mapped.ids[index, :kept], example.mapped.mass[index, :kept], strict=True
                )
            )
            for id_, mass in cells:
                if own[id_] < len(tokenizer):
                    assert found[own[id_]] >= mass * (1 - 1e-3)
                    bytes_of = tokenizer.convert_ids_to_tokens(int(own[id_]))
                    assert not bytes_of.startswith("<0x") or len(store.vocab[id_]) == 1
            num_rows += 1
    assert num_rows > len(store)


def test_a_run_logs_the_mapped_mass_and_resumes(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"objective": "alm", "eval_store": str(root / "store")}
    plain = read_metrics(run(root, "plain", **options).parents[1])
    assert "mapped_mass" not in plain[0]
    options["match"] = "bytes-1to1"
    whole = run(root, "whole", **options)
    printed = capsys.readouterr().out
    assert "% of the teacher's mass there" in printed
    lines = read_metrics(whole.parents[1])
    assert all(0.1 < line["mapped_mass"] < 0.9 for line in lines)
    assert all(0 < line["mapped_spans"] < 1 for line in lines)
    assert all(line["tail_mass"] is None for line in lines)
    run(root, "part", **options)
    shutil.rmtree(root / "part/checkpoints/step-00000004")
    with pytest.raises(IdentityError, match=r"--match likelihood.*bytes-1to1"):
        run(root, "part", resume=True, **{**options, "match": "likelihood"})
    again = run(root, "part", resume=True, **options)
    for file in whole.rglob("*.safetensors"):
        assert (again / file.relative_to(whole)).read_bytes() == file.read_bytes()
    assert plain[0]["loss"] != pytest.approx(lines[0]["loss"], rel=1e-3)


def test_micro_batches_and_packing_do_not_change_the_loss(root: Path) -> None:
    first = read_metrics(run(root, "two", objective="alm", match="bytes-1to1").parents[1])
    for name, changes in (("four", {"micro_batch_size": 4}), ("budget", {"token_budget": 200})):
        other = read_metrics(
            run(root, name, objective="alm", match="bytes-1to1", **changes).parents[1]
        )
        for a, b in zip(first, other, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-6)
            assert a["mapped_mass"] == pytest.approx(b["mapped_mass"])


def test_what_it_cannot_read_is_refused_by_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"--match bytes-1to1.*xent.*alm or cat-alm"):
        run(root, "refused", match="bytes-1to1", objective="xent")
    with pytest.raises(UsageError, match=r"--tail drop.*bucket"):
        run(root, "refused", match="bytes-1to1", tail="drop")
    captured(tmp_path, RECORDS[:4], root / "teacher", top_k=None, sample=8)
    with pytest.raises(UsageError, match=r"samples.*bytes-1to1"):
        run(tmp_path, "refused", match="bytes-1to1", student=str(root / "student"), tail="none")
    spec = TeacherStore.open(str(root / "store")).spec
    fields = {**spec.capture_fields, "tail": "unknown"}
    monkeypatch.setattr(type(spec), "capture_fields", property(lambda _: fields))
    with pytest.raises(UsageError, match=r"tail is unknown.*bytes-1to1"):
        run(root, "refused", match="bytes-1to1")
    assert not (root / "refused").exists()
