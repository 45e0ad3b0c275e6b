"""Which tokens of an example are replies, from the conversations that its source was made of.

A source may record tokens only. The same conversations, rendered and tokenised as a capture does,
give the same tokens up to the end of the last reply, unless the source cut them earlier.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.precompute.imports.examples import ForeignExample
from caskd.store.corpus import (
    Columns,
    TextOptions,
    TokenizedExample,
    decide_columns,
    num_rows,
    read_records,
    tokenize_examples,
)
from caskd.store.errors import UsageError

_NO_LIMIT, _BATCH = 1 << 30, 256
Mask = npt.NDArray[np.uint8]


class Replies:
    """Masks of conversations, found by the tokens of a source."""

    def __init__(self, examples: Iterable[TokenizedExample]) -> None:
        # The bytes of ids sort as the ids do, so that a prefix stands directly before what it
        # begins.
        masks = {one.token_ids.astype(">u4").tobytes(): one.is_response for one in examples}
        self._texts = sorted(masks)
        self._masks = [masks[text] for text in self._texts]
        self._lengths = sorted({len(text) for text in self._texts}, reverse=True)

    def mask(self, token_ids: npt.NDArray[Any]) -> Mask | None:
        """The replies among the tokens [T] of a source; None if they are of no conversation."""
        text = token_ids.astype(">u4").tobytes()
        at = bisect_left(self._texts, text)
        if at < len(self._texts) and self._texts[at].startswith(
            text
        ):  # the source cut it, or equal
            return self._masks[at][: len(token_ids)]
        for length in self._lengths:
            at = bisect_left(self._texts, text[:length])
            if length < len(text) and self._texts[at : at + 1] == [text[:length]]:
                rest = np.zeros(len(token_ids) - length // 4, np.uint8)
                return np.concatenate([self._masks[at], rest])
        return None

    def applied(self, example: ForeignExample) -> ForeignExample:
        """An example with the rows of its replies alone; with none if it is of no conversation."""
        mask = self.mask(example.token_ids)
        if mask is None:
            mask = np.zeros(len(example.token_ids), np.uint8)
        mask = mask & example.is_response
        chosen = mask[1:][example.is_response[1:] != 0] != 0
        return replace(
            example, is_response=mask, ids=example.ids[chosen], logprobs=example.logprobs[chosen]
        )


def read_replies(tokenizer: Any, files: Sequence[str]) -> Replies:
    """The conversations of a corpus, tokenised as a capture would.

    Raises:
        UsageError: a file cannot be read, its records have no messages, or no reply has a token.
    """
    records = read_records(files)
    first = next(records)
    if decide_columns(first, Columns()).kind != "messages":
        raise UsageError(
            f"--data {files[0]}: has no column 'messages'; expected conversations; pass the corpus "
            "of the source, or --response-from all"
        )
    options = TextOptions(max_length=_NO_LIMIT)

    def examples() -> Iterator[TokenizedExample]:
        batch, index = [first, *islice(records, _BATCH - 1)], 0
        while batch:
            found = tokenize_examples(tokenizer, batch, Columns(), options, index)
            yield from (one for one in found if num_rows(one.is_response))
            batch, index = list(islice(records, _BATCH)), index + len(batch)

    return Replies(examples())
