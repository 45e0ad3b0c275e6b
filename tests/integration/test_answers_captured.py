"""A capture of a teacher's own greedy answers holds the tokens that it generated."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from helpers.chat_tokenizers import TOKENIZERS
from helpers.tiny import write_jsonl
from transformers import LlamaConfig, LlamaForCausalLM

from caskd.cli.main import main
from caskd.eval.answers import read_predictions
from caskd.store import TeacherStore

ANSWER = " It is so."
RECORDS = [{"prompt": f"What is {n}? It says:", "response": ANSWER} for n in range(3)]


def save_teacher(folder: Path, name: str) -> Path:
    """A model that writes ANSWER behind every prompt: each token has one successor."""
    tokenizer = TOKENIZERS[name]()
    tokenizer.pad_token = "</s>"
    ids = tokenizer(RECORDS[0]["prompt"] + ANSWER, add_special_tokens=False)["input_ids"]
    given = tokenizer(RECORDS[0]["prompt"], add_special_tokens=False)["input_ids"]
    chain = [*ids[len(given) - 1 :], tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain)
    size = len(tokenizer) + len(tokenizer) % 2
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=2, num_hidden_layers=1,
        num_attention_heads=1, tie_word_embeddings=False, max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float(weight.ndim == 1))
        model.get_input_embeddings().weight.copy_(torch.eye(size))
        for now, after in itertools.pairwise(chain):
            model.get_output_embeddings().weight[after, now] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["prepend", "byte-level"])
def test_every_captured_label_is_the_greedy_teachers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_teacher(tmp_path / "teacher", name)
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": r["prompt"]} for r in RECORDS])
    answers, store = tmp_path / "answers.jsonl", tmp_path / "store"
    base = ["precompute", "--teacher", str(teacher), "--device", "cpu"]
    written = ["--sample-responses", str(answers), "--max-new-tokens", "12"]
    assert main([*base, "--data", str(data), *written]) == 0
    counts = json.loads((tmp_path / "answers.jsonl.request.json").read_text())["counts"]
    assert counts["finished"] == 3
    assert counts["text_differs"] == counts["retokenized"] == 0
    assert main([*base, "--data", str(answers), "--store", str(store), "--top-k", "4"]) == 0
    opened = TeacherStore.open(store)
    rows = opened.read(range(len(opened)))
    assert len(rows.labels)
    assert (rows.column("label_rank") == 0).all()

    full = write_jsonl(tmp_path / "full.jsonl", RECORDS)
    out = tmp_path / "p.parquet"
    words = ["predict", "--model", str(teacher), "--data", str(full), "--out", str(out)]
    assert main([*words, "--max-new-tokens", "12", "--device", "cpu"]) == 0
    assert set(read_predictions(str(out)).strings("text")) == {ANSWER}
    capsys.readouterr()
