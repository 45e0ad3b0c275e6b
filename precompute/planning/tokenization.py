"""Tokenise a corpus in parallel; the examples do not depend on the number of processes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import get_context
from typing import Any

from caskd.store.corpus import Columns, Record, TextOptions, TokenizedExample, tokenize_examples
from caskd.store.errors import UsageError

BLOCK_RECORDS = 256
BLOCK_CHARACTERS = 1 << 18  # ends a block of very long documents earlier
SMALL_CORPUS = 1 << 23  # characters; fewer are done before other processes have started
BLOCKS_AHEAD = 4  # per process; bounds the memory for a corpus of any size

Block = tuple[int, list[Record]]
Work = Callable[[int, Sequence[Record]], list[TokenizedExample]]


def tokenize_corpus(
    tokenizer: Any,
    records: Iterable[Record],
    columns: Columns,
    options: TextOptions,
    *,
    num_processes: int | None = None,
) -> Iterator[TokenizedExample]:
    """Tokenise all records, in their order.

    Args:
        tokenizer: the teacher's.
        records: the corpus; read once, never held in memory.
        columns: which columns hold the text.
        options: how text becomes examples.
        num_processes: processes that tokenise; by default one per available core. They start
            only if the corpus has more than `SMALL_CORPUS` characters.

    Raises:
        UsageError: `tokenize_examples` refuses a record, or a process ends.
    """
    work: Work = _Tokenize(tokenizer, columns, options)
    blocks = _blocks(records)
    if num_processes is None:
        num_processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if num_processes > 1:
        yield from chain.from_iterable(
            work(*block) for block in _first_blocks(blocks, SMALL_CORPUS)
        )
        first = next(blocks, None)
        if first is not None:
            yield from _in_processes(work, chain([first], blocks), num_processes)
    else:
        yield from chain.from_iterable(work(*block) for block in blocks)


class _Tokenize:
    """`tokenize_examples` with everything but the records bound; picklable."""

    def __init__(self, tokenizer: Any, columns: Columns, options: TextOptions) -> None:
        self.tokenizer, self.columns, self.options = tokenizer, columns, options

    def __call__(self, first_index: int, records: Sequence[Record]) -> list[TokenizedExample]:
        return tokenize_examples(self.tokenizer, records, self.columns, self.options, first_index)


def _blocks(records: Iterable[Record]) -> Iterator[Block]:
    """Group consecutive records; each block has the index of its first record."""
    first, block, size = 0, list[Record](), 0
    for record in records:
        block.append(record)
        size += _characters(record)
        if len(block) == BLOCK_RECORDS or size >= BLOCK_CHARACTERS:
            yield first, block
            first, block, size = first + len(block), [], 0
    if block:
        yield first, block


def _characters(record: Record) -> int:
    """Approximate number of characters of a record, or of a conversation's turns."""
    total = 0
    for value in record.values():
        turns = value if isinstance(value, list) else [value]
        texts = [t.get("content") if isinstance(t, dict) else t for t in turns]
        total += sum(len(text) for text in texts if isinstance(text, str))
    return total


def _first_blocks(blocks: Iterator[Block], characters: int) -> Iterator[Block]:
    """Take blocks until they have that many characters."""
    while characters > 0:
        block = next(blocks, None)
        if block is None:
            return
        yield block
        characters -= sum(map(_characters, block[1]))


def _in_processes(
    work: Work, blocks: Iterable[Block], num_processes: int
) -> Iterator[TokenizedExample]:
    waiting: deque[Future[list[TokenizedExample]]] = deque()
    # Not fork: torch and the tokenizer may run threads, whose locks a fork would never release.
    pool = ProcessPoolExecutor(
        num_processes, mp_context=get_context("spawn"), initializer=_init_process, initargs=(work,)
    )
    try:
        for block in blocks:
            waiting.append(pool.submit(_tokenize_block, block))
            if len(waiting) >= BLOCKS_AHEAD * num_processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UsageError(
            "--tokenize-processes: a process ended (out of memory, or its script has no "
            "`if __name__ == '__main__':`); expected it to finish; fix that, or pass "
            "--tokenize-processes 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: list[Work] = []  # of this tokenising process


def _init_process(work: Work) -> None:
    # Every core runs a process already; the tokenizer's threads would compete with them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _work[:] = [work]


def _tokenize_block(block: Block) -> list[TokenizedExample]:
    return _work[0](*block)
