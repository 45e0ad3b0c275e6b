"""Tokenising in parallel: the same examples in the same order, whatever the processes."""

import pytest
from helpers.tiny import ragged_records, save_tiny, tiny_tokenizer, write_jsonl

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import tokenization
from caskd.precompute.planning.planner import plan
from caskd.precompute.planning.tokenization import tokenize_corpus
from caskd.store.corpus import Columns, TextOptions, tokenize_examples
from caskd.store.errors import UsageError

OPTIONS = TextOptions(max_length=30, on_long="truncate")


def fingerprints(examples):
    return [
        (e.token_ids.tolist(), e.is_response.tolist(), e.status, e.source_index, e.task)
        for e in examples
    ]


def one_by_one(records):
    tokenizer = tiny_tokenizer()
    made = (tokenize_examples(tokenizer, [r], Columns(), OPTIONS, n) for n, r in enumerate(records))
    return fingerprints(example for [example] in made)


@pytest.mark.parametrize("block", [1, 7, 256])
def test_blocks_change_nothing(monkeypatch, block):
    monkeypatch.setattr(tokenization, "BLOCK_RECORDS", block)
    records = [*ragged_records(60, seed=1), {"prompt": "", "response": ""}]
    found = tokenize_corpus(tiny_tokenizer(), records, Columns(), OPTIONS, num_processes=1)
    assert fingerprints(found) == one_by_one(records)


def test_long_documents_make_small_blocks(monkeypatch):
    monkeypatch.setattr(tokenization, "BLOCK_CHARACTERS", 10)
    records = [{"text": "a" * 6}, {"text": "b" * 6}, {"text": "c"}]
    blocks = [(first, len(block)) for first, block in tokenization._blocks(records)]
    assert blocks == [(0, 2), (2, 1)]


@pytest.mark.slow
def test_other_processes_give_the_same_store(monkeypatch, tmp_path):
    """Few records a block, so that several processes have several each."""
    monkeypatch.setattr(tokenization, "BLOCK_RECORDS", 8)
    monkeypatch.setattr(tokenization, "SMALL_CORPUS", 300)
    teacher = save_tiny(tmp_path / "big")
    data = write_jsonl(tmp_path / "data.jsonl", ragged_records(120, seed=2))
    trees = {}
    for processes in (1, 2):
        root = tmp_path / f"store{processes}"
        config = {"teacher": str(teacher), "data": (str(data),), "store": str(root), "top_k": 8}
        plan(PrecomputeConfig(**config, shard_rows=256, tokenize_processes=processes))
        trees[processes] = {
            file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()
        }
    assert trees[1] == trees[2]


def test_a_small_corpus_starts_no_process(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(tokenization, "ProcessPoolExecutor", refuse)
    records = ragged_records(50)
    found = tokenize_corpus(tiny_tokenizer(), records, Columns(), OPTIONS, num_processes=8)
    assert fingerprints(found) == one_by_one(records)
    monkeypatch.setattr(tokenization, "SMALL_CORPUS", 1)
    examples = tokenize_corpus(
        tiny_tokenizer(), ragged_records(600), Columns(), OPTIONS, num_processes=8
    )
    with pytest.raises(AssertionError, match="was started"):
        list(examples)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.slow
def test_a_record_that_is_refused_is_named(monkeypatch, processes):
    monkeypatch.setattr(tokenization, "BLOCK_RECORDS", 4)
    monkeypatch.setattr(tokenization, "SMALL_CORPUS", 1)
    records: list[dict[str, object]] = [*ragged_records(20)]
    records[13] = {"prompt": "a", "response": None}
    records[17] = {"prompt": "a"}
    found = tokenize_corpus(tiny_tokenizer(), records, Columns(), OPTIONS, num_processes=processes)
    assert [next(found).source_index for _ in range(12)] == list(range(12))
    with pytest.raises(UsageError, match="record 13: column 'response' is null"):
        next(found)
