"""Records of a corpus to tokens: files, columns, chat templates, tokenisation, alignment."""

from caskd.store.corpus.alignment import joined_row_positions, logit_positions, num_rows, row_labels
from caskd.store.corpus.chat import (
    CHAT_FLAGS,
    ChatOptions,
    check_chat_flags,
    given_chat_options,
    reference_text,
)
from caskd.store.corpus.columns import (
    FINISHED,
    Columns,
    Record,
    column_value,
    corpus_digest,
    decide_columns,
    ignored_columns,
    record_task,
    template_values,
    text_columns,
)
from caskd.store.corpus.files import read_records
from caskd.store.corpus.parquet import parquet_batches, size_limit
from caskd.store.corpus.text_tokens import leading_ids, text_tokens
from caskd.store.corpus.tokens import (
    TEXT_RULE,
    TextOptions,
    TokenizedExample,
    answer_ids,
    conversation_ids,
    prompt_ids,
    rendered_bos,
    tokenize_examples,
)
from caskd.store.corpus.vocabulary import (
    special_tokens,
    template_digest,
    token_bytes,
    tokenizer_digest,
    vocab_digest,
    vocab_size,
    vocabulary_identity,
)

__all__ = [
    "CHAT_FLAGS",
    "FINISHED",
    "TEXT_RULE",
    "ChatOptions",
    "Columns",
    "Record",
    "TextOptions",
    "TokenizedExample",
    "answer_ids",
    "check_chat_flags",
    "column_value",
    "conversation_ids",
    "corpus_digest",
    "decide_columns",
    "given_chat_options",
    "ignored_columns",
    "joined_row_positions",
    "leading_ids",
    "logit_positions",
    "num_rows",
    "parquet_batches",
    "prompt_ids",
    "read_records",
    "record_task",
    "reference_text",
    "rendered_bos",
    "row_labels",
    "size_limit",
    "special_tokens",
    "template_digest",
    "template_values",
    "text_columns",
    "text_tokens",
    "token_bytes",
    "tokenize_examples",
    "tokenizer_digest",
    "vocab_digest",
    "vocab_size",
    "vocabulary_identity",
]
