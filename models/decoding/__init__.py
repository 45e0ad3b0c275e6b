"""Decoding: a model opened with its tokenizer, and greedy answers of a batch."""

from caskd.models.decoding.greedy import Answer, decode_batch, hidden_index
from caskd.models.decoding.loaded_model import LoadedModel, load_for_decoding
from caskd.models.decoding.stop_texts import check_stop_texts

__all__ = [
    "Answer",
    "LoadedModel",
    "check_stop_texts",
    "decode_batch",
    "hidden_index",
    "load_for_decoding",
]
