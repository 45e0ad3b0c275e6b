"""Reads sources of one record an example: data sets, axolotl's column, NeMo-Aligner's JSONL.

Legend: T tokens of an example, n rows of a record, w cells of the widest of them.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.precompute.imports.draws import drawn_shares
from caskd.precompute.imports.examples import ABSENT, ForeignExample, Ids, Values
from caskd.precompute.imports.source import Reading, Source
from caskd.store.corpus import Columns, Record, conversation_ids, read_records
from caskd.store.errors import UsageError, reason

_MAX_ID, _MAX_CELLS = (1 << 32) - 1, 1 << 16
_TOKENS = ("input_ids", "token_ids", "tokens")
_VALUES = ("target_logprobs", "logprobs")
_IDS = "target_token_ids"
_DRAWN = ("sampled_ids", _IDS)
_COUNTS = ("sampled_counts", "target_counts", "counts")
_ENTRY = "token_id:"
_OTHER_FLAGS = re.compile(r"(?:, or|[:;]) pass --[a-z-]+[^;,]*")
"""Advice of the reader of records that names a flag of another command."""
_Convert = Callable[[Record, Reading], ForeignExample]


def open_dataset(source: str, reading: Reading) -> Source:
    """Records with `input_ids`, and of each row either ids and log-probabilities, or drawn ids and
    counts."""
    return _source(source, reading, _dataset_example, "float32")


def open_axolotl(source: str, reading: Reading) -> Source:
    """Records with `messages` and a column of log-probabilities, in either of its versions."""
    return _source(source, reading, _axolotl_example, "float32")


def open_nemo_aligner(source: str, reading: Reading) -> Source:
    """Records with `tokens`, `labels`, `loss_mask` and the logits of NeMo-Aligner's teacher."""
    # The log of its sum is taken in the model's dtype, so that a tail is known to 0.4 % of 1.
    return _source(source, reading, _nemo_example, "bfloat16")


def _source(source: str, reading: Reading, convert: _Convert, precision: str) -> Source:
    """Read the records of a file or folder one by one.

    Raises:
        UsageError: there are none, or one of them is no such record.
    """
    try:
        records = read_records([source])
    except UsageError as error:
        raise _renamed(error) from None
    return Source(_examples(source, records, reading, convert), precision=precision)


def _examples(
    source: str, records: Iterator[Record], reading: Reading, convert: _Convert
) -> Iterator[ForeignExample]:
    number, num_draws = 0, None
    while True:
        try:
            record = next(records, None)
        except UsageError as error:
            raise _renamed(error) from None
        if record is None:
            return
        try:
            _check_temperature(record)
            example = convert(record, reading)
            num_draws = _draws_so_far(example, num_draws)
        except (UsageError, ValueError, TypeError, OverflowError) as error:
            error = _renamed(error) if isinstance(error, UsageError) else error
            raise UsageError(
                f"{source}: record {number}: {reason(error)}; expected a record as "
                "docs/import-export.md describes it; correct the record, or check FORMAT"
            ) from None
        yield example
        number += 1


def _renamed(error: UsageError) -> UsageError:
    """An error about records, whose reader knows them as --data, without other commands' flags."""
    text = str(error).replace("pass --chat-template FILE", "write one to the --tokenizer folder")
    text = _OTHER_FLAGS.sub("", text)
    return UsageError(text.replace("--data ", "").replace("--data", "SOURCE"))


def _check_temperature(record: Mapping[str, Any]) -> None:
    for name in ("temperature", "generation_temperature", "kd_temperature"):
        value = record.get(name)
        if value is not None and value != 1:
            raise ValueError(f"{name} is {str(value)[:20]}; rows are of temperature 1")


def _draws_so_far(example: ForeignExample, before: int | None) -> int | None:
    """Draws of each row of a source; 0 for log-probabilities, None before its first row."""
    if not len(example.ids):
        return before
    if before is not None and example.num_draws != before:
        kinds = [f"{num} draws a row" if num else "log-probabilities"
                 for num in (example.num_draws, before)]  # fmt: skip
        raise ValueError(f"it has {kinds[0]}, but the records before have {kinds[1]}")
    return example.num_draws


