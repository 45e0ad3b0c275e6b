"""Records of a corpus to tokens: files, columns, chat templates, tokenisation, alignment."""

from caskd.store.corpus.alignment import joined_row_positions, logit_positions, num_rows, row_labels
from caskd.store.corpus.columns import (
    Columns,
    Record,
    column_value,
    corpus_digest,
    decide_columns,
    record_task,
)
from caskd.store.corpus.files import read_records
from caskd.store.corpus.tokens import (
    TextOptions,
    TokenizedExample,
    prompt_ids,
    reference_text,
    tokenize_examples,
)
from caskd.store.corpus.vocabulary import (
    template_digest,
    token_bytes,
    tokenizer_digest,
    vocab_digest,
)

__all__ = [
    "Columns",
    "Record",
    "TextOptions",
    "TokenizedExample",
    "column_value",
    "corpus_digest",
    "decide_columns",
    "joined_row_positions",
    "logit_positions",
    "num_rows",
    "prompt_ids",
    "read_records",
    "record_task",
    "reference_text",
    "row_labels",
    "template_digest",
    "token_bytes",
    "tokenize_examples",
    "tokenizer_digest",
    "vocab_digest",
]
