"""Filling a shard: batches, memory, and every row exactly once."""

import random
from collections import Counter

import numpy as np
import pytest

from caskd.precompute.workers.fill import TokenBudget, fill_shard
from caskd.store.corpus import num_rows
from caskd.store.errors import UsageError
from caskd.store.write import ShardExample, ShardWork

SHARD_ROWS = 100


def example(index: int, prompt: int, response: int, row_start: int) -> ShardExample:
    mask = np.repeat([0, 1], [prompt, response]).astype(np.uint8)
    tokens = np.full(prompt + response, index, dtype=np.uint32)
    return ShardExample(index, tokens, mask, row_start, num_rows(mask))


@pytest.fixture
def work() -> ShardWork:
    sizes, examples, row = [(2, 3), (1, 9), (4, 1), (5, 5), (1, 1), (2, 8)], [], 0
    for n, (prompt, response) in enumerate(sizes):
        examples.append(example(10 + n, prompt, response, row))
        row += response
    return ShardWork(0, examples)


class Counting:
    """A teacher whose row is (example, position), with memory for `most_tokens` padded tokens."""

    def __init__(self, most_tokens: int = 10**9, nan: int | None = None) -> None:
        self.most_tokens, self.nan = most_tokens, nan
        self.answered: Counter[int] = Counter()
        self.batches: list[list[int]] = []

    def rows(self, examples):
        if max(len(e.token_ids) for e in examples) * len(examples) > self.most_tokens:
            raise MemoryError("full")
        self.batches.append([len(e.token_ids) for e in examples])
        self.answered.update(e.index for e in examples)
        labels = [np.full(e.row_count, e.index) for e in examples]
        positions = [np.arange(e.row_count) for e in examples]
        kept = [
            np.where((e.index == self.nan) & (np.arange(e.row_count) == 0), 0, 1) for e in examples
        ]
        return {
            "argmax": np.concatenate(labels),
            "label_rank": np.concatenate(positions),
            "num_kept": np.concatenate(kept),
        }


def fill(work, teacher, budget):
    rows = {name: np.zeros(SHARD_ROWS, np.int64) for name in ("argmax", "label_rank", "num_kept")}
    reports: list[int] = []
    non_finite = fill_shard(work, teacher, rows, budget, reports.append)
    assert sum(reports) == work.num_rows
    for e in work.examples:
        target = slice(e.row_start, e.row_start + e.row_count)
        assert (rows["argmax"][target] == e.index).all()
        assert rows["label_rank"][target].tolist() == list(range(e.row_count))
    assert not rows["argmax"][work.num_rows :].any()
    assert teacher.answered == Counter(e.index for e in work.examples)
    return non_finite


@pytest.mark.parametrize("tokens", [1, 10, 17, 10_000])
def test_batches_are_longest_first_and_fit_the_budget(work, tokens):
    teacher = Counting()
    assert fill(work, teacher, TokenBudget(tokens)) == []
    lengths = [length for batch in teacher.batches for length in batch]
    assert lengths == sorted(lengths, reverse=True)
    for batch in teacher.batches:
        assert len(batch) == 1 or batch[0] * len(batch) <= tokens


@pytest.mark.parametrize(("tokens", "sizes"), [(29, [2, 1]), (30, [3]), (3, [1, 1, 1])])
def test_a_batch_takes_what_fits(tokens, sizes):
    examples = [example(0, 4, 6, 0), example(1, 4, 6, 6), example(2, 1, 1, 12)]
    teacher = Counting()
    assert fill(ShardWork(0, examples), teacher, TokenBudget(tokens)) == []
    assert [len(batch) for batch in teacher.batches] == sizes


@pytest.mark.parametrize("most_tokens", [10, 13, 25, 40])
def test_out_of_memory_halves_and_computes_each_row_once(work, most_tokens):
    teacher, budget = Counting(most_tokens), TokenBudget(10_000)
    assert fill(work, teacher, budget) == []
    assert budget.tokens < 10_000


class Failing(Counting):
    """Memory that others use too: a batch of several may fail at any time."""

    def __init__(self, most_tokens: int, source: random.Random) -> None:
        super().__init__(most_tokens)
        self.source = source

    def rows(self, examples):
        if len(examples) > 1 and self.source.random() < 0.3:
            raise MemoryError("full")
        return super().rows(examples)


def random_work(source: random.Random) -> ShardWork:
    examples, row = [], 0
    while True:
        made = example(len(examples), source.randint(1, 12), source.randint(1, 12), row)
        row += made.row_count
        if row > SHARD_ROWS:
            return ShardWork(0, examples)
        examples.append(made)


def test_each_row_once_whenever_memory_runs_out():
    """A thousand shards; each is filled whatever fails, as long as its longest example fits."""
    failures = 0
    for seed in range(1000):
        source = random.Random(seed)
        work = random_work(source)
        longest = max(len(e.token_ids) for e in work.examples)
        teacher = Failing(source.randint(longest, 10 * longest), source)
        budget = TokenBudget(before := source.choice([longest, 60, 500]))
        assert fill(work, teacher, budget) == []
        failures += budget.tokens < before
    assert failures > 500


def test_running_out_of_memory_is_one_warning_with_the_next_flag(work, capsys):
    budget = TokenBudget(10_000)
    fill(work, Counting(13), budget)
    said = capsys.readouterr().err
    assert said.count("out of memory") == 1
    assert "--token-budget 30" in said


def test_one_example_that_does_not_fit_is_an_error(work):
    with pytest.raises(UsageError, match=r"--token-budget.*--max-length"):
        fill(work, Counting(9), TokenBudget(10_000))


def test_fixed_batches_never_shrink(work):
    with pytest.raises(UsageError, match="--deterministic"):
        fill(work, Counting(30), TokenBudget(10_000, fixed=True))


def test_examples_with_a_row_without_teacher_are_named(work):
    assert fill(work, Counting(nan=13), TokenBudget(20)) == [13]