def _dataset_example(record: Record, reading: Reading) -> ForeignExample:
    name = _column(record, _TOKENS)
    tokens = _ids(record[name], name)
    drawn = next((column for column in _COUNTS if record.get(column) is not None), None)
    if drawn is not None:
        return _drawn_example(record, tokens, drawn)
    values = _column(record, _VALUES)
    ids, logprobs = _cells(_list(record.get(_IDS), _IDS), _list(record[values], values))
    return _aligned(tokens, ids, logprobs, str(record.get("task") or ""))


def _drawn_example(record: Record, tokens: Ids, counts: str) -> ForeignExample:
    values = next((name for name in _VALUES if record.get(name) is not None), None)
    if values is not None:
        raise ValueError(f"has both {counts} and {values}; a store keeps one of them")
    name = _column(record, _DRAWN)
    ids, shares, num_draws = drawn_shares(_list(record[name], name), _list(record[counts], counts))
    example = _aligned(tokens, ids, shares, str(record.get("task") or ""))
    return replace(example, num_draws=num_draws)


def _axolotl_example(record: Record, reading: Reading) -> ForeignExample:
    if record.get("target_mask") is not None:
        return _prepared_example(record)
    tokens = np.array(conversation_ids(reading.tokenizer, record, Columns()), np.int64)
    name = _column(record, _VALUES)
    rows = _list(record[name], name)
    if record.get(_IDS) is None:
        entries = [[_entry(one) for one in _list(row or [], name)] for row in rows]
        ids, logprobs = _cells(
            [[id_ for id_, _ in row] for row in entries],
            [[value for _, value in row] for row in entries],
        )
    else:
        ids, logprobs = _cells(_list(record[_IDS], _IDS), rows)
    return _aligned(tokens, ids, logprobs, str(record.get("task") or ""))


def _prepared_example(record: Record) -> ForeignExample:
    """Of axolotl's tokenised columns, where row j is about token j + 1."""
    tokens = _ids(record.get("input_ids"), "input_ids")
    names = (_IDS, "target_logprobs", "target_mask")
    if not len(tokens):
        raise ValueError("input_ids is empty")
    ids, values, mask = (_list(record.get(name), name)[: len(tokens) - 1] for name in names)
    found, logprobs = _cells(ids, values)
    flags = [_flags(row, "a row of target_mask") for row in mask]
    if [len(row) for row in flags] != [len(row or []) for row in ids]:
        raise ValueError(f"target_mask has another shape than {_IDS}")
    for n, row in enumerate(flags):
        found[n, : len(row)][~row] = ABSENT
    before = np.full((1, found.shape[1]), ABSENT, np.int64)
    none = np.full(before.shape, np.nan, np.float32)
    rest = np.repeat(before, len(tokens) - 1 - len(found), axis=0)
    ids_of_tokens = np.concatenate([before, found, rest])
    gaps = np.repeat(none, len(rest), axis=0)
    return _aligned(tokens, ids_of_tokens, np.concatenate([none, logprobs, gaps]), "")


def _entry(entry: Any) -> tuple[int, Any]:
    """Id and value of an entry of axolotl's first version."""
    if entry is None:
        return ABSENT, None
    token = entry.get("token") if isinstance(entry, dict) else None
    if not isinstance(token, str) or not token.startswith(_ENTRY):
        raise ValueError(f"an entry of logprobs has the token {str(token)[:30]!r}, not token_id:N")
    return int(token.removeprefix(_ENTRY)), entry.get("logprob")


def _nemo_example(record: Record, reading: Reading) -> ForeignExample:
    tokens, labels = (_ids(record.get(name), name) for name in ("tokens", "labels"))
    mask = _flags(record.get("loss_mask"), "loss_mask")
    total = _list(record.get("log_sum_exp_logits"), "log_sum_exp_logits")
    rows = [_list(record.get(name), name) for name in ("topk_token_ids", "topk_logits")]
    if not len(tokens) == len(labels) == len(mask) == len(total) == len(rows[0]):
        raise ValueError("tokens, labels, loss_mask, log_sum_exp_logits and topk_token_ids differ "
                         "in length")  # fmt: skip
    # Padding follows the last label, which is the end of the text.
    stop = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0
    shifted = np.flatnonzero((tokens[1:] != labels[:-1])[: max(stop - 1, 0)] & mask[: stop - 1])
    if len(shifted):
        at = int(shifted[0])
        raise ValueError(f"labels[{at}] is {labels[at]}, but tokens[{at + 1}] is {tokens[at + 1]}")
    ids, logits = _cells(*rows)
    sums = np.array([math.nan if one is None else float(one) for one in total], np.float64)
    response = np.concatenate([[0], mask[:stop]]).astype(np.uint8)
    return ForeignExample(
        token_ids=np.append(tokens[:stop], labels[stop - 1]) if stop else tokens[:0],
        is_response=response if stop else response[:0],
        ids=ids[:stop][mask[:stop]],
        logprobs=(logits - sums[:, None]).astype(np.float32)[:stop][mask[:stop]],
    )


def _aligned(tokens: Ids, ids: Ids, logprobs: Values, task: str) -> ForeignExample:
    """An example whose rows are about its last n tokens; a row without cells is none."""
    num = len(ids)
    if num > len(tokens):
        raise ValueError(f"{num} rows for {len(tokens)} tokens")
    has_row = np.zeros(len(tokens), bool)
    has_row[len(tokens) - num :] = (ids != ABSENT).any(axis=1)
    has_row[:1] = False
    chosen = has_row[len(tokens) - num :]
    return ForeignExample(
        token_ids=tokens,
        is_response=has_row.astype(np.uint8),
        ids=ids[chosen],
        logprobs=logprobs[chosen],
        task=task,
    )


def _column(record: Mapping[str, Any], names: Sequence[str]) -> str:
    found = next((name for name in names if record.get(name) is not None), None)
    if found is None:
        raise ValueError(f"no column {' or '.join(names)}")
    return found


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {'missing' if value is None else 'no list'}")
    return value


def _ids(value: Any, name: str) -> Ids:
    found = _list(value, name)
    if not all(type(one) is int and 0 <= one <= _MAX_ID for one in found):
        raise ValueError(f"{name} holds something other than token ids")
    return np.array(found, np.int64)


def _flags(value: Any, name: str) -> npt.NDArray[np.bool_]:
    found = _list(value, name)
    if not all(isinstance(one, int | float) and one in (0, 1) for one in found):
        raise ValueError(f"{name} holds something other than 0 and 1")
    return np.array(found, bool)


def _cells(ids: Sequence[Any], values: Sequence[Any]) -> tuple[Ids, Values]:
    """Cells [n, w] of lists of unequal length; None is an absent cell, or a row without cells.

    Raises:
        ValueError: the two differ in shape, or hold something other than ids and numbers.
    """
    if len(ids) != len(values):
        raise ValueError(f"{len(ids)} rows of ids, but {len(values)} of values")
    rows = [(_list(a or [], "a row of ids"), _list(b or [], "a row of values"))
            for a, b in zip(ids, values, strict=True)]  # fmt: skip
    width = max((len(a) for a, _ in rows), default=0)
    if width > _MAX_CELLS:
        raise ValueError(f"a row has {width:,} cells, more than {_MAX_CELLS:,}")
    found = np.full((len(rows), width), ABSENT, np.int64)
    numbers = np.full((len(rows), width), np.nan, np.float32)
    for n, (a, b) in enumerate(rows):
        if len(a) != len(b):
            raise ValueError(f"row {n} has {len(a)} ids, but {len(b)} values")
        for m, (id_, value) in enumerate(zip(a, b, strict=True)):
            found[n, m], numbers[n, m] = _cell(id_, value)
    return found, numbers


def _cell(id_: Any, value: Any) -> tuple[int, float]:
    if id_ is None or id_ == ABSENT:
        return ABSENT, math.nan
    if type(id_) is not int or not 0 <= id_ <= _MAX_ID:
        raise ValueError(f"{str(id_)[:30]!r} is no token id")
    if value is None:
        return id_, math.nan
    if type(value) not in (int, float) or (abs(value) > 1e30 and math.isfinite(value)):
        raise ValueError(f"{str(value)[:30]!r} is no log-probability")
    return id_, float(value)
